"""The labels of a batch: drawn for all its queries from (seed, epoch, index) alone, then cut to this process's."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from conversion_retrieval.losses.config import LossConfig
from conversion_retrieval.losses.labels import AdvertiserLabels, Contrast, Labels
from conversion_retrieval.model.inputs import as_tensor
from conversion_retrieval.training.examples import CodesByUser, Examples, Indices, PositiveCounts, expand, num_batches
from conversion_retrieval.training.numbering import Numbering
from conversion_retrieval.training.pool import AdvertiserPool, Pool, draw_pool, log_inclusion, whole_catalogue
from conversion_retrieval.training.rows import (
    BatchPositives,
    PositiveRows,
    QueryRows,
    SoftmaxRows,
    of_task,
    pairs_tensor,
    positives_tensor,
    query_tensor,
)
from conversion_retrieval.training.shard import Shard


@dataclass(frozen=True, kw_only=True)
class LabelMaker:
    """Turns query rows into labels; ``full`` says that every item of the catalogue is a candidate."""

    examples: Examples
    losses: LossConfig
    full: bool
    batch_size: int
    shard: Shard
    device: torch.device

    def make(self, snapshot: int, rows: Indices, generator: np.random.Generator) -> tuple[Labels, Pool]:
        """The labels of the queries at ``rows`` and the items that they point at."""
        return _Draw(maker=self, snapshot=snapshot, rows=rows).labels(generator)

    @property
    def num_items(self) -> int:
        """Items in the catalogue."""
        return len(self.examples.item_advertiser)

    @cached_property
    def advertiser_share(self) -> NDArray[np.float64]:
        """Each advertiser's share of the catalogue: the probability that a uniform draw hits one of its items."""
        return np.bincount(self.examples.item_advertiser) / max(self.num_items, 1)

    @cached_property
    def task_weight_per_query(self) -> dict[str, float]:
        """Mean weight of a task's positives of a query; tasks without positives are missing."""
        return self.examples.task_weight_per_query()

    @cached_property
    def queries_per_batch(self) -> float:
        """The mean over an epoch's batches, each of which is of one snapshot."""
        return self.examples.num_queries / num_batches(self.examples, self.batch_size)

    @cached_property
    def numbering(self) -> Numbering:
        """Of the items of a batch's pool."""
        return Numbering(num_items=self.num_items)

    @cached_property
    def catalogue(self) -> Pool:
        """The pool of the full softmax."""
        return whole_catalogue(self.num_items)

    @cached_property
    def catalogue_advertisers(self) -> AdvertiserPool:
        """The advertisers of the whole catalogue."""
        return AdvertiserPool.of(self.catalogue, self.examples.item_advertiser)

    @property
    def corrects_logq(self) -> bool:
        """Whether candidates are a sample whose Q must be corrected for."""
        return self.losses.logq_correction and not self.full

    @property
    def with_advertisers(self) -> bool:
        """Whether there is an advertiser-level loss: it needs conversions."""
        return self.losses.advertiser_weight > 0 and "conversion" in self.task_weight_per_query

    @property
    def with_hard_negatives(self) -> bool:
        """Whether hard negatives count."""
        return self.losses.hard_negatives and self.losses.hard_negative_weight > 0


