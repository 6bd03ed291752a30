"""Which items a batch encodes and contrasts: the whole catalogue, or what the sampling pools drew."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.losses.config import LossConfig
from conversion_retrieval.losses.proposals import in_batch_inclusion, uniform_inclusion, union_inclusion
from conversion_retrieval.training.examples import Indices


@dataclass(frozen=True, kw_only=True)
class Pool:
    """``items`` [M] rows of the catalogue without repeats; the first ``num_candidates`` are everybody's negatives.

    By item of the catalogue, [N]: ``is_candidate``, and ``position``, where it is in ``items`` (of an item that is not
    there it means nothing).
    """

    items: Indices
    num_candidates: int
    is_candidate: NDArray[np.bool_]
    position: NDArray[np.integer]

    def positions(self, items: NDArray[np.integer]) -> Indices:
        """Where each of ``items``, all of them in the pool, is."""
        found: Indices = self.position[items].astype(np.int64)
        return found

    @property
    def candidates(self) -> Indices:
        """Rows of the candidates, [C]."""
        return self.items[: self.num_candidates]


def whole_catalogue(num_items: int) -> Pool:
    """The pool of the full softmax: every item is a candidate, in catalogue order."""
    every = np.arange(num_items)
    return Pool(items=every, num_candidates=num_items, is_candidate=np.ones(num_items, bool), position=every)


def takes_full_softmax(config: LossConfig, num_items: int) -> bool:
    """Whether the loss ranges over the whole catalogue."""
    return config.softmax == "full" or (config.softmax == "auto" and num_items <= config.max_full_softmax_items)


def draw_pool(
    positives: NDArray[np.integer],
    others: NDArray[np.integer],
    num_items: int,
    config: LossConfig,
    generator: np.random.Generator,
) -> Pool:
    """The union of in-batch positives and uniform draws; ``others`` (hard negatives) are encoded but no candidates."""
    drawn = generator.integers(0, num_items, config.uniform_negatives)
    is_candidate, is_other = np.zeros(num_items, bool), np.zeros(num_items, bool)
    is_candidate[drawn] = True
    (is_candidate if config.in_batch_negatives else is_other)[positives] = True
    is_other[others] = True
    candidates, extra = np.flatnonzero(is_candidate), np.flatnonzero(is_other & ~is_candidate)
    items = np.concatenate([candidates, extra])
    position = np.empty(num_items, np.int32)
    position[items] = np.arange(len(items))
    return Pool(items=items, num_candidates=len(candidates), is_candidate=is_candidate, position=position)


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
