"""A trained model as a scorer: its queries and items encoded as of the evaluation window's start."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.contracts import open_artifact
from conversion_retrieval.errors import UserError
from conversion_retrieval.evaluation.ranking import DotProductScores, ScoreBlock, require_finite_scores
from conversion_retrieval.evaluation.window import EvaluationWindow
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.training.load import LoadedModel, load_model


class IncomparableError(UserError):
    """A model that is whole cannot be measured on these features."""


@dataclass(frozen=True, kw_only=True)
class ModelVectors:
    """Vectors of a window's queries [Q, D] and of the catalogue [N, D]; a score is their inner product."""

    queries: NDArray[np.float32]
    items: NDArray[np.float32]

    def scores(self, block: int) -> ScoreBlock:
        """A scorer of the window's queries."""
        return DotProductScores(self.queries, self.items, block=block)


def open_inputs(*, features_dir: Path, spec_dir: Path, model_dir: Path) -> dict[str, str]:
    """Verify the three artifacts that a model is measured with, and return their digests by kind.

    Raises ``CorruptArtifactError`` for a bad file and ``UserError`` for a spec other than the one trained with.
    """
    directories = {"features": features_dir, "spec": spec_dir, "model": model_dir}
    manifests = {kind: open_artifact(directory, kind=kind) for kind, directory in directories.items()}
    trained, given = manifests["model"].inputs.get("spec", ""), manifests["spec"].digest
    if trained != given:
        raise UserError(
            f"expected the spec {trained[:12]} that the model in {model_dir} was trained with, found {given[:12]} "
            f"in {spec_dir}: pass the outputs of one run"
        )
    return {kind: manifest.digest for kind, manifest in manifests.items()}


def encode_window(model: LoadedModel, window: EvaluationWindow, head: str = "conversion") -> ModelVectors:
    """Encode a window with one head. Items are encoded once, as of the window's start, as the index will hold them.

    Raises ``UserError`` where a vector is not finite, or a score would not be.
    """
    queries = model.encode_queries(window.dataset, window.split, np.arange(len(window.split)), head=head)
    items = model.encode_items(window.dataset, window.snapshot, head=head)
    for name, vectors in (("query", queries), ("item", items)):
        if bad := int((~np.isfinite(vectors).all(axis=1)).sum()):
            raise UserError(
                f"expected finite {name} vectors from the model, found {bad} of {len(vectors)} that are not: "
                "training diverged; lower training.learning_rate"
            )
    require_finite_scores(queries, items)
    return ModelVectors(queries=queries, items=items)


def encode_bundle(bundle_dir: Path, features_dir: Path, split: str) -> ModelVectors:
    """The same with the model of a bundle, features encoded by the bundle's own spec.

    Raises ``IncomparableError`` where these features lack figures that the model was trained with (without them it is
    not the model that is served, and would be beaten by a worse one), or columns are of other types or lengths.
    """
    model_dir = bundle_dir / "model"
    spec, model = FeatureSpec.load(model_dir / "spec"), load_model(model_dir)
    try:
        dataset = FeatureDataset.open(features_dir, spec)
        if missing := dataset.missing_figures:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"expected the figures that it was trained with, found features without {missing[0]}{more}")
        return encode_window(model, EvaluationWindow.of(dataset, split))
    except UserError as error:
        raise IncomparableError(str(error)) from None
