"""A world with everything that public data sets lack, and whose true purchase probabilities are known.

Requests on three surfaces are shown items by a logging policy; users click (sometimes by accident), save, put in the
cart and buy, later and elsewhere; advertisers report some of it, later still, and sometimes for the wrong item.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from conversion_retrieval.datasets.config import SyntheticConfig
from conversion_retrieval.datasets.drawing import draw_world
from conversion_retrieval.datasets.policy import LoggingPolicy
from conversion_retrieval.datasets.responses import CART, HOUR_US, IMPRESSION, SECOND_US, draw_events, recorded
from conversion_retrieval.datasets.tables import (
    EVENTS_SCHEMA,
    TRUTH,
    TRUTH_CONFIG,
    embedding_column,
    new_directory,
    numbered_ids,
    write_table,
)
from conversion_retrieval.datasets.world import DAY_US, Floats, Integers, World, bias_for_mean, normalised
from conversion_retrieval.progress import track
from conversion_retrieval.schema import DEFAULT_SURFACES, EVENT_TYPES, TIMESTAMP

__all__ = ["SyntheticConfig", "generate"]

_PILOT_REQUESTS = 2_000
_ID_DIGITS = 8


@dataclass(frozen=True, kw_only=True)
class _Requests:
    """Q requests: who, when, where, wanting what; ``hidden`` ones happen elsewhere."""

    user: Integers
    time: Integers
    surface: Integers
    hidden: NDArray[np.bool_]
    context_item: Integers  # -1 none
    context: Floats  # [Q, D] wanted taste, zeros on the home feed
    factors: Floats  # [Q, F]


def generate(output_dir: Path, config: SyntheticConfig) -> None:
    """Write ``events/part-*.parquet``, ``items.parquet``, ``users.parquet`` and ``truth/`` into ``output_dir``.

    Equal configurations give equal bytes. Memory is bounded by one part (``users_per_part`` users). An existing
    directory is replaced, only once everything is written.
    """
    world = _calibrated(draw_world(config), config)
    policy = LoggingPolicy(world, config)
    with new_directory(output_dir) as directory:
        write_table(_items_table(world, config), directory / "items.parquet")
        write_table(_users_table(world, config), directory / "users.parquet")
        world.save(directory / TRUTH / "world")
        (directory / TRUTH_CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n")
        num_parts = -(-config.num_users // config.users_per_part)
        for part in track(range(num_parts), "generating events", unit="parts"):
            _write_part(directory, part, world, policy, config)


def _calibrated(world: World, config: SyntheticConfig) -> World:
    """The world with biases such that the configured rates hold for what the policy shows."""
    rng = np.random.default_rng([config.seed, 1])
    users = rng.integers(config.num_users, size=_PILOT_REQUESTS)
    policy = LoggingPolicy(world, config)
    requests = _draw_requests(rng, world, policy, config, users)
    items = policy.sample(rng, requests.factors, requests.time, 4).ravel()
    factors = np.repeat(requests.factors, 4, axis=0)
    bias = bias_for_mean(world.click_probability(factors, items), config.click_rate)
    world = replace(world, item_click_bias=world.item_click_bias + bias)
    clicks = world.click_probability(factors, items)
    bias = bias_for_mean(world.purchase_probability(factors, items), config.cart_rate, clicks)
    return replace(world, item_conversion_bias=world.item_conversion_bias + bias)


def _write_part(directory: Path, part: int, world: World, policy: LoggingPolicy, config: SyntheticConfig) -> None:
    rng = np.random.default_rng([config.seed, 2, part])
    first = part * config.users_per_part
    members = np.arange(first, min(first + config.users_per_part, config.num_users))
    users = np.repeat(members, rng.poisson(world.user_activity[members] * config.num_days))
    requests = _draw_requests(rng, world, policy, config, users)
    exposures = _draw_exposures(rng, world, policy, config, requests)
    events = recorded(draw_events(rng, world, config, exposures), exposures, config)
    ids = numbered_ids(f"e{part:05d}-", np.arange(len(events)), _ID_DIGITS)
    name = f"part-{part:05d}.parquet"
    write_table(_events_table(ids, events, exposures, requests, world), directory / "events" / name)
    impressions, conversions = _truth_tables(ids, events, exposures, world, config)
    write_table(impressions, directory / TRUTH / "impressions" / name)
    write_table(conversions, directory / TRUTH / "conversions" / name)


def _draw_requests(
    rng: np.random.Generator, world: World, policy: LoggingPolicy, config: SyntheticConfig, users: Integers
) -> _Requests:
    time = _draw_times(rng, config, len(users))
    surface = rng.choice(len(DEFAULT_SURFACES), len(users), p=config.surface_shares)
    no_context = np.zeros((len(users), config.taste_dim))
    at_home = world.query_factors(config, users, time, np.zeros_like(surface), no_context)
    subject = policy.sample(rng, at_home, time, 1)[:, 0]
    noise = rng.normal(size=no_context.shape) / np.sqrt(config.taste_dim)
    searched = normalised(world.item_taste(subject) + 0.5 * noise)
    wanted = np.where((surface == 1)[:, None], world.item_taste(subject), searched)
    context = np.where((surface == 0)[:, None], no_context, wanted)
    return _Requests(
        user=users,
        time=time,
        surface=surface,
        hidden=rng.random(len(users)) < config.organic_share,
        context_item=np.where(surface == 1, subject, -1),
        context=context,
        factors=world.query_factors(config, users, time, surface, context),
    )


def _draw_times(rng: np.random.Generator, config: SyntheticConfig, count: int) -> Integers:
    """More in the evening than at night."""
    day = rng.integers(config.num_days, size=count)
    hour = np.where(rng.random(count) < 0.7, rng.normal(19, 3, count), rng.uniform(0, 24, count)) % 24
    return config.start_us + day * DAY_US + np.minimum((hour * HOUR_US).astype(np.int64), DAY_US - 1)


def _draw_exposures(
    rng: np.random.Generator, world: World, policy: LoggingPolicy, config: SyntheticConfig, requests: _Requests
) -> pd.DataFrame:
    """What the requests were shown, a row an item, with its true probabilities."""
    shown = policy.sample(rng, requests.factors, requests.time, config.slots_per_request)
    request, slot = (axis.ravel() for axis in np.indices(shown.shape))
    frame = pd.DataFrame(
        {"request": request, "item": shown.ravel(), "time": requests.time[request] + 2 * SECOND_US * slot}
    )
    frame = frame[~frame.duplicated(["request", "item"])].reset_index(drop=True)
    request, item = frame["request"].to_numpy(), frame["item"].to_numpy()
    frame["hidden"] = requests.hidden[request]
    frame["click_probability"] = world.click_probability(requests.factors[request], item)
    frame["purchase_probability"] = world.purchase_probability(requests.factors[request], item)
    return frame


def _events_table(
    ids: pa.Array, events: pd.DataFrame, exposures: pd.DataFrame, requests: _Requests, world: World
) -> pa.Table:
    kind = events["kind"].to_numpy()
    request = exposures["request"].to_numpy()[events["exposure"]]
    onsite = kind < CART
    surface = requests.surface[request]
    searching = onsite & (surface == DEFAULT_SURFACES.index("search"))
    columns = {
        "event_id": ids,
        "user_id": user_ids(requests.user[request]),
        "item_id": item_ids(events["item"].to_numpy()),
        "event_type": pa.array(np.array(EVENT_TYPES)[kind]),
        "event_time": _timestamps(events["time"].to_numpy()),
        "surface": pa.array(np.array(DEFAULT_SURFACES)[surface], mask=~onsite),
        "click_duration_seconds": _nullable(events["duration"]),
        "context_item_id": item_ids(np.where(onsite, requests.context_item[request], -1)),
        "context_embedding": embedding_column((requests.context @ world.embedding_basis)[request], searching),
        "reported_time": _timestamps(events["reported"].to_numpy(), mask=onsite),
        "value": _nullable(events["value"].round(2)),
    }
    return pa.table(columns, schema=EVENTS_SCHEMA)


def _truth_tables(
    ids: pa.Array, events: pd.DataFrame, exposures: pd.DataFrame, world: World, config: SyntheticConfig
) -> tuple[pa.Table, pa.Table]:
    """Impressions with their true probabilities, conversions with the impression that caused them."""
    impressions = np.flatnonzero(events["kind"] == IMPRESSION)
    conversions = np.flatnonzero(events["kind"] >= CART)
    exposure_event = np.full(len(exposures), -1)
    exposure_event[events["exposure"].to_numpy()[impressions]] = impressions
    shown = exposures.iloc[events["exposure"].to_numpy()[impressions]]
    click = shown["click_probability"].to_numpy()
    meant_or_not = click + (1 - click) * config.view_through_rate
    recorded = world.recorded_share()[shown["item"]]
    cause = exposure_event[events["exposure"].to_numpy()[conversions]]
    return (
        pa.table(
            {
                "event_id": ids.take(pa.array(impressions)),
                "click_probability": click + (1 - click) * config.accidental_click_rate,
                "conversion_probability": shown["purchase_probability"].to_numpy() * meant_or_not * recorded,
            }
        ),
        pa.table(
            {
                "event_id": ids.take(pa.array(conversions)),
                "impression_event_id": ids.take(pa.array(cause, mask=cause < 0)),
                "wrong_item": events["wrong"].to_numpy()[conversions],
            }
        ),
    )


def _items_table(world: World, config: SyntheticConfig) -> pa.Table:
    rng = np.random.default_rng([config.seed, 3])
    items = np.arange(config.num_items)
    category, tier = np.divmod(world.item_cluster, config.num_price_tiers)
    taste = world.item_taste(items)
    look = np.linalg.qr(rng.normal(size=(config.embedding_dim, config.taste_dim)))[0].T
    visual = taste @ look + 0.1 * rng.normal(size=(config.num_items, config.embedding_dim))
    text = taste @ world.embedding_basis + 0.1 * rng.normal(size=(config.num_items, config.embedding_dim))
    return pa.table(
        {
            "item_id": item_ids(items),
            "advertiser_id": numbered_ids("a", world.item_advertiser, 5),
            "category": numbered_ids("category_", category, 2),
            "price_tier": numbered_ids("tier_", tier, 1),
            "price": world.item_price,
            "visual_embedding": embedding_column(visual, rng.random(config.num_items) >= 0.03),
            "text_embedding": embedding_column(text),
        }
    )


def _users_table(world: World, config: SyntheticConfig) -> pa.Table:
    rng = np.random.default_rng([config.seed, 4])
    return pa.table(
        {
            "user_id": user_ids(np.arange(config.num_users)),
            "age_band": numbered_ids("age_", world.user_age_band, 1),
            "region": numbered_ids("region_", world.user_region, 1),
            "tenure_days": rng.geometric(1 / 400, config.num_users).astype(np.float64),
        }
    )


def user_ids(users: Integers) -> pa.Array:
    """Ids of user rows."""
    return numbered_ids("u", users, _ID_DIGITS)


def item_ids(items: Integers) -> pa.Array:
    """Ids of item rows; null for -1."""
    return numbered_ids("i", items, _ID_DIGITS)


def _timestamps(times: Integers, mask: NDArray[np.bool_] | None = None) -> pa.Array:
    return pa.array(times, mask=mask).cast(TIMESTAMP)


def _nullable(values: pd.Series) -> pa.Array:
    return pa.array(values.to_numpy(), from_pandas=True)
