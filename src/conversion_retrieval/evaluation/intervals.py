"""Percentile bootstrap intervals of ratios of sums, resampled over users.

Every metric here is such a ratio (hits over positives, a sum over queries over their number), and a user's queries are
not independent, so whole users are drawn with replacement. A resample is then a vector of how often each user was
drawn, and all metrics of all slices follow from one matrix product with the per-user sums. This is the percentile
bootstrap of ``scipy.stats.bootstrap``, which gathers the data anew for every statistic and would take minutes here.
The same seed draws the same users: replicates of two models are paired.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK_CELLS: Final = 16_000_000  # counts multiplied at a time: 64 MB


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """M ratios [M], NaN where the denominator is zero, and bounds of their intervals [M], NaN for one user too."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class UserBootstrap:
    """Draws the users ``num_resamples`` times."""

    num_users: int
    num_resamples: int = 1000
    confidence_level: float = 0.95
    seed: int = 0

    def intervals(self, numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> Intervals:
        """Intervals of sum(numerator) / sum(denominator) for each column of the per-user sums, both [U, M]."""
        replicates = self.replicates(numerators, denominators)
        tail = (1 - self.confidence_level) / 2
        low, high = _quantiles(replicates, tail), _quantiles(replicates, 1 - tail)
        return Intervals(value=ratios(numerators.sum(0), denominators.sum(0)), low=low, high=high)

    def replicates(self, numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> NDArray[np.float64]:
        """The ratios in every resample, [num_resamples, M]; NaN where a resample drew nobody who counts.

        NaN also throughout a column in which one user alone counts: resamples that cannot differ would bound it by
        itself.
        """
        num_columns = numerators.shape[1]
        totals = np.hstack([numerators, denominators]).astype(np.float32)
        sums = np.vstack([counts.astype(np.float32) @ totals for counts in self._blocks()]).astype(np.float64)
        found = ratios(sums[:, :num_columns], sums[:, num_columns:])
        found[:, np.count_nonzero(denominators, axis=0) < 2] = np.nan
        return found

    @cached_property
    def counts(self) -> NDArray[np.uint8]:
        """How often each resample drew each user, [num_resamples, U]; a count beyond 255 has no chance to occur."""
        rng = np.random.default_rng(self.seed)
        counts = np.empty((self.num_resamples, self.num_users), np.uint8)
        for row in counts:
            row[:] = np.bincount(rng.integers(self.num_users, size=self.num_users), minlength=self.num_users)
        return counts

    def _blocks(self) -> Iterator[NDArray[np.uint8]]:
        rows = max(1, BLOCK_CELLS // max(self.num_users, 1))
        for start in range(0, self.num_resamples, rows):
            yield self.counts[start : start + rows]


def sum_by_user(values: NDArray[np.float64], users: NDArray[np.integer], num_users: int) -> NDArray[np.float64]:
    """Sums [num_users, M] of the rows of ``values`` [n, M], whose users are ``users`` [n]."""
    columns = [np.bincount(users, weights=column, minlength=num_users) for column in values.T]
    return np.stack(columns, axis=1) if columns else np.zeros((num_users, 0))


def ratios(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> NDArray[np.float64]:
    """Elementwise quotients; NaN where the denominator is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominators > 0, numerators / denominators, np.nan)


def _quantiles(replicates: NDArray[np.float64], at: float) -> NDArray[np.float64]:
    """Quantiles [M] over the finite replicates of each column, NaN where there is none."""
    found = np.full(replicates.shape[1], np.nan)
    measured = np.isfinite(replicates).any(0)
    found[measured] = np.nanquantile(replicates[:, measured], at, axis=0)
    return found
