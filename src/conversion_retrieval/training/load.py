"""A trained model with its spec: the one way to vectors in evaluation, indexing and serving."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.contracts import open_artifact
from conversion_retrieval.errors import CorruptArtifactError, one_line
from conversion_retrieval.features.dataset import FeatureDataset, Split
from conversion_retrieval.features.inputs import QueryArrays
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.model.inputs import EntityInputs, QueryInputs, as_tensor, item_inputs
from conversion_retrieval.model.sizes import InputSizes
from conversion_retrieval.model.two_tower import SERVED_HEAD, TwoTower, make_model
from conversion_retrieval.recorded_config import recorded_config
from conversion_retrieval.training.devices import choose_device

# What weights of earlier releases lack: they counted their towers whole.
WEIGHTS_BEFORE: Final = {"tower_share": torch.ones(())}
# What a block takes beside its vectors should stay below a training step's activations.
ITEM_BLOCK = 16_384
QUERY_BLOCK = 1_024


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that only encodes, in float32. The catalogue of the last dataset used is kept on the device."""

    model: TwoTower
    spec: FeatureSpec
    config: PipelineConfig
    device: torch.device
    digest: str = ""
    _catalogues: dict[int, "Catalogue"] = field(default_factory=dict, repr=False)

    @property
    def embedding_dim(self) -> int:
        """The length of query and item vectors."""
        return self.model.output_dim

    def encode_items(self, dataset: FeatureDataset, snapshot: int, *, head: str = SERVED_HEAD) -> NDArray[np.float32]:
        """Vectors [N, D] of the whole catalogue with performance as of ``snapshot``, for the head of one task."""
        performance = as_tensor(dataset.performance(snapshot), self.device, torch.float32)
        return encode_catalogue(self.model, self.catalogue(dataset).items, performance, head=head)

    def encode_queries(
        self, dataset: FeatureDataset, split: Split, rows: NDArray[np.integer], *, head: str = SERVED_HEAD
    ) -> NDArray[np.float32]:
        """Vectors [B, D] of the split's queries at ``rows``, for the head of one task."""
        vectors = np.empty((len(rows), self.embedding_dim), np.float32)
        for start in range(0, len(rows), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            vectors[block] = self.encode_arrays(dataset, dataset.query_arrays(split, rows[block]), head=head)
        return vectors

    @torch.no_grad()
    def encode_arrays(
        self, dataset: FeatureDataset, arrays: QueryArrays, *, head: str = SERVED_HEAD
    ) -> NDArray[np.float32]:
        """Vectors [B, D] of queries given as arrays, whose items are rows of the dataset's catalogue."""
        if self.model.training:  # switching walks over all modules, which a single query would feel
            self.model.eval()
        inputs = QueryInputs.of(arrays, dataset.num_items, self.device)
        catalogue = self.catalogue(dataset)
        vectors = self.model.encode_queries(inputs, catalogue.history, catalogue.items.id_code, head)
        return np.asarray(vectors.float().cpu().numpy())

    def catalogue(self, dataset: FeatureDataset) -> "Catalogue":
        """The dataset's items on the device with their static embeddings."""
        if id(dataset) not in self._catalogues:
            self.hold(dataset, item_inputs(dataset.items, self.device))
        return self._catalogues[id(dataset)]

    @torch.no_grad()
    def hold(self, dataset: FeatureDataset, items: EntityInputs) -> None:
        """Keep the dataset's items, already on the device, as the catalogue used last."""
        self.model.eval()
        self._catalogues.clear()
        history = torch.empty(len(items), self.model.config.embedding_dim, device=self.device)
        for rows in item_blocks(len(items)):
            history[rows] = self.model.embed_history_items(items.rows(rows))
        self._catalogues[id(dataset)] = Catalogue(dataset=dataset, items=items, history=history)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Items and the unknown one, [N + 1], and their static embeddings as histories look them up.

    ``dataset`` keeps the object alive whose identity names this catalogue.
    """

    dataset: FeatureDataset
    items: EntityInputs
    history: Tensor


def item_blocks(num_items: int) -> Iterator[slice]:
    """Rows of the catalogue to work on at once."""
    for start in range(0, num_items, ITEM_BLOCK):
        yield slice(start, min(start + ITEM_BLOCK, num_items))


@torch.no_grad()
def encode_catalogue(
    model: TwoTower, items: EntityInputs, performance: Tensor, *, head: str = SERVED_HEAD
) -> NDArray[np.float32]:
    """Vectors [N, D] of the first N of ``items`` with ``performance`` [N, F], a block at a time."""
    model.eval()
    vectors = np.empty((len(performance), model.output_dim), np.float32)
    for rows in item_blocks(len(performance)):
        block = model.encode_items(items.rows(rows), performance[rows], head=head)
        vectors[rows] = block.float().cpu().numpy()
    return vectors


def load_model(model_dir: Path | str, *, device: str = "auto") -> LoadedModel:
    """Open a model artifact. Raises ``CorruptArtifactError`` where its files do not fit together."""
    directory = Path(model_dir)
    manifest = open_artifact(directory, kind="model")
    path = directory / "config.json"
    config = recorded_config(json.loads(path.read_text()), release=manifest.package_version, where=str(path))
    spec = FeatureSpec.load(directory / "spec")
    chosen = choose_device(device)
    model = make_model(InputSizes.of(spec), config.model).to(chosen)
    load_weights(model, directory / "weights.safetensors")
    return LoadedModel(model=model, spec=spec, config=config, device=chosen, digest=manifest.digest)


def load_weights(model: TwoTower, path: Path) -> None:
    """Fill the model; ``CorruptArtifactError`` where the file lacks a tensor or holds one of another shape."""
    try:
        model.load_state_dict(WEIGHTS_BEFORE | load_file(str(path)))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = f"expected weights of the configured model at {path}, found: {_first_fault(error)}"
        raise CorruptArtifactError(reason) from None


def _first_fault(error: Exception) -> str:
    """What is wrong with the first tensor: ``load_state_dict`` lists all of them."""
    text = one_line(error).rpartition("Error(s) in loading state_dict for TwoTower: ")[2]
    return re.split(r'(?<="), "|(?<=\.) (?=size mismatch|Unexpected key)', text, maxsplit=1)[0][:300]
