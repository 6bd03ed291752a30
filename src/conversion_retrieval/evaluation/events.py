"""The event log as the baselines see it: windows of users' histories as sparse user-by-item matrices."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from conversion_retrieval.evaluation.ranking import ItemLists
from conversion_retrieval.schema import CONVERSIONS, EVENT_TYPES

MICROSECONDS_A_DAY: Final = 86_400_000_000
BLOCK_WINDOWS: Final = 2048  # users with long histories: some million events at a time
CONVERSION_ACTIONS: Final = tuple(EVENT_TYPES.index(name) + 1 for name in CONVERSIONS)


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """Each user's history events, sorted by the time at which they became known.

    ``item`` [E] rows of the catalogue, -1 outside; ``action`` [E], 1 + position in ``EVENT_TYPES``; ``time`` and
    ``available`` [E] microseconds; ``offsets`` [U + 1] of the users.
    """

    item: NDArray[np.int32]
    action: NDArray[np.int8]
    time: NDArray[np.int64]
    available: NDArray[np.int64]
    offsets: NDArray[np.int64]
    num_items: int

    @property
    def num_users(self) -> int:
        """How many users the log knows."""
        return len(self.offsets) - 1

    def users_before(self, time: int) -> "Windows":
        """Every user's events known strictly before ``time``."""
        known = np.concatenate([[0], np.cumsum(self.available < time)])
        starts = self.offsets[:-1]
        ends = starts + known[self.offsets[1:]] - known[starts]
        return Windows(starts=starts, ends=ends, times=np.full(self.num_users, time))


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Slices [starts, ends) of the event log as of ``times``, one a row [R]."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    times: NDArray[np.int64]

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.starts)

    def rows(self, rows: NDArray[np.integer]) -> "Windows":
        """Some of the windows."""
        return Windows(starts=self.starts[rows], ends=self.ends[rows], times=self.times[rows])

    def newest(self, length: int) -> "Windows":
        """The windows cut to their last ``length`` events."""
        return replace(self, starts=np.maximum(self.starts, self.ends - length))

    def blocks(self) -> list["Windows"]:
        """All of them in order, a few thousand at a time: one block without any where there are none."""
        starts = range(0, max(len(self), 1), BLOCK_WINDOWS)
        return [self.rows(np.arange(start, min(start + BLOCK_WINDOWS, len(self)))) for start in starts]

    def positions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row, position in the log) of every event in the windows."""
        lengths = self.ends - self.starts
        row = np.repeat(np.arange(len(self)), lengths)
        shift = self.starts - (np.cumsum(lengths) - lengths)
        return row, np.arange(len(row)) + shift[row]


def affinities(
    log: EventLog, windows: Windows, *, half_life_days: float = np.inf, engagement_weight: float = 1.0
) -> sparse.csr_array:
    """How much each window's user did with each item, [R, N] float32.

    The sum over events of 2^(-age / half-life), an engagement counting ``engagement_weight`` of a conversion. Ages are
    as of the window's time.
    """
    row, position = windows.positions()
    item = log.item[position]
    age_days = (windows.times[row] - log.time[position]) / MICROSECONDS_A_DAY
    # Clipped so that a user's oldest events still count more than none.
    weight = np.exp2(-np.clip(age_days / half_life_days, 0, 100)).astype(np.float32)
    weight[~np.isin(log.action[position], CONVERSION_ACTIONS)] *= engagement_weight
    kept = (item >= 0) & (weight > 0)
    cells = (weight[kept], (row[kept], item[kept]))
    return sparse.coo_array(cells, shape=(len(windows), log.num_items)).tocsr()


def recency_affinities(log: EventLog, windows: Windows, *, half_life_days: float = np.inf) -> sparse.csr_array:
    """2^(-age of the newest conversion / half-life) of each window's user on each item, [R, N] float32.

    Events other than conversions count where the windows hold no conversion at all.
    """
    row, position = windows.positions()
    conversion = np.isin(log.action[position], CONVERSION_ACTIONS)
    kept = (log.item[position] >= 0) & (conversion | ~conversion.any())
    row, position = row[kept], position[kept]
    cell = row * log.num_items + log.item[position]
    order = np.lexsort((log.time[position], cell))
    last = order[np.flatnonzero(np.diff(cell[order], append=-1))]
    age_days = (windows.times[row[last]] - log.time[position[last]]) / MICROSECONDS_A_DAY
    weight = np.exp2(-np.clip(age_days / half_life_days, 0, 100)).astype(np.float32)
    cells = (weight, (row[last], log.item[position[last]]))
    return sparse.coo_array(cells, shape=(len(windows), log.num_items)).tocsr()


def seen_items(log: EventLog, windows: Windows) -> ItemLists:
    """The distinct items of every window."""
    blocks = [affinities(log, block) for block in windows.blocks()]
    lengths = np.concatenate([np.diff(block.indptr) for block in blocks])
    items = np.concatenate([block.indices for block in blocks]).astype(np.int32)
    return ItemLists(offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items=items)
