"""Query rows to tensors: flat gathers only, nothing by the row, in the same way for every process and every run."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.inputs import QueryArrays
from conversion_retrieval.losses.config import LossConfig
from conversion_retrieval.losses.labels import Labels
from conversion_retrieval.model.inputs import EntityInputs, QueryInputs, as_tensor
from conversion_retrieval.training.examples import Examples, Indices
from conversion_retrieval.training.labelling import LabelMaker
from conversion_retrieval.training.numbering import Numbering
from conversion_retrieval.training.pool import Pool, takes_full_softmax
from conversion_retrieval.training.shard import Shard


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's input on the device.

    ``items`` [M] with ``performance`` [M, F] are what the item tower encodes; ``referenced`` [U] are the items of
    histories and contexts, the unknown one last. With the full softmax both are views of the catalogue, otherwise of
    ``entities`` [M + U], one after the other: one look-up embeds them all.
    """

    queries: QueryInputs
    entities: EntityInputs
    items: EntityInputs
    performance: Tensor
    referenced: EntityInputs
    labels: Labels
    num_queries: int
    full: bool


@dataclass(frozen=True, kw_only=True)
class BatchBuilder:
    """Makes batches; ``catalogue`` is ``model.inputs.item_inputs`` of the dataset's items."""

    dataset: FeatureDataset
    examples: Examples
    catalogue: EntityInputs
    losses: LossConfig
    batch_size: int
    seed: int
    device: torch.device
    shard: Shard = field(default_factory=Shard)

    def build(self, snapshot: int, rows: Indices, *, epoch: int, index: int) -> Batch:
        """The batch of the queries at ``rows``, whose uniform negatives depend on (seed, epoch, index) alone."""
        generator = np.random.default_rng([self.seed, epoch, index, 1])
        labels, pool = self.label_maker.make(snapshot, rows, generator)
        arrays = self.dataset.query_arrays(self.examples.split, rows[self.shard.slice(len(rows))])
        entities, queries = self._entities(pool, arrays)
        return Batch(
            queries=queries,
            entities=entities,
            items=entities.rows(slice(len(pool.items))),
            performance=as_tensor(self._performance(pool, snapshot), self.device, torch.float32),
            referenced=entities if self.full else entities.rows(slice(len(pool.items), None)),
            labels=labels,
            num_queries=len(rows),
            full=self.full,
        )

    @cached_property
    def full(self) -> bool:
        """Whether batches contrast with the whole catalogue."""
        return takes_full_softmax(self.losses, self.dataset.num_items)

    @cached_property
    def numbering(self) -> Numbering:
        """Of the items that queries refer to."""
        return Numbering(num_items=self.dataset.num_items)

    @cached_property
    def label_maker(self) -> LabelMaker:
        """What turns query rows into labels."""
        return LabelMaker(
            examples=self.examples,
            losses=self.losses,
            full=self.full,
            batch_size=self.batch_size,
            shard=self.shard,
            device=self.device,
        )

    def _performance(self, pool: Pool, snapshot: int) -> NDArray[np.float32]:
        if self.full:
            return self.dataset.performance(snapshot)
        return self.dataset.performance_rows(pool.items, snapshot)

    def _entities(self, pool: Pool, arrays: QueryArrays) -> tuple[EntityInputs, QueryInputs]:
        if self.full:
            return self.catalogue, QueryInputs.of(arrays, self.dataset.num_items, self.device)
        rows = self.numbering.distinct(arrays.context_item, arrays.history_item)
        self.numbering.assign(rows)
        compact = replace(
            arrays,
            context_item=self.numbering.of(arrays.context_item),
            history_item=self.numbering.of(arrays.history_item),
        )
        index = np.concatenate([pool.items, rows, [self.dataset.num_items]])
        entities = self.catalogue.rows(as_tensor(index, self.device, torch.int64))
        return entities, QueryInputs.of(compact, len(rows), self.device)
