"""The logging policy of a synthetic world: which items a request is shown, and how probable that was."""

import numpy as np
from scipy.special import softmax

from conversion_retrieval.datasets.config import SyntheticConfig
from conversion_retrieval.datasets.world import DAY_US, Floats, Integers, World

_NOVELTY_DAYS = 10.0


class LoggingPolicy:
    """Chooses a cluster by its own, engagement-based score, then an item of it by popularity; slot by slot.

    Popularities drift and new items enter when the policy is refreshed. Two levels keep a request cheap in a large
    catalogue, and leave the probability of every item exact.
    """

    def __init__(self, world: World, config: SyntheticConfig) -> None:
        self._world, self._config = world, config
        self._order = np.argsort(world.item_cluster, kind="stable")
        num_clusters = len(world.cluster_factors)
        self._bounds = np.searchsorted(world.item_cluster[self._order], np.arange(num_clusters + 1))
        num_periods = -(-config.num_days // config.policy_refresh_days)
        weights = np.stack([self._popularity(period) for period in range(num_periods)])
        self._weights = weights
        # One rising sequence over all periods and items, so that one binary search serves requests of any time.
        self._cumulative = np.concatenate([[0.0], np.cumsum(weights[:, self._order])])
        starts = np.arange(num_periods)[:, None] * len(self._order) + self._bounds
        self._cluster_starts = starts
        self._cluster_weights = np.diff(self._cumulative[starts], axis=1)

    def _popularity(self, period: int) -> Floats:
        """Weights [N] of the items in a period; 0 for those that are not launched."""
        world = self._world
        now = self._config.start_us + period * self._config.policy_refresh_days * DAY_US
        age = (now - world.item_launch) / DAY_US
        novelty = np.exp(-np.maximum(age, 0) / _NOVELTY_DAYS) * (world.item_launch > self._config.start_us)
        trend = np.sin(2 * np.pi * (now / DAY_US / world.item_trend[:, 0] + world.item_trend[:, 1]))
        shown: Floats = np.where(age >= 0, world.item_popularity * np.exp(0.8 * novelty + 0.5 * trend), 0.0)
        return shown

    def period(self, times: Integers) -> Integers:
        """The refresh period of each time, the first or last for times outside the world's."""
        days = (times - self._config.start_us) // (self._config.policy_refresh_days * DAY_US)
        periods: Integers = np.clip(days, 0, len(self._weights) - 1)
        return periods

    def cluster_probabilities(self, queries: Floats, times: Integers) -> Floats:
        """Probability [Q, K] of each cluster in a slot."""
        weights = self._cluster_weights[self.period(times)]
        share = weights / weights.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            personal = softmax(self._world.policy_logits(queries) + np.log(share), axis=1)
        explored = self._config.exploration_share
        mixed: Floats = (1 - explored) * personal + explored * share
        return mixed

    def sample(self, rng: np.random.Generator, queries: Floats, times: Integers, slots: int) -> Integers:
        """Items [Q, slots], independent from slot to slot."""
        clusters = _draw_columns(rng, self.cluster_probabilities(queries, times), slots)
        starts = self._cluster_starts[self.period(times)]
        low = self._cumulative[np.take_along_axis(starts[:, :-1], clusters, axis=1)]
        high = self._cumulative[np.take_along_axis(starts[:, 1:], clusters, axis=1)]
        drawn = np.minimum(low + rng.random(low.shape) * (high - low), np.nextafter(high, 0))
        found = np.searchsorted(self._cumulative, drawn, side="right") - 1
        items: Integers = self._order[found % len(self._order)]
        return items

    def probabilities(self, queries: Floats, times: Integers) -> Floats:
        """Probability [Q, N] that one slot holds each item."""
        period, cluster = self.period(times), self._world.item_cluster
        by_cluster = self.cluster_probabilities(queries, times) / np.maximum(self._cluster_weights[period], 1e-300)
        items: Floats = by_cluster[:, cluster] * self._weights[period]
        return items

    def shown_probabilities(self, queries: Floats, times: Integers) -> Floats:
        """Probability [Q, N] that a request shows each item: repeats within a request are left out."""
        never = np.log1p(-np.minimum(self.probabilities(queries, times), 1 - 1e-12))
        shown: Floats = -np.expm1(self._config.slots_per_request * never)
        return shown


def _draw_columns(rng: np.random.Generator, probabilities: Floats, draws: int) -> Integers:
    """Column numbers [rows, draws], drawn by each row's probabilities."""
    rows, columns = probabilities.shape
    cumulative = np.cumsum(probabilities, axis=1)
    # Rows laid end to end: one binary search for all.
    flat = (cumulative / cumulative[:, -1:] + np.arange(rows)[:, None]).ravel()
    # Short of 1, where rounding could fall into a last column of probability 0.
    drawn = np.arange(rows)[:, None] + rng.random((rows, draws)) * (1 - 1e-9)
    found: Integers = np.searchsorted(flat, drawn, side="right") - columns * np.arange(rows)[:, None]
    return found
