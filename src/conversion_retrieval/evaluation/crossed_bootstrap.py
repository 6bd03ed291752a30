"""Intervals for a mean over training seeds and users, both of which are samples.

Users and seeds are crossed: every seed's model answers every user. Resampling only users would hide how much a result
depends on the initialisation; resampling only seeds would hide how much it depends on who is in the test set. Both
indices are resampled independently (the pigeonhole bootstrap of Owen, 2007), which errs on the wide side.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its percentile interval."""

    value: float
    low: float
    high: float


def crossed_recalls(
    hits: NDArray[np.float64], positives: NDArray[np.float64], *, num_resamples: int, seed: int
) -> NDArray[np.float64]:
    """Micro recalls, averaged over seeds, of ``num_resamples`` crossed resamples: [R].

    ``hits`` [S, U] counts each user's positives found by each seed's model, ``positives`` [U] all of them. The same
    ``seed`` draws the same users and seed positions for every variant, which makes differences paired.
    """
    generator = np.random.default_rng(seed)
    num_seeds, num_users = hits.shape
    recalls = []
    for start in range(0, num_resamples, BLOCK):
        size = min(BLOCK, num_resamples - start)
        users = generator.multinomial(num_users, np.full(num_users, 1 / num_users), size=size).astype(np.float64)
        seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=size) / num_seeds
        per_seed = (users @ hits.T) / np.maximum(users @ positives, 1)[:, None]
        recalls.append((per_seed * seeds).sum(axis=1))
    return np.concatenate(recalls)


def percentile_interval(value: float, resamples: NDArray[np.float64], *, confidence_level: float) -> Interval:
    """The central ``confidence_level`` of the resampled values around an estimate."""
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(resamples, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high))
