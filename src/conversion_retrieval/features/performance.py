"""Item performance as of snapshot times: counts over windows, decayed popularity, age of conversions, smoothed rates.

Partitions count events in integer bins of time, so that the sum over partitions is exact; snapshots then slide over
the merged bins. Bins end at every snapshot and window edge, so window counts are exact; the age of an event in a
decayed count, like that of an item's first event and of its first and last conversion, is that of the middle of its
bin, at most a day long.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.config import FeatureConfig
from conversion_retrieval.features.events import ADD_TO_CART, CHECKOUT, CLICK, IMPRESSION, EventBlock
from conversion_retrieval.features.timeline import Timeline, first_occurrences
from conversion_retrieval.features.windows import DAY, SplitWindows
from conversion_retrieval.schema import CONVERSIONS, EVENT_TYPES

MAX_SNAPSHOTS: Final = 64
NUM_TYPES: Final = len(EVENT_TYPES)
# What is counted: the event types, and conversions of users who had never converted on the item before.
NEW_BUYERS: Final = NUM_TYPES
NUM_KINDS: Final = NUM_TYPES + 1
KIND_NAMES: Final = (*EVENT_TYPES, "new_buyers")
DECAYED: Final = (CLICK, ADD_TO_CART, CHECKOUT)
CONVERTED: Final = (ADD_TO_CART, CHECKOUT)
# Decayed counts are normalised as log1p(100 x): close to log popularity down to a hundredth of an event, 0 at 0.
DECAYED_SCALE: Final = 100.0
# name: successes, trials
RATES: Final[dict[str, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "click_rate": ((CLICK,), (IMPRESSION,)),
    "conversion_rate": (CONVERTED, (CLICK,)),
    "checkout_rate": ((CHECKOUT,), (IMPRESSION,)),
}


@dataclass(frozen=True, kw_only=True)
class SnapshotGrid:
    """Snapshot times [S] and the bin edges [B + 1] that they and their windows need."""

    times: NDArray[np.int64]
    edges: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class BinnedCounts:
    """Events per (bin, kind, item) as sorted keys ``(bin * NUM_KINDS + kind) * num_items + item`` with counts."""

    keys: NDArray[np.int64]
    counts: NDArray[np.int64]


def snapshot_grid(
    windows: SplitWindows, *, first_time: int, last_available: int, config: FeatureConfig
) -> SnapshotGrid:
    """Snapshots every period back from ``as_of`` to before ``first_time``, and one at each window's start.

    The automatic period is the fewest whole days so that at most 64 regular snapshots cover the data. Raises
    ``UserError`` for a period so short that snapshot numbers would not fit in 16 bits.
    """
    span = windows.as_of - first_time
    period = round(config.performance_period_days * DAY) or max(-(-span // (DAY * (MAX_SNAPSHOTS - 1))), 1) * DAY
    if span // period > 30_000:
        raise UserError(
            f"features.performance_period_days: expected at most 30000 snapshots, found {span // period}: raise it"
        )
    regular = windows.as_of - np.arange(span // period + 2, dtype=np.int64) * period
    starts = [windows.train.start, windows.train.end, windows.validation.start, windows.test.start]
    times = np.unique(np.concatenate([regular, [t for t in starts if t > first_time]]))
    daily = np.arange(regular.min(), max(windows.as_of, last_available) + 2 * DAY, DAY)
    lags = [round(days * DAY) for days in config.aggregate_windows_days]
    edges = np.unique(np.concatenate([daily, times, *(times - lag for lag in lags)]))
    return SnapshotGrid(times=times, edges=edges.astype(np.int64))


def count_in_bins(block: EventBlock, known: Timeline, edges: NDArray[np.int64], num_items: int) -> BinnedCounts:
    """A partition's share of the counts, by availability; ``known`` is the block's timeline."""
    bought = known.only(CONVERSIONS)
    first = np.flatnonzero(first_occurrences(bought.user, bought.item))
    rows = np.flatnonzero(block.item >= 0)
    available = np.concatenate([block.available[rows], bought.available[first]])
    kind = np.concatenate([block.type[rows], np.full(len(first), NEW_BUYERS)])
    item = np.concatenate([block.item[rows], bought.item[first]])
    bin_ = np.maximum(np.searchsorted(edges, available, side="right") - 1, 0)  # strays long before the first snapshot
    unique, counts = np.unique((bin_ * NUM_KINDS + kind) * num_items + item, return_counts=True)
    return BinnedCounts(keys=unique, counts=counts.astype(np.int64))


def merge_counts(parts: Sequence[BinnedCounts], edges: NDArray[np.int64], num_items: int) -> BinnedCounts:
    """The sum of all partitions' counts, merged a range of bins at a time."""
    limits = np.arange(0, len(edges) + 16, 16) * NUM_KINDS * num_items
    spans = [np.searchsorted(part.keys, limits) for part in parts]
    merged = [
        _merge([(p.keys[s[i] : s[i + 1]], p.counts[s[i] : s[i + 1]]) for p, s in zip(parts, spans, strict=True)])
        for i in range(len(limits) - 1)
    ]
    return BinnedCounts(keys=np.concatenate([k for k, _ in merged]), counts=np.concatenate([c for _, c in merged]))


