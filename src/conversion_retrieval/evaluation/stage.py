"""The ``evaluate`` stage: candidate, champion and baselines on the same queries and the same full catalogue."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.contracts import new_artifact, write_json
from conversion_retrieval.errors import UserError
from conversion_retrieval.evaluation.baselines import fit_baseline
from conversion_retrieval.evaluation.config import ENGAGEMENT_ONLY, EvaluationConfig
from conversion_retrieval.evaluation.coverage import measure_coverage
from conversion_retrieval.evaluation.measure import Measurer
from conversion_retrieval.evaluation.model_scores import (
    IncomparableError,
    ModelVectors,
    encode_bundle,
    encode_window,
    open_inputs,
)
from conversion_retrieval.evaluation.overlap import engagement_scores
from conversion_retrieval.evaluation.ranking import Ranks, ScoreBlock, score_ranks
from conversion_retrieval.evaluation.report import write_evaluation_page
from conversion_retrieval.evaluation.results import METRICS_FILE, Measurement
from conversion_retrieval.evaluation.tables import write_ranks, write_slices
from conversion_retrieval.evaluation.window import CONVERSION_TASK, EvaluationWindow
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.progress import say, track
from conversion_retrieval.registry.decision import ChampionState
from conversion_retrieval.registry.lookup import fetch_champion
from conversion_retrieval.training.load import LoadedModel, load_model

CANDIDATE: Final = "candidate"
CHAMPION: Final = "champion"


def evaluate(
    *,
    features_dir: Path,
    spec_dir: Path,
    model_dir: Path,
    evaluation_dir: Path,
    page_path: Path,
    config: PipelineConfig,
    registry_uri: str = "",
) -> float:
    """Measure the model on the test window; returns its conversion recall at ``gate.k``, 0 without conversions.

    Beside it: the registry's champion, re-scored on this window and catalogue, and the configured baselines. Raises
    ``UserError`` for a corrupt input or a model whose vectors are not finite; what is wrong with the registry is
    recorded, never raised.
    """
    inputs = open_inputs(features_dir=features_dir, spec_dir=spec_dir, model_dir=model_dir)
    dataset = FeatureDataset.open(features_dir, FeatureSpec.load(spec_dir))
    evaluation = Evaluation(
        test=EvaluationWindow.of(dataset, "test"),
        validation=EvaluationWindow.of(dataset, "validation"),
        config=_with_gate_k(config),
    )
    metadata: dict[str, Any] = {}
    with new_artifact(evaluation_dir, kind="evaluation", inputs=inputs, metadata=metadata) as working_dir:
        candidate = evaluation.add_candidate(load_model(model_dir))
        champion = evaluation.add_champion(registry_uri, features_dir)
        evaluation.add_baselines()
        evaluation.compare()
        metadata |= {"champion": asdict(champion), "baselines": evaluation.parameters}
        metadata["confidence_level"] = config.evaluation.confidence_level
        np.save(working_dir / "query_embeddings.npy", candidate.queries, allow_pickle=False)
        write_json(working_dir / METRICS_FILE, [asdict(m) for m in evaluation.measurements])
        write_ranks(working_dir / "ranks.parquet", evaluation.test, evaluation.ranks)
        write_slices(working_dir / "slices.parquet", evaluation.test)
    write_evaluation_page(evaluation_dir, page_path)
    return evaluation.recall(config.gate.k)


@dataclass(kw_only=True)
class Evaluation:
    """Collects ranks and measurements, one model after another."""

    test: EvaluationWindow
    validation: EvaluationWindow
    config: EvaluationConfig
    ranks: dict[str, Ranks] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    parameters: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Prepare the shared bootstrap."""
        self._measurer = Measurer(self.test, self.config)

    def add_candidate(self, model: LoadedModel) -> ModelVectors:
        """Measure this run's model, and its engagement head as the engagement-only list where it has one."""
        vectors = encode_window(model, self.test)
        self._add(CANDIDATE, vectors.scores(self.config.block_queries))
        if model.config.model.heads == "multi_head":
            engagement = encode_window(model, self.test, head="engagement")
            self._add(ENGAGEMENT_ONLY, engagement.scores(self.config.block_queries))
        return vectors

    def add_champion(self, registry_uri: str, features_dir: Path) -> ChampionState:
        """Measure the registry's champion if there is a readable one, and say what was found."""
        with TemporaryDirectory() as bundle_dir:
            state = fetch_champion(registry_uri, Path(bundle_dir) / "bundle")
            say(f"evaluate: champion {state.status}: {state.reason or state.version}")
            if state.status != "present":
                return state
            try:
                vectors = encode_bundle(Path(bundle_dir) / "bundle", features_dir, self.test.split.name)
            except IncomparableError as error:
                say(f"evaluate: champion incomparable: {error}")
                return replace(state, status="incomparable", reason=str(error))
            except UserError as error:
                return replace(state, status="corrupt", reason=str(error))
        self._add(CHAMPION, vectors.scores(self.config.block_queries))
        return state

    def add_baselines(self) -> None:
        """Tune, fit and measure the configured baselines, and the engagement-only list if no head gave one."""
        validation = self.validation.task_queries(CONVERSION_TASK)
        for name in track(self.config.baselines, "evaluate: baselines", unit="baselines"):
            fitted = fit_baseline(name, self.test.log, validation, self.test.start, self.config)
            self.parameters[name] = {"full": dict(fitted.full.parameters), "new": dict(fitted.new.parameters)}
            new_scores = None if fitted.new is fitted.full else fitted.new.score_block(self.test.windows)
            self._add(name, fitted.full.score_block(self.test.windows), new_scores)
        if ENGAGEMENT_ONLY not in self.ranks:
            scores = engagement_scores(self.validation, self.test, self.config)
            if scores is not None:
                self._add(ENGAGEMENT_ONLY, scores)

    def compare(self) -> None:
        """Paired differences of the candidate with every other model, and what each recalls beyond engagement."""
        for name, ranks in self.ranks.items():
            if name != CANDIDATE:
                self.measurements += self._measurer.difference(CANDIDATE, self.ranks[CANDIDATE], name, ranks)
            if name != ENGAGEMENT_ONLY and (engagement := self.ranks.get(ENGAGEMENT_ONLY)):
                self.measurements += self._measurer.only_recalled(name, ranks, ENGAGEMENT_ONLY, engagement)

    def recall(self, k: int) -> float:
        """The candidate's recall of conversions, 0 if there were none."""
        wanted = (f"conversion/recall@{k}", CANDIDATE, "all")
        values = (m.value for m in self.measurements if (m.name, m.model, m.slice) == wanted)
        return next(values, None) or 0.0

    def _add(self, name: str, scores: ScoreBlock, new_scores: ScoreBlock | None = None) -> None:
        """Measure a model; ``new_scores``, where given, rank the lists without what users had."""
        num_items, config = self.test.dataset.num_items, self.config
        ranks = self._ranks(scores)
        if new_scores is not None:
            ranks = replace(ranks, without_removed=self._ranks(new_scores).without_removed)
        self.ranks[name] = ranks
        self.measurements += self._measurer.model(name, ranks)
        self.measurements += measure_coverage(name, scores, len(self.test.split), num_items, config.ks, config)

    def _ranks(self, scores: ScoreBlock) -> Ranks:
        num_items, block = self.test.dataset.num_items, self.config.block_queries
        return score_ranks(scores, num_items, self.test.positives, block=block, removed=self.test.seen)


def _with_gate_k(config: PipelineConfig) -> EvaluationConfig:
    return replace(config.evaluation, ks=tuple(sorted({*config.evaluation.ks, config.gate.k})))
