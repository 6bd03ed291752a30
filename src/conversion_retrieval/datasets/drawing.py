"""Drawing a world from its seed: items and advertisers, users and segments."""

from typing import Any

import numpy as np
from scipy.special import expit, logit

from conversion_retrieval.datasets.config import SyntheticConfig
from conversion_retrieval.datasets.world import CROSS_DIM, DAY_US, Floats, Integers, World, normalised

NUM_AGE_BANDS = 6
NUM_REGIONS = 8


def draw_world(config: SyntheticConfig) -> World:
    """The world of a seed."""
    rng = np.random.default_rng([config.seed, 0])
    centres = normalised(rng.normal(size=(config.num_categories, config.taste_dim)))
    cross = rng.normal(size=(config.num_categories * config.num_price_tiers, CROSS_DIM))
    season = rng.normal(size=(config.num_categories, 2)) / np.sqrt(2)
    items = _draw_items(rng, config, centres, cross, season)
    users = _draw_users(rng, config, centres)
    basis = np.linalg.qr(rng.normal(size=(config.embedding_dim, config.taste_dim)))[0].T
    strengths = np.concatenate(
        [
            np.full(config.taste_dim, config.taste_strength * np.sqrt(config.taste_dim)),
            np.full(CROSS_DIM, config.cross_strength / np.sqrt(CROSS_DIM)),
            np.full(2, config.season_strength),
        ]
    )
    return World(**items, **users, embedding_basis=basis, strengths=strengths)


def _draw_items(
    rng: np.random.Generator, config: SyntheticConfig, centres: Floats, cross: Floats, season: Floats
) -> dict[str, Any]:
    advertiser = _draw_advertisers(rng, config)
    category = _draw_categories(rng, config, advertiser)
    tier = _draw_tiers(rng, config, advertiser)
    cluster = category * config.num_price_tiers + tier
    style = rng.normal(size=(config.advertisers, config.taste_dim)) / np.sqrt(config.taste_dim)
    own = rng.normal(size=(config.num_items, config.taste_dim)) / np.sqrt(config.taste_dim)
    factors = np.hstack(
        [normalised(centres[category] + 0.4 * style[advertiser] + 0.7 * own), cross[cluster], season[category]]
    )
    quality = rng.normal(size=config.advertisers) * config.advertiser_strength
    clickbait = rng.normal(size=config.num_items) * config.clickbait_strength
    noise = rng.normal(size=config.num_items) * config.item_strength
    launch = _draw_launches(rng, config)
    sibling = _siblings(advertiser, launch)
    return {
        "item_factors": factors,
        "item_click_bias": clickbait,
        "item_conversion_bias": quality[advertiser] + noise - clickbait,
        "item_checkout_rate": expit(logit(config.checkout_rate) + 0.5 * rng.normal(size=config.num_items)),
        "item_reporting_rate": _draw_reporting(rng, config)[advertiser],
        "item_wrong_rate": np.where(sibling == np.arange(config.num_items), 0.0, config.wrong_item_rate),
        "item_sibling": sibling,
        "item_cluster": cluster,
        "item_advertiser": advertiser,
        "item_launch": launch,
        "item_price": _draw_prices(rng, config, category, tier),
        "item_popularity": rng.lognormal(0, 0.8, config.num_items),
        "item_trend": np.column_stack([rng.uniform(30, 90, config.num_items), rng.uniform(0, 1, config.num_items)]),
        "cluster_factors": _cluster_means(factors, cluster, len(cross)),
    }


def _draw_advertisers(rng: np.random.Generator, config: SyntheticConfig) -> Integers:
    """Every advertiser one item, the rest by a power law."""
    sizes = np.arange(1.0, config.advertisers + 1) ** -config.advertiser_size_exponent
    rest = rng.choice(config.advertisers, config.num_items - config.advertisers, p=sizes / sizes.sum())
    return rng.permutation(np.concatenate([np.arange(config.advertisers), rest])).astype(np.int64)


