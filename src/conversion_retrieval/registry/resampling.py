"""Bootstrap intervals of micro-averaged recalls and their paired differences, resampled by user.

Conversions of one user are not independent, so whole users are drawn. All quantities of a decision share their
resamples: differences stay paired, and simultaneous bounds over slices come from the same draws.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.evaluation.intervals import UserBootstrap, ratios, sum_by_user


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """M ratios: ``values`` [M] and their bootstrap ``replicates`` [R, M]; NaN where nothing was observed.

    Replicates are NaN also where one user alone was: such a ratio has no interval.
    """

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

    The draws are the evaluation's: ``UserBootstrap``.
    """
    _, codes = np.unique(users, return_inverse=True)
    bootstrap = UserBootstrap(num_users=int(codes.max(initial=-1)) + 1, num_resamples=num_resamples, seed=seed)
    hits, positives = (sum_by_user(values, codes, bootstrap.num_users) for values in (numerators, denominators))
    return Estimates(values=ratios(hits.sum(0), positives.sum(0)), replicates=bootstrap.replicates(hits, positives))
