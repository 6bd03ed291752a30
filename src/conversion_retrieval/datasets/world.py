"""The latent state of a synthetic world: tastes, segments, advertisers and the true probabilities they give.

Every logit is a dot product of query factors and item factors plus an item bias, so a two-tower model can be perfect;
what it has to find is in the factors. The items' side of the segment part is one random vector for each *pair* of
category and price tier, the users' side one for each *pair* of age band and region: neither is a sum of its parts, so
both towers need feature crosses.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

from conversion_retrieval.datasets.config import SyntheticConfig

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

DAY_US: Final = 86_400_000_000
CROSS_DIM: Final = 4
_SEASON_DAYS: Final = 45.0
# Weight of the user's own taste beside the context's, by surface.
_USER_WEIGHT: Final = np.array([1.0, 0.5, 0.4])
# What clicks, purchases and the logging policy make of the three parts of the factors: taste, segment, season.
_CLICK_WEIGHTS: Final = (0.8, 0.3, 1.0)
_CONVERSION_WEIGHTS: Final = (1.0, 1.0, 1.0)
_POLICY_WEIGHTS: Final = (0.7, 0.2, 1.0)


@dataclass(frozen=True, kw_only=True)
class World:
    """Arrays over U users, N items, A advertisers and K clusters (category x price tier); F factors, D tastes."""

    item_factors: Floats  # [N, F]
    item_click_bias: Floats  # [N]
    item_conversion_bias: Floats  # [N]
    item_checkout_rate: Floats  # [N] checkouts per cart
    item_reporting_rate: Floats  # [N] of its advertiser
    item_wrong_rate: Floats  # [N] share of reports that name the sibling instead
    item_sibling: Integers  # [N] an item of the same advertiser, launched no later
    item_cluster: Integers  # [N]
    item_advertiser: Integers  # [N]
    item_launch: Integers  # [N] microseconds since the epoch
    item_price: Floats  # [N]
    item_popularity: Floats  # [N] how much the logging policy shows of it
    item_trend: Floats  # [N, 2] period in days, phase
    cluster_factors: Floats  # [K, F]
    user_taste: Floats  # [U, 2, D] start and the direction it drifts to, orthonormal
    user_drift: Floats  # [U] radians over the whole time
    user_segment: Integers  # [U]
    user_age_band: Integers  # [U]
    user_region: Integers  # [U]
    user_activity: Floats  # [U] requests a day
    segment_factors: Floats  # [segments, R]
    embedding_basis: Floats  # [D, E] orthonormal rows: from a taste to the text embedding space
    strengths: Floats  # [F] logits for one unit of each factor

    def save(self, directory: Path) -> None:
        """Write every array as ``<name>.npy``."""
        directory.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            np.save(directory / f"{field.name}.npy", getattr(self, field.name), allow_pickle=False)

    @classmethod
    def load(cls, directory: Path) -> "World":
        """Read what ``save`` wrote; ``OSError`` or ``ValueError`` if a file is missing or broken."""
        return cls(**{f.name: np.load(directory / f"{f.name}.npy", allow_pickle=False) for f in fields(cls)})

    def item_taste(self, items: Integers) -> Floats:
        """The taste part of the items' factors, [n, D]."""
        return self.item_factors[items, : self.user_taste.shape[2]]

    def query_factors(
        self, config: SyntheticConfig, users: Integers, times: Integers, surfaces: Integers, context: Floats
    ) -> Floats:
        """Factors [Q, F] of queries; ``surfaces`` index ``DEFAULT_SURFACES``, ``context`` [Q, D] is zero at home."""
        passed = (times - config.start_us) / (config.end_us - config.start_us)
        angle = (self.user_drift[users] * passed)[:, None]
        taste = np.cos(angle) * self.user_taste[users, 0] + np.sin(angle) * self.user_taste[users, 1]
        own = _USER_WEIGHT[surfaces][:, None]
        season = 2 * np.pi * (times - config.start_us) / DAY_US / _SEASON_DAYS
        return np.hstack(
            [
                normalised(own * taste + context),
                self.segment_factors[self.user_segment[users]],
                np.cos(season)[:, None],
                np.sin(season)[:, None],
            ]
        )

    def weighted(self, queries: Floats, weights: tuple[float, float, float]) -> Floats:
        """Query factors [Q, F] scaled so that their dot product with item factors is in logits."""
        taste_dim = self.user_taste.shape[2]
        parts = np.repeat(weights, [taste_dim, CROSS_DIM, 2])
        scaled: Floats = queries * (self.strengths * parts)
        return scaled

    def policy_logits(self, queries: Floats) -> Floats:
        """What the logging policy, an engagement model that sees clusters only, thinks of them: [Q, K]."""
        logits: Floats = self.weighted(queries, _POLICY_WEIGHTS) @ self.cluster_factors.T
        return logits

    def click_probability(self, queries: Floats, items: Integers) -> Floats:
        """Probability [n] that the query with factors ``queries`` [n, F] clicks on item ``items`` [n] and means it."""
        return expit(self._pairs(queries, items, _CLICK_WEIGHTS) + self.item_click_bias[items])

    def purchase_probability(self, queries: Floats, items: Integers) -> Floats:
        """Probability [n] that a click that was meant ends in the cart."""
        return expit(self._pairs(queries, items, _CONVERSION_WEIGHTS) + self.item_conversion_bias[items])

    def _pairs(self, queries: Floats, items: Integers, weights: tuple[float, float, float]) -> Floats:
        products: Floats = np.einsum("qf,qf->q", self.weighted(queries, weights), self.item_factors[items])
        return products

    def click_probabilities(self, queries: Floats) -> Floats:
        """``click_probability`` of every item, [Q, N]."""
        return expit(self.weighted(queries, _CLICK_WEIGHTS) @ self.item_factors.T + self.item_click_bias)

    def purchase_probabilities(self, queries: Floats) -> Floats:
        """``purchase_probability`` of every item, [Q, N]."""
        return expit(self.weighted(queries, _CONVERSION_WEIGHTS) @ self.item_factors.T + self.item_conversion_bias)

    def recorded_share(self) -> Floats:
        """Probability [N] that something put in the cart is reported, as cart or checkout, under its own item."""
        named = self.item_reporting_rate * (1 - self.item_wrong_rate)
        return 1 - (1 - named) * (1 - named * self.item_checkout_rate)


def normalised(vectors: Floats) -> Floats:
    """Rows scaled to length one; zero rows stay zero."""
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def bias_for_mean(probabilities: Floats, mean: float, weights: Floats | None = None) -> float:
    """The number that, added to the logits of ``probabilities``, makes their weighted mean ``mean``."""
    if not 0 < mean < 1:
        return 50.0 if mean >= 1 else -50.0
    logits = logit(probabilities)
    return float(brentq(lambda bias: float(np.average(expit(logits + bias), weights=weights)) - mean, -60, 60))