def _draw_categories(rng: np.random.Generator, config: SyntheticConfig, advertiser: Integers) -> Integers:
    """An advertiser sells in two categories, and now and then elsewhere."""
    homes = rng.integers(config.num_categories, size=(config.advertisers, 2))
    chosen = homes[advertiser, rng.integers(2, size=len(advertiser))]
    elsewhere = rng.integers(config.num_categories, size=len(advertiser))
    return np.where(rng.random(len(advertiser)) < 0.1, elsewhere, chosen)


def _draw_tiers(rng: np.random.Generator, config: SyntheticConfig, advertiser: Integers) -> Integers:
    usual = rng.uniform(0, config.num_price_tiers, config.advertisers)[advertiser]
    return np.clip(usual + rng.normal(0, 0.8, len(advertiser)), 0, config.num_price_tiers - 1).astype(np.int64)


def _draw_prices(rng: np.random.Generator, config: SyntheticConfig, category: Integers, tier: Integers) -> Floats:
    level = rng.normal(3, 0.8, config.num_categories)[category] + 0.6 * tier
    prices: Floats = np.exp(level + rng.uniform(-0.25, 0.25, len(category)))
    return prices.round(2)


def _draw_launches(rng: np.random.Generator, config: SyntheticConfig) -> Integers:
    """A share of the items enters over time, uniformly; at least one is there from the beginning."""
    num_cold = min(int(config.cold_item_share * config.num_items), config.num_items - 1)
    launch = np.full(config.num_items, config.start_us)
    cold = rng.choice(config.num_items, num_cold, replace=False)
    launch[cold] += rng.integers(0, config.num_days * DAY_US, num_cold)
    return launch


def _draw_reporting(rng: np.random.Generator, config: SyntheticConfig) -> Floats:
    return expit(logit(config.reporting_rate) + 0.8 * rng.normal(size=config.advertisers))


def _siblings(advertiser: Integers, launch: Integers) -> Integers:
    """The item of the same advertiser that was launched just before, the item itself where there is none."""
    order = np.lexsort((launch, advertiser))
    same = advertiser[order[1:]] == advertiser[order[:-1]]
    sibling = np.arange(len(advertiser))
    sibling[order[1:][same]] = order[:-1][same]
    return sibling


def _cluster_means(factors: Floats, cluster: Integers, num_clusters: int) -> Floats:
    total = np.zeros((num_clusters, factors.shape[1]))
    np.add.at(total, cluster, factors)
    counts: Floats = np.maximum(np.bincount(cluster, minlength=num_clusters), 1)[:, None]
    return total / counts


def _draw_users(rng: np.random.Generator, config: SyntheticConfig, centres: Floats) -> dict[str, Any]:
    segment_of = rng.integers(config.num_segments, size=(NUM_AGE_BANDS, NUM_REGIONS))
    age_band = rng.integers(NUM_AGE_BANDS, size=config.num_users)
    region = rng.integers(NUM_REGIONS, size=config.num_users)
    liked = centres[rng.integers(config.num_categories, size=(config.num_users, 2))]
    own = rng.normal(size=(config.num_users, 2, config.taste_dim)) / np.sqrt(config.taste_dim)
    start = normalised(liked[:, 0] + 0.5 * liked[:, 1] + 0.6 * own[:, 0])
    direction = own[:, 1] - np.einsum("ud,ud->u", own[:, 1], start)[:, None] * start
    return {
        "user_taste": np.stack([start, normalised(direction)], axis=1),
        "user_drift": np.radians(config.taste_drift_degrees) * rng.uniform(0, 2, config.num_users),
        "user_segment": segment_of[age_band, region],
        "user_age_band": age_band,
        "user_region": region,
        "user_activity": config.requests_per_user_day * rng.lognormal(-0.32, 0.8, config.num_users),
        "segment_factors": rng.normal(size=(config.num_segments, CROSS_DIM)),
    }