@dataclass(frozen=True, kw_only=True)
class _Draw:
    maker: LabelMaker
    snapshot: int
    rows: Indices

    def labels(self, generator: np.random.Generator) -> tuple[Labels, Pool]:
        own, device = self._positives, self.maker.device
        pool = self._pool(generator)
        rows = self._softmax_rows
        hard = rows.spread(self._hard[0], pool.positions(self._hard[1]))
        position = pool.positions(own.item)
        labels = Labels(
            row_query=query_tensor(rows, device),
            items=self._item_contrast(pool),
            positives={
                task: positives_tensor(rows, own, position, of_task(own, task), device)
                for task in self.maker.task_weight_per_query
            },
            hard=pairs_tensor(*hard, device) if len(hard[0]) else None,
            advertisers=self._advertisers(pool) if self.maker.with_advertisers else None,
            scales=self._scales(),
        )
        return labels, pool

    @cached_property
    def _positives(self) -> BatchPositives:
        positives = self.maker.examples.positives
        owner, flat = expand(positives.offsets, self.rows)
        item = positives.item[flat].astype(np.int64)
        return BatchPositives(owner=owner, item=item, task=positives.task[flat], weight=positives.weight[flat])

    @cached_property
    def _hard(self) -> tuple[Indices, Indices]:
        """(query, item) of hard negatives that are no positive of the same user."""
        if not self.maker.with_hard_negatives:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        hard = self.maker.examples.split.hard_negatives
        query, flat = expand(hard.offsets, self.rows)
        item = hard.item[flat].astype(np.int64)
        if not len(item):
            return query, item
        wanted_query, wanted_item = self._wanted_items(self._positives.owner, self._positives.item)
        num_items = self.maker.num_items
        kept = ~np.isin(query * num_items + item, wanted_query * num_items + wanted_item)
        return query[kept], item[kept]

    @cached_property
    def _softmax_rows(self) -> SoftmaxRows:
        config, own = self.maker.losses, self.maker.shard.slice(len(self.rows))
        owner = self._positives.owner
        # In the full softmax the positive is no accidental hit: it must not be counted twice.
        mask_own = config.mask_accidental_hits or self.maker.full
        if mask_own and config.mask_same_user_positives:
            return QueryRows(owner=owner, start=own.start, stop=own.stop)
        return PositiveRows(
            owner=owner,
            start=own.start,
            stop=own.stop,
            mask_own=mask_own,
            mask_same_user=config.mask_same_user_positives,
        )

    @property
    def _users(self) -> NDArray[np.int32]:
        """Each query's user, -1 where unknown."""
        return self.maker.examples.split.user[self.rows]

    @cached_property
    def _user_number(self) -> Indices:
        """A number for each query's user, from 0; unknown users are all different."""
        users = self._users.astype(np.int64)
        users = np.where(users < 0, -1 - np.arange(len(users)), users)
        return np.unique(users, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def _wanted_items(self, owner: Indices, item: Indices) -> tuple[Indices, Indices]:
        """(query, item) for every query and every positive item of its user."""
        if self.maker.losses.same_user_scope == "batch":
            return self._in_batch(owner, item)
        return self._in_window(self.maker.examples.items_by_user, owner, item)

    def _wanted_advertisers(self, owner: Indices, advertiser: Indices) -> tuple[Indices, Indices]:
        """The same for the advertisers of positives."""
        if self.maker.losses.same_user_scope == "batch":
            return self._in_batch(owner, advertiser)
        return self._in_window(self.maker.examples.advertisers_by_user, owner, advertiser)

    def _in_batch(self, owner: Indices, code: Indices) -> tuple[Indices, Indices]:
        """(query, code) for every query of the batch and every code of a positive that its user has in the batch."""
        width = int(code.max(initial=0)) + 1
        pairs = np.unique(self._user_number[owner] * width + code)
        offsets = np.searchsorted(pairs, width * np.arange(self._user_number.max(initial=-1) + 2))
        query, flat = expand(offsets, self._user_number)
        return query, pairs[flat] % width

    def _in_window(self, by_user: CodesByUser, owner: Indices, code: Indices) -> tuple[Indices, Indices]:
        """(query, code) for every code of a positive that the query's user has in the whole training window.

        A query of an unknown user has its own positives alone.
        """
        query, found = by_user.of_users(self._users)
        unknown = self._users[owner] < 0
        return np.concatenate([query, owner[unknown]]), np.concatenate([found, code[unknown]])

    def _pool(self, generator: np.random.Generator) -> Pool:
        if self.maker.full:
            return self.maker.catalogue
        return draw_pool(self._positives.item, self._hard[1], self.maker.numbering, self.maker.losses, generator)

    def _item_contrast(self, pool: Pool) -> Contrast:
        row, item = self._softmax_rows.excluded(self._positives.item, self._wanted_items)
        if not self.maker.full:
            inside = pool.is_candidate(item)
            row, item = row[inside], item[inside]
        return Contrast(
            num_candidates=pool.num_candidates,
            excluded=pairs_tensor(row, pool.positions(item), self.maker.device),
            offsets=self._item_offsets(pool),
        )

    def _advertisers(self, pool: Pool) -> AdvertiserLabels:
        """Conversions' advertisers against the other advertisers of the candidates."""
        own, rows, device = self._positives, self._softmax_rows, self.maker.device
        advertiser = self.maker.examples.item_advertiser
        advertisers = self.maker.catalogue_advertisers if self.maker.full else AdvertiserPool.of(pool, advertiser)
        code = advertiser[own.item].astype(np.int64)
        known, number = advertisers.find(code)
        excluded_row, excluded_code = rows.excluded(code, self._wanted_advertisers)
        there, excluded_number = advertisers.find(excluded_code)
        contrast = Contrast(
            num_candidates=len(advertisers.codes),
            excluded=pairs_tensor(excluded_row[there], excluded_number[there], device),
            offsets=self._advertiser_offsets(advertisers),
        )
        positives = positives_tensor(rows, own, number, known & of_task(own, "conversion"), device)
        return AdvertiserLabels(
            contrast=contrast, group=as_tensor(advertisers.group, device, torch.int64), positives=positives
        )

    def _item_offsets(self, pool: Pool) -> torch.Tensor | None:
        if not self.maker.corrects_logq:
            return None
        counts = self.maker.examples.item_counts[self.snapshot]
        return self._offsets(counts, pool.candidates, np.float64(1 / self.maker.num_items))

    def _advertiser_offsets(self, advertisers: AdvertiserPool) -> torch.Tensor | None:
        if not self.maker.corrects_logq:
            return None
        counts = self.maker.examples.advertiser_counts[self.snapshot]
        return self._offsets(counts, advertisers.codes, self.maker.advertiser_share[advertisers.codes])

    def _offsets(
        self, counts: PositiveCounts, codes: Indices, uniform_share: NDArray[np.float64] | np.float64
    ) -> torch.Tensor:
        """-logQ of the candidates called ``codes``."""
        config = self.maker.losses
        log_q = log_inclusion(counts.of(codes), counts.num_queries, len(self.rows), uniform_share, config)
        return as_tensor(-log_q, self.maker.device, torch.float32)

    def _scales(self) -> dict[str, float]:
        """Every positive weighs the same whichever batch it falls into: no mean over the batch's own positives or
        its own queries, which may be the few of a quiet snapshot.
        """
        size = self.maker.queries_per_batch
        scales = {task: 1 / (size * w) for task, w in self.maker.task_weight_per_query.items()}
        return {**scales, "advertiser": scales["conversion"]} if self.maker.with_advertisers else scales
