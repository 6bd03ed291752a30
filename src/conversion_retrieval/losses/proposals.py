"""The right Q for each pool: how likely a candidate is to be among the negatives that a query sees.

The negatives are a *set*, the union of what the pools drew. With the probability pi_j that item j is in it,
``sum_j exp(s_j) / pi_j`` over the set is an unbiased estimate of the full softmax's denominator (Horvitz and Thompson
1952), whichever pools could have drawn j. So logQ is log pi of the union, and a query's own positive, which is always
there, has pi = 1: correcting it too would bias the estimate.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln


def in_batch_inclusion(counts: NDArray[np.integer], num_queries: int, batch_size: int) -> NDArray[np.float64]:
    """Probability that an item is a positive of another query of the batch, [C].

    ``counts`` [C] of the ``num_queries`` queries that batches are drawn from have the item as a positive. The other
    ``batch_size - 1`` queries are a random subset of the remaining ``num_queries - 1``, without replacement; so
    the probability that none of them has the item is hypergeometric.
    """
    others, drawn = num_queries - 1, batch_size - 1
    without = np.maximum(others - np.asarray(counts, np.float64), 0)
    possible = without >= drawn
    without = np.where(possible, without, drawn)
    log_none = _log_choose(without, drawn) - _log_choose(np.float64(others), drawn)
    return np.where(possible, -np.expm1(np.minimum(log_none, 0)), 1.0)


def _log_choose(n: NDArray[np.float64] | np.float64, k: int) -> NDArray[np.float64]:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def uniform_inclusion(shares: NDArray[np.float64] | float, draws: int) -> NDArray[np.float64]:
    """Probability of at least one hit in ``draws`` draws with replacement, each hitting with probability ``shares``."""
    return np.asarray(-np.expm1(draws * np.log1p(-np.minimum(np.asarray(shares, np.float64), 1 - 1e-12))))


def union_inclusion(*pools: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of being drawn by at least one of independent pools."""
    missed = np.ones(())
    for pool in pools:
        missed = missed * (1 - pool)
    return np.asarray(1 - missed)
