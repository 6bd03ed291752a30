"""Which items a batch encodes and contrasts: the whole catalogue, or what the sampling pools drew."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.losses.config import LossConfig
from conversion_retrieval.losses.proposals import in_batch_inclusion, uniform_inclusion, union_inclusion
from conversion_retrieval.training.examples import Indices
from conversion_retrieval.training.numbering import Numbering


@dataclass(frozen=True, kw_only=True)
class Pool:
    """``items`` [M] rows of the catalogue without repeats; the first ``num_candidates`` are everybody's negatives."""

    items: Indices
    num_candidates: int
    numbering: Numbering | None = None  # None where an item's position is the item

    def positions(self, items: NDArray[np.integer]) -> Indices:
        """Where each of ``items``, all of them in the pool, is. Valid until the next pool is drawn."""
        return items.astype(np.int64) if self.numbering is None else self.numbering.of(items)

    def is_candidate(self, items: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether each of ``items``, in the pool or not, is among the candidates."""
        # An item that is not in the pool may have any number, but the candidate of that number is another.
        there: NDArray[np.bool_] = self.candidates.take(self.positions(items), mode="clip") == items
        return there

    @property
    def candidates(self) -> Indices:
        """Rows of the candidates, [C]."""
        return self.items[: self.num_candidates]


def whole_catalogue(num_items: int) -> Pool:
    """The pool of the full softmax: every item is a candidate, in catalogue order."""
    return Pool(items=np.arange(num_items), num_candidates=num_items)


def takes_full_softmax(config: LossConfig, num_items: int) -> bool:
    """Whether the loss ranges over the whole catalogue."""
    return config.softmax == "full" or (config.softmax == "auto" and num_items <= config.max_full_softmax_items)


def draw_pool(
    positives: NDArray[np.integer],
    others: NDArray[np.integer],
    numbering: Numbering,
    config: LossConfig,
    generator: np.random.Generator,
) -> Pool:
    """The union of in-batch positives and uniform draws; ``others`` (hard negatives) are encoded but no candidates."""
    drawn = generator.integers(0, numbering.num_items, config.uniform_negatives)
    own = numbering.distinct(positives, others)
    candidates = numbering.distinct(positives, drawn) if config.in_batch_negatives else numbering.distinct(drawn)
    items = np.concatenate([candidates, np.setdiff1d(own, candidates, assume_unique=True)])
    numbering.assign(items)
    return Pool(items=items, num_candidates=len(candidates), numbering=numbering)


def log_inclusion(
    counts: NDArray[np.integer],
    num_queries: int,
    batch_size: int,
    uniform_share: NDArray[np.float64] | np.float64,
    config: LossConfig,
) -> NDArray[np.float32]:
    """LogQ of candidates: log of the probability that the union of the pools holds them, [C].

    ``counts`` [C] of the snapshot's ``num_queries`` queries have the candidate among their positives;
    ``uniform_share`` is the probability that one uniform draw hits it.
    """
    pools = [uniform_inclusion(np.broadcast_to(uniform_share, counts.shape), config.uniform_negatives)]
    if config.in_batch_negatives:
        pools.append(in_batch_inclusion(counts, num_queries, batch_size))
    # A candidate that came in although no pool could draw it for another query is the query's own positive alone.
    return np.log(np.maximum(union_inclusion(*pools), 1e-12)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class AdvertiserPool:
    """Advertisers of the candidates: ``group`` [C] in 0..A, ``codes`` [A] their codes in the data."""

    group: Indices
    codes: Indices

    @classmethod
    def of(cls, pool: Pool, item_advertiser: NDArray[np.int32]) -> "AdvertiserPool":
        """Number the candidates' advertisers."""
        codes, group = np.unique(item_advertiser[pool.candidates], return_inverse=True)
        return cls(group=group.reshape(-1).astype(np.int64), codes=codes.astype(np.int64))

    def find(self, codes: NDArray[np.integer]) -> tuple[NDArray[np.bool_], Indices]:
        """Whether each advertiser is there, and its number where it is."""
        at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return self.codes[at] == codes, at
