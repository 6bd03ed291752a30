"""Bootstrap intervals of micro-averaged recalls and their paired differences, resampled by user.

Conversions of one user are not independent, so whole users are drawn. All quantities of a decision share their
resamples: differences stay paired, and simultaneous bounds over slices come from the same draws.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK_CELLS: Final = 4_000_000  # weights drawn at a time: 32 MB


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """M ratios: ``values`` [M] and their bootstrap ``replicates`` [R, M]; NaN where nothing was observed."""

    values: NDArray[np.float64]
    replicates: NDArray[np.float64]

    def interval(self, column: int, level: float) -> tuple[float, float]:
        """The percentile interval of one ratio."""
        replicates = self.replicates[:, column]
        finite = replicates[np.isfinite(replicates)]
        if not np.isfinite(self.values[column]) or not len(finite):
            return np.nan, np.nan
        tail = (1 - level) / 2
        low, high = np.quantile(finite, [tail, 1 - tail])
        return float(low), float(high)

    def simultaneous(self, columns: list[int], level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds that hold for all ``columns`` at once with probability ``level``.

        The single-step max-t method of Westfall and Young (1993): the half width is the standard error times the
        ``level`` quantile of the largest standardised deviation over the columns. It widens with the number of
        slices as far as these are independent, and no further.
        """
        values, replicates = self.values[columns], self.replicates[:, columns]
        replicates = replicates[np.isfinite(replicates).all(axis=1)]
        if not len(replicates):
            return np.full(len(columns), np.nan), np.full(len(columns), np.nan)
        errors = replicates.std(axis=0)
        deviations = np.abs(replicates - values) / np.where(errors > 0, errors, np.inf)
        critical = np.quantile(deviations.max(axis=1), level)
        return values - critical * errors, values + critical * errors


def bootstrap_ratios(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64],
    users: NDArray[np.int64],
    *,
    num_resamples: int,
    seed: int,
) -> Estimates:
    """Estimate sum(numerator) / sum(denominator) for each column of [n, M], resampling the users of the n rows.

    Each user is drawn a Poisson(1) number of times, the large-sample form of drawing users with replacement
    (Chamandy et al., "Estimating uncertainty for massive data streams", 2012); it needs no index gathering.
    """
    num_columns = numerators.shape[1]
    totals = _sum_by_user(np.hstack([numerators, denominators]), users)
    blocks = [weights @ totals for weights in _poisson_blocks(len(totals), num_resamples, seed)]
    sums = np.vstack([totals.sum(axis=0, keepdims=True), *blocks])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = sums[:, :num_columns] / sums[:, num_columns:]
    return Estimates(values=ratios[0], replicates=ratios[1:])


def _sum_by_user(values: NDArray[np.float64], users: NDArray[np.int64]) -> NDArray[np.float64]:
    _, codes = np.unique(users, return_inverse=True)
    num_users = int(codes.max()) + 1 if len(codes) else 0
    columns = [np.bincount(codes, weights=column, minlength=num_users) for column in values.T]
    return np.stack(columns, axis=1) if columns else np.zeros((num_users, 0))


def _poisson_blocks(num_users: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK_CELLS // max(num_users, 1))
    for start in range(0, num_resamples, rows):
        yield rng.poisson(1.0, (min(rows, num_resamples - start), num_users)).astype(np.float64)