def _merge(
    pieces: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    keys = np.concatenate([np.asarray(k) for k, _ in pieces])
    counts = np.concatenate([np.asarray(c) for _, c in pieces])
    unique, inverse = np.unique(keys, return_inverse=True)
    # Counts are far below 2**53, so the float sums of bincount are exact.
    return unique, np.bincount(inverse, weights=counts, minlength=len(unique)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class PerformanceColumns:
    """Which figures are computed: only of event types that the training window holds."""

    types: tuple[int, ...]
    config: FeatureConfig
    priors: dict[str, float] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order: those of counts, decayed counts, ages and rates."""
        windows = [f"{days:g}d" for days in self.config.aggregate_windows_days]
        counts = [f"{EVENT_TYPES[t]}_count_{w}" for t in self.types for w in windows]
        decayed = [f"{KIND_NAMES[kind]}_decayed_{days:g}d" for kind, days in self.decayed]
        return (*counts, *decayed, *self.ages, *self.priors)

    @property
    def decayed(self) -> tuple[tuple[int, float], ...]:
        """(kind, half-life in days) of each decayed count."""
        config = self.config
        half_lives = {
            **{t: config.popularity_half_lives_days for t in DECAYED if t in self.types},
            **({NEW_BUYERS: config.new_buyer_half_lives_days} if self.converted else {}),
        }
        return tuple((kind, days) for kind, all_days in half_lives.items() for days in all_days)

    @property
    def converted(self) -> bool:
        """Whether there are conversions at all."""
        return any(t in self.types for t in CONVERTED)

    @property
    def ages(self) -> tuple[str, ...]:
        """Days since an item's first event, and since its last and its first conversion."""
        return ("item_age", *(("conversion_recency", "conversion_age") if self.converted else ()))

    @property
    def log_scales(self) -> NDArray[np.float64]:
        """Each column's factor before ``log1p``, [F]; 0 for a column that is a log already."""
        counts = len(self.types) * len(self.config.aggregate_windows_days)
        widths = (counts, len(self.decayed), len(self.ages), len(self.priors))
        return np.repeat([1.0, DECAYED_SCALE, 1.0, 0.0], widths)


def choose_columns(
    counts: BinnedCounts, grid: SnapshotGrid, windows: SplitWindows, num_items: int, config: FeatureConfig
) -> PerformanceColumns:
    """The columns, with each rate's prior from events that were available within the training window."""
    start = np.searchsorted(grid.edges, windows.train.start, side="right") - 1
    end = np.searchsorted(grid.edges, windows.train.end)
    low, high = np.searchsorted(counts.keys, np.array([start, end]) * NUM_KINDS * num_items)
    kinds = counts.keys[low:high] // num_items % NUM_KINDS
    totals = np.bincount(kinds, weights=counts.counts[low:high], minlength=NUM_KINDS)[:NUM_TYPES]
    priors = {}
    for name, (successes, trials) in RATES.items():
        tried, succeeded = totals[list(trials)].sum(), totals[list(successes)].sum()
        if tried > 0 and succeeded > 0:
            priors[name] = float(succeeded / tried)
    types = tuple(int(t) for t in np.flatnonzero(totals))
    return PerformanceColumns(types=types, config=config, priors=priors)


def snapshots(
    counts: BinnedCounts, grid: SnapshotGrid, columns: PerformanceColumns, num_items: int
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """At each snapshot the items with any non-zero value, and their raw values [n, F].

    Counts are of events available in ``[time - days, time)``. Decayed counts are
    ``sum 0.5 ** (age / half life)``. Ages are in days, 0 for an item without such events. A rate is
    ``log(((s + k p) / (n + k)) / p)`` over all time for s successes in n trials, prior rate p and prior strength k: 0
    for an item without trials, so that absence needs no row.
    """
    state = _Sliding(counts, grid, columns, num_items)
    for snapshot in range(len(grid.times)):
        values = state.advance(snapshot)
        items = np.flatnonzero(values.any(axis=0)).astype(np.int32)
        yield items, np.ascontiguousarray(values[:, items].T)


class _Sliding:
    """Running totals, updated from one snapshot to the next by the bins that enter and leave."""

    def __init__(self, counts: BinnedCounts, grid: SnapshotGrid, columns: PerformanceColumns, num_items: int) -> None:
        self._counts, self._grid, self._columns, self._num_items = counts, grid, columns, num_items
        self._lags = [round(days * DAY) for days in columns.config.aggregate_windows_days]
        self._windows = [np.zeros((NUM_KINDS, num_items), np.int64) for _ in self._lags]
        self._total = np.zeros((NUM_KINDS, num_items), np.int64)
        self._half_lives = np.array([days for _, days in columns.decayed])[:, None]
        self._decayed = np.zeros((len(columns.decayed), num_items))
        self._last = np.full(num_items, -np.inf)
        self._first = np.full(num_items, np.inf)
        self._appeared = np.full(num_items, np.inf)
        self._buffer = np.zeros((len(columns.names), num_items), np.float32)
        self._before: int | None = None

    def advance(self, snapshot: int) -> NDArray[np.float32]:
        """Move to a snapshot and return all items' values [F, N], a buffer that the next call overwrites."""
        time, before = int(self._grid.times[snapshot]), self._before
        entering = self._bins(before, time)
        self._add(self._total, entering, 1)
        for window, lag in zip(self._windows, self._lags, strict=True):
            self._add(window, entering, 1)
            self._add(window, self._bins(None if before is None else before - lag, time - lag), -1)
        self._age(entering, time)
        self._before = time
        return self._values(time)

    def _bins(self, start: int | None, end: int) -> slice:
        """The key range of the bins in [start, end); both are edges, or outside of all data."""
        edges = self._grid.edges
        limits = [0 if start is None else np.searchsorted(edges, start), np.searchsorted(edges, end)]
        low, high = np.searchsorted(self._counts.keys, np.array(limits) * NUM_KINDS * self._num_items)
        return slice(int(low), int(high))

    def _add(self, totals: NDArray[np.int64], bins: slice, sign: int) -> None:
        where = self._counts.keys[bins] % (NUM_KINDS * self._num_items)
        np.add.at(totals.reshape(-1), where, sign * self._counts.counts[bins])

    def _age(self, bins: slice, time: int) -> None:
        """Let what is known grow older, and take in what happened in ``bins``."""
        if self._before is not None:
            self._decayed *= 0.5 ** ((time - self._before) / DAY / self._half_lives)
        rest, item = np.divmod(self._counts.keys[bins], self._num_items)
        bin_, kind = np.divmod(rest, NUM_KINDS)
        middle = (self._grid.edges[bin_] + self._grid.edges[bin_ + 1]) / 2
        counts, age = self._counts.counts[bins], (time - middle) / DAY
        rows = {k: np.flatnonzero(kind == k) for k in {k for k, _ in self._columns.decayed}}
        for decayed, (k, half_life) in zip(self._decayed, self._columns.decayed, strict=True):
            np.add.at(decayed, item[rows[k]], counts[rows[k]] * 0.5 ** (age[rows[k]] / half_life))
        np.minimum.at(self._appeared, item, middle)
        converted = np.isin(kind, CONVERTED)
        np.maximum.at(self._last, item[converted], middle[converted])
        np.minimum.at(self._first, item[converted], middle[converted])

    def _values(self, time: int) -> NDArray[np.float32]:
        columns = [window[t] for t in self._columns.types for window in self._windows]
        columns += list(self._decayed)
        moments = {"item_age": self._appeared, "conversion_recency": self._last, "conversion_age": self._first}
        for moment in (moments[name] for name in self._columns.ages):
            columns.append(np.where(np.isinf(moment), 0, (time - moment) / DAY))
        columns += [self._rate(name) for name in self._columns.priors]
        for row, column in enumerate(columns):
            self._buffer[row] = column
        return self._buffer

    def _rate(self, name: str) -> NDArray[np.float64]:
        successes, trials = RATES[name]
        prior, strength = self._columns.priors[name], self._columns.config.rate_prior_strength
        succeeded = np.sum([self._total[t] for t in successes], axis=0)
        tried = np.sum([self._total[t] for t in trials], axis=0)
        rate: NDArray[np.float64] = np.log((succeeded + strength * prior) / (tried + strength) / prior)
        return rate
