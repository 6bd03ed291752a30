"""Which request led to an event: clicks joined to their impressions, conversions credited to a click or impression."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.features.config import LabelConfig
from conversion_retrieval.features.events import (
    ADD_TO_CART,
    CHECKOUT,
    CLICK,
    IMPRESSION,
    SAVE,
    EventBlock,
)
from conversion_retrieval.features.grouped import carried_forward, group_starts
from conversion_retrieval.features.windows import DAY, MINUTE


@dataclass(frozen=True, kw_only=True)
class LabelledEvents:
    """Candidate positives and the request that each belongs to, n rows.

    ``event`` is the positive's row in the block; ``source`` the row whose context is the request's (-1 none);
    ``surface`` 0 is unknown. ``touch_type`` is the event type that a conversion is credited to (-1 without one), the
    event's own type for engagements.
    """

    event: NDArray[np.int64]
    user: NDArray[np.int32]
    time: NDArray[np.int64]
    surface: NDArray[np.int16]
    source: NDArray[np.int64]
    touch_type: NDArray[np.int8]

    @property
    def attributed(self) -> NDArray[np.bool_]:
        """False only for conversions without a touch."""
        return self.touch_type >= 0

    def __len__(self) -> int:
        """The number of candidates."""
        return len(self.event)

    def select(self, rows: NDArray[np.generic]) -> "LabelledEvents":
        """The candidates at these rows or where this mask is set."""
        return LabelledEvents(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def is_conversion(kind: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Whether each event type is one of ``schema.CONVERSIONS``."""
    return np.isin(kind, (ADD_TO_CART, CHECKOUT))


def is_engagement(kind: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Whether each event type is one of ``schema.ENGAGEMENTS``."""
    return np.isin(kind, (CLICK, SAVE))


def label_events(block: EventBlock, advertiser: NDArray[np.int32], config: LabelConfig) -> LabelledEvents:
    """Every engagement and conversion on a catalogue item with the request it belongs to.

    An attributed conversion belongs to its touch's request, an unattributed one to a request without surface and
    context at its own time (or is left out, where the configuration says so).
    """
    request = join_impressions(block, session=round(config.session_minutes * MINUTE))
    touch = attribute(block, _keys(block, advertiser, config), config)
    conversion = is_conversion(block.type)
    wanted = (block.item >= 0) & (is_engagement(block.type) | conversion)
    if not config.keep_unattributed:
        wanted &= ~conversion | (touch >= 0)
    event = np.flatnonzero(wanted)
    origin = np.where(conversion[event], touch[event], event)
    attributed = origin >= 0
    source = np.where(attributed, request[origin], -1)
    return LabelledEvents(
        event=event,
        user=block.user[event],
        time=np.where(attributed, block.time[source], block.time[event]),
        surface=np.where(attributed, block.surface[source], 0).astype(np.int16),
        source=source,
        touch_type=np.where(attributed, block.type[origin], -1).astype(np.int8),
    )


def join_impressions(block: EventBlock, *, session: int) -> NDArray[np.int64]:
    """For each event the row of the request it came from, [E].

    For a click or save: the same user's last impression of the item on the surface, at or before it and no more than
    ``session`` microseconds earlier; otherwise, and for all other events, the event's own row.
    """
    request = np.arange(len(block))
    rows = np.flatnonzero((block.item >= 0) & ~is_conversion(block.type))
    key = _pair(block.user[rows], block.item[rows]) * (int(block.surface.max(initial=0)) + 1) + block.surface[rows]
    rows = rows[np.argsort(key, kind="stable")]
    user, item, surface, time = block.user[rows], block.item[rows], block.surface[rows], block.time[rows]
    new_group = group_starts(user, item, surface)
    new_time = new_group | group_starts(time)
    # An impression at the very time of the click counts, wherever its event id sorts: look from the end of the tie.
    tie_end = _run_ends(new_time)
    impression = carried_forward(block.type[rows] == IMPRESSION)[tie_end]
    joined = is_engagement(block.type[rows]) & (impression >= carried_forward(new_group))
    joined &= time - time[impression] <= session
    request[rows[joined]] = rows[impression[joined]]
    return request


def attribute(block: EventBlock, key: NDArray[np.int64], config: LabelConfig) -> NDArray[np.int64]:
    """For each conversion the row of the touch it is credited to, [E]; -1 without one, and for other events.

    The user's last click with the same ``key`` (item or advertiser; -1 matches nothing) strictly before the
    conversion and inside the click window; else the last impression inside the view window.
    """
    touch = np.full(len(block), -1)
    rows = np.flatnonzero((key >= 0) & (block.type != SAVE))
    rows = rows[np.argsort(_pair(block.user[rows], key[rows]), kind="stable")]
    time, kind = block.time[rows], block.type[rows]
    new_group = group_starts(block.user[rows], key[rows])
    group = carried_forward(new_group)
    earlier = carried_forward(new_group | group_starts(time)) - 1  # the last row strictly earlier in time

    def last(type_: int, window_days: float) -> NDArray[np.int64]:
        found = carried_forward(kind == type_)[earlier]
        valid = (earlier >= group) & (found >= group) & (time - time[found] <= round(window_days * DAY))
        return np.where(valid, rows[found], -1)

    click, view = last(CLICK, config.click_window_days), last(IMPRESSION, config.view_window_days)
    credited = np.where(click >= 0, click, view)
    touch[rows] = np.where(is_conversion(kind), credited, -1)
    return touch


def _keys(block: EventBlock, advertiser: NDArray[np.int32], config: LabelConfig) -> NDArray[np.int64]:
    if config.attribution_level == "item":
        return block.item.astype(np.int64)
    return np.where(block.item >= 0, advertiser[block.item], -1).astype(np.int64)


def _pair(user: NDArray[np.int32], key: NDArray[np.integer]) -> NDArray[np.int64]:
    return user.astype(np.int64) * (int(key.max(initial=0)) + 1) + key


def _run_ends(starts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each position the last one of its run."""
    first = np.flatnonzero(starts)
    after = np.append(first[1:], len(starts))[: len(first)]  # no run ends where there is none
    return np.repeat(after - 1, after - first)
