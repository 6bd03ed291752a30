"""A user's past as it was known at a moment: history positions and aggregates, strictly before a query."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.features.config import FeatureConfig
from conversion_retrieval.features.events import EventBlock
from conversion_retrieval.features.grouped import carried_forward, count_before, group_starts
from conversion_retrieval.features.windows import DAY
from conversion_retrieval.schema import EVENT_TYPES


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Events of a block in the order in which they became known, within each user.

    Sorted by user, availability, event time and event id; ``offsets`` [U + 1] as in the block.
    """

    offsets: NDArray[np.int64]
    user: NDArray[np.int32]
    available: NDArray[np.int64]
    time: NDArray[np.int64]
    type: NDArray[np.int8]
    item: NDArray[np.int32]
    surface: NDArray[np.int16]

    def __len__(self) -> int:
        """The number of events."""
        return len(self.available)

    def known(self, user: NDArray[np.int32], time: NDArray[np.int64]) -> NDArray[np.int64]:
        """The end (exclusive, in this timeline) of what was known of each user strictly before each time."""
        return count_before(self.available, self.offsets[user], self.offsets[user + 1], time)

    def only(self, event_types: Sequence[str]) -> "Timeline":
        """The timeline of some event types."""
        keep = np.isin(self.type, [EVENT_TYPES.index(name) for name in event_types])
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        columns = {n: getattr(self, n)[keep] for n in ("user", "available", "time", "type", "item", "surface")}
        return Timeline(offsets=kept_before[self.offsets], **columns)


def timeline(block: EventBlock) -> Timeline:
    """All events of a block, ordered by when they became known."""
    names = ("user", "available", "time", "type", "item", "surface")
    columns = {name: getattr(block, name) for name in names}
    if np.any(block.available != block.time):
        order = _by_user_and_availability(block)
        columns = {name: values[order] for name, values in columns.items()}
    return Timeline(offsets=block.offsets, **columns)


def _by_user_and_availability(block: EventBlock) -> NDArray[np.int64]:
    """The stable order: ties stay in event order."""
    first = int(block.available.min())
    span = int(block.available.max()) - first + 1
    if span >= 2**62 // len(block.offsets):
        return np.lexsort((block.available, block.user))
    # One nearly sorted key: a merge sort finds the runs, which makes this several times faster than a lexsort.
    return np.argsort(block.user * np.int64(span) + (block.available - first), kind="stable")


def aggregate_names(config: FeatureConfig) -> tuple[str, ...]:
    """The names of the columns that ``user_aggregates`` returns, in order."""
    counts = [f"{kind}_count_{window}" for kind in EVENT_TYPES for window in (*_window_names(config), "total")]
    recencies = [f"{kind}_recency" for kind in EVENT_TYPES]
    return (*counts, *recencies, "distinct_items", "distinct_advertisers")


def user_aggregates(
    known: Timeline,
    user: NDArray[np.int32],
    time: NDArray[np.int64],
    *,
    advertiser: NDArray[np.int32],
    config: FeatureConfig,
) -> NDArray[np.float32]:
    """What each user had done strictly before each time, [Q, A] raw.

    For every event type: counts over each window ``[time - days, time)`` of availability and over all time, and
    ``1 / (1 + days since the last)`` (0 if never); then distinct items and advertisers over all time.
    """
    start, end = known.offsets[user], known.known(user, time)
    windows = [
        count_before(known.available, start, end, time - round(days * DAY)) for days in config.aggregate_windows_days
    ]
    kinds = len(EVENT_TYPES)
    brands = np.where(known.item >= 0, advertiser[known.item], -1) if len(advertiser) else known.item
    firsts = [first_occurrences(known.user, entity) for entity in (known.item, brands)]
    # One row of running counts for each event: a query then looks in one place rather than in one for each column.
    running = _running_counts([*(known.type == kind for kind in range(kinds)), *firsts])
    at_end, at_start = running[end], running[start]
    counts = np.stack(
        [*(at_end[:, :kinds] - running[low][:, :kinds] for low in windows), (at_end - at_start)[:, :kinds]]
    )
    result = np.empty((len(user), len(aggregate_names(config))), np.float32)
    result[:, : kinds * len(counts)] = counts.transpose(1, 2, 0).reshape(len(user), kinds * len(counts))
    result[:, kinds * len(counts) : -2] = _recencies(known, start, end, time)
    result[:, -2:] = (at_end - at_start)[:, kinds:]
    return result


def first_occurrences(user: NDArray[np.int32], key: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether each row is the first with its (user, key), rows in their order; rows with key -1 never are."""
    rows = np.flatnonzero(key >= 0)
    pair = user[rows].astype(np.int64) * (int(key.max(initial=0)) + 1) + key[rows]
    order = np.argsort(pair, kind="stable")
    first = np.zeros(len(key), bool)
    first[rows[order[group_starts(pair[order])]]] = True
    return first


def first_available(
    known: Timeline, user: NDArray[np.int32], item: NDArray[np.int32], *, never: int
) -> NDArray[np.int64]:
    """When each (user, item) first appears in the timeline, [n]; ``never`` if it does not."""
    first = np.flatnonzero(first_occurrences(known.user, known.item))
    width = int(max(known.item.max(initial=0), item.max(initial=0))) + 1
    pairs = known.user[first].astype(np.int64) * width + known.item[first]
    order = np.argsort(pairs)
    pairs, times = pairs[order], known.available[first][order]
    if len(pairs) == 0:
        return np.full(len(user), never)
    wanted = user.astype(np.int64) * width + item
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    return np.where(pairs[at] == wanted, times[at], never)


def _recencies(
    known: Timeline, start: NDArray[np.int64], end: NDArray[np.int64], time: NDArray[np.int64]
) -> NDArray[np.float32]:
    """``1 / (1 + days since the last event)`` of every type, [Q, types]; 0 if there was none."""
    result = np.zeros((len(time), len(EVENT_TYPES)), np.float32)
    if len(known) == 0:
        return result
    newest = np.maximum(end - 1, 0)
    for kind in range(len(EVENT_TYPES)):
        last = np.where(end > start, carried_forward(known.type == kind)[newest], -1)
        days = (time - known.available[last]) / DAY
        result[:, kind] = np.where(last >= start, 1 / (1 + np.maximum(days, 0)), 0.0)
    return result


def _running_counts(flags: Sequence[NDArray[np.bool_]]) -> NDArray[np.int32]:
    """How many of each kind of flags are set before each position, [E + 1, kinds]."""
    counts = np.zeros((len(flags[0]) + 1, len(flags)), np.int32)
    for column, own in enumerate(flags):
        np.cumsum(own, dtype=np.int32, out=counts[1:, column])
    return counts


def _window_names(config: FeatureConfig) -> tuple[str, ...]:
    return tuple(f"{days:g}d" for days in config.aggregate_windows_days)
