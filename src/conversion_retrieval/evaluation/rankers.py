"""What a baseline is: scores of every item for some queries, from item statistics and the users' own histories."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.evaluation.events import EventLog, Windows, affinities, recency_affinities
from conversion_retrieval.evaluation.ranking import ScoreBlock

Parameters = dict[str, float]


class Ranker(Protocol):
    """A fitted baseline at one setting of its parameters."""

    @property
    def parameters(self) -> Parameters:
        """The setting, for the record."""

    def score_block(self, windows: Windows) -> ScoreBlock:
        """A scorer of the queries whose histories are ``windows``."""


Fit = Callable[[EventLog, int, EvaluationConfig], Sequence[Ranker]]
"""Fit on the events known strictly before a time: one ranker a setting, always in the same order."""


@dataclass(frozen=True, kw_only=True)
class BackedOffRanker:
    """Items by a personal score where it is positive, all others after them by popularity.

    ``base`` [N] float32 is minus the popularity rank, so any positive score comes first; ``personal`` gives the scores
    of some windows as a sparse [B, N] matrix, or is None.
    """

    parameters: Parameters
    base: NDArray[np.float32]
    personal: Callable[[Windows], sparse.csr_array] | None = None

    def score_block(self, windows: Windows) -> ScoreBlock:
        """A scorer of the queries whose histories are ``windows``."""

        def score(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            if self.personal is None:
                return np.tile(self.base, (len(rows), 1))
            scores = self.personal(windows.rows(rows)).astype(np.float32).toarray()
            np.copyto(scores, self.base, where=scores <= 0)
            return scores

        return score


def popularity_order(log: EventLog, before: int, *, half_life_days: float = np.inf) -> NDArray[np.float32]:
    """Minus the popularity rank of every item, [N] float32, by the number of users who converted on it.

    A user counts 2^(-age of the newest conversion / half-life); equally popular items rank by their row.
    """
    popularity = recency_affinities(log, log.users_before(before), half_life_days=half_life_days).sum(axis=0)
    base = np.empty(log.num_items, np.float32)
    base[np.argsort(-np.asarray(popularity).ravel(), kind="stable")] = -np.arange(log.num_items)
    return base


def user_items(log: EventLog, before: int, config: EvaluationConfig) -> sparse.csr_array:
    """Which items each user acted on before a time, [U, N] of ones."""
    return window_items(log, log.users_before(before), config)


def window_items(log: EventLog, windows: Windows, config: EvaluationConfig) -> sparse.csr_array:
    """Which items occur among the newest events of each window, [R, N] of ones."""
    matrix = affinities(log, windows.newest(config.max_events_per_user))
    matrix.data[:] = 1
    return matrix
