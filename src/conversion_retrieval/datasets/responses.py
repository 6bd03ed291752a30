"""What users do with what they are shown, and how much of it a log holds: clicks, saves, purchases, reports."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conversion_retrieval.datasets.config import SyntheticConfig
from conversion_retrieval.datasets.world import Floats, Integers, World
from conversion_retrieval.schema import EVENT_TYPES

IMPRESSION, CLICK, SAVE, CART, CHECKOUT = range(len(EVENT_TYPES))
SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
BOUNCE_SECONDS = 2.5
DWELL_SECONDS = 25.0


@dataclass(frozen=True, kw_only=True)
class _Actions:
    """What happens to each of n exposures: flags, times in microseconds, seconds away after a click."""

    clicked: NDArray[np.bool_]
    saved: NDArray[np.bool_]
    carted: NDArray[np.bool_]
    bought: NDArray[np.bool_]
    duration: Floats
    click_time: Integers
    save_time: Integers
    cart_time: Integers
    checkout_time: Integers


def draw_events(
    rng: np.random.Generator, world: World, config: SyntheticConfig, exposures: pd.DataFrame
) -> pd.DataFrame:
    """Everything that happens after ``exposures`` (item, time, click_probability, purchase_probability).

    One row an event: kind (index in ``EVENT_TYPES``), exposure (row), item, time, duration, value, reported, wrong.
    """
    actions = _draw_actions(rng, world, config, exposures)
    price = world.item_price[exposures["item"]]
    paid = price * rng.choice([1, 1, 1, 2, 3], len(price)) * rng.lognormal(-0.05, 0.1, len(price))
    nothing = np.full(len(price), np.nan)
    all_shown, shown_time = np.ones(len(price), dtype=bool), exposures["time"].to_numpy()
    carts = _event_frame(CART, actions.carted, exposures, actions.cart_time, nothing, price)
    checkouts = _event_frame(CHECKOUT, actions.bought, exposures, actions.checkout_time, nothing, paid)
    parts = [
        _event_frame(IMPRESSION, all_shown, exposures, shown_time, nothing, nothing),
        _event_frame(CLICK, actions.clicked, exposures, actions.click_time, actions.duration, nothing),
        _event_frame(SAVE, actions.saved, exposures, actions.save_time, nothing, nothing),
        _reported(rng, world, config, carts),
        _reported(rng, world, config, checkouts),
    ]
    return pd.concat(parts, ignore_index=True)


def _draw_actions(rng: np.random.Generator, world: World, config: SyntheticConfig, exposures: pd.DataFrame) -> _Actions:
    count, item = len(exposures), exposures["item"].to_numpy()
    purchase = exposures["purchase_probability"].to_numpy()
    meant = rng.random(count) < exposures["click_probability"].to_numpy()
    clicked = meant | (rng.random(count) < config.accidental_click_rate)
    carted = rng.random(count) < purchase * np.where(meant, 1.0, config.view_through_rate)
    duration = _draw_durations(rng, meant, purchase, config)
    click_time = exposures["time"].to_numpy() + _microseconds(rng.uniform(1, 30, count))
    back_time = click_time + np.where(clicked, _microseconds(duration), 0)
    cart_time = back_time + _delays(rng, config.median_purchase_delay_hours / 4, 1.5, count)
    return _Actions(
        clicked=clicked,
        saved=meant & (rng.random(count) < config.save_rate),
        carted=carted,
        bought=carted & (rng.random(count) < world.item_checkout_rate[item]),
        duration=duration,
        click_time=click_time,
        save_time=click_time + _microseconds(rng.uniform(0, 1, count) * duration),
        cart_time=cart_time,
        checkout_time=cart_time + _delays(rng, config.median_purchase_delay_hours, 1.5, count),
    )


def _event_frame(
    kind: int, happened: NDArray[np.bool_], exposures: pd.DataFrame, time: Integers, duration: Floats, value: Floats
) -> pd.DataFrame:
    rows = np.flatnonzero(happened)
    return pd.DataFrame(
        {
            "kind": np.full(len(rows), kind),
            "exposure": rows,
            "item": exposures["item"].to_numpy()[rows],
            "time": time[rows],
            "duration": duration[rows],
            "value": value[rows],
            "reported": time[rows],
            "wrong": np.zeros(len(rows), dtype=bool),
        }
    )


def _draw_durations(
    rng: np.random.Generator, meant: NDArray[np.bool_], purchase: Floats, config: SyntheticConfig
) -> Floats:
    """Seconds until the user is back: longer, the more the item is wanted; accidents are short, whatever it is."""
    wanted = np.log(np.maximum(purchase, 1e-6) / max(config.cart_rate, 1e-6))
    dwell = DWELL_SECONDS * np.exp(0.7 * np.clip(wanted, -3, 3) + rng.normal(0, 0.7, len(meant)))
    bounce = rng.exponential(BOUNCE_SECONDS, len(meant))
    seconds: Floats = np.where(meant, dwell, bounce)
    return seconds.round(3)


def _reported(rng: np.random.Generator, world: World, config: SyntheticConfig, happened: pd.DataFrame) -> pd.DataFrame:
    """Those conversions that advertisers report: later, and some for a sibling of the item that was bought."""
    frame = happened[rng.random(len(happened)) < world.item_reporting_rate[happened["item"]]].copy()
    wrong = rng.random(len(frame)) < world.item_wrong_rate[frame["item"]]
    frame["item"] = np.where(wrong, world.item_sibling[frame["item"]], frame["item"])
    frame["wrong"] = wrong
    frame["reported"] = frame["time"] + _delays(rng, config.median_reporting_delay_hours, 1.2, len(frame))
    return frame


def recorded(events: pd.DataFrame, exposures: pd.DataFrame, config: SyntheticConfig) -> pd.DataFrame:
    """What the log holds when it is taken, in order of time: of hidden requests, conversions only."""
    hidden = exposures["hidden"].to_numpy()[events["exposure"]]
    seen = ~hidden | (events["kind"].to_numpy() >= CART)
    known = (events["reported"].to_numpy() < config.end_us) & (events["time"].to_numpy() < config.end_us)
    kept = events[seen & known]
    return kept.sort_values(["time", "exposure", "kind"], kind="stable", ignore_index=True)


def _microseconds(seconds: Floats) -> Integers:
    return (seconds * SECOND_US).astype(np.int64)


def _delays(rng: np.random.Generator, median_hours: float, spread: float, count: int) -> Integers:
    """Log-normal delays in microseconds."""
    return (median_hours * HOUR_US * rng.lognormal(0, spread, count)).astype(np.int64)
