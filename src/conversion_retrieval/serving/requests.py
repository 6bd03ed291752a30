"""Retrieval requests: what a caller may ask, and the events and user columns that come with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from conversion_retrieval.schema import EVENTS

MAX_K: Final = 1000
EVENT_SCHEMA: Final = pa.schema([(column.name, column.kind) for column in EVENTS.columns])


@dataclass(frozen=True, kw_only=True)
class Request:
    """One query: a user at ``time`` (microseconds since the epoch, UTC) on a surface, with a context.

    ``k`` candidates are wanted; ``exclude_seen`` leaves out the items of the user's history, ``advertiser_cap`` allows
    at most so many items of one advertiser (0: no cap).
    """

    user_id: str
    time: int
    surface: str | None = None
    context_item_id: str | None = None
    context_embedding: tuple[float, ...] | None = None
    k: int = 100
    exclude_seen: bool = False
    advertiser_cap: int = 0


@dataclass(frozen=True, kw_only=True)
class UserEvents:
    """Events of some users: those of ``user_ids[u]`` are rows ``offsets[u]:offsets[u + 1]`` of ``table``.

    ``table`` has the canonical columns, sorted by user, time and event id, without duplicates. ``users`` holds a row of
    user columns for each user, null where unknown, or is None where there is no users table.
    """

    user_ids: tuple[str, ...]
    offsets: NDArray[np.int64]
    table: pa.Table
    users: pa.Table | None = None
    positions: Mapping[str, int] = field(default_factory=dict, repr=False)
    user_positions: Mapping[str, int] = field(default_factory=dict, repr=False)  # in ``users``

    @classmethod
    def of_table(cls, events: pa.Table, users: pa.Table | None = None) -> "UserEvents":
        """Group raw canonical events; of rows that repeat an event id or a user the first by content counts, as in
        training.
        """
        events = _by_content(events, "user_id", "event_time", "event_id")
        users = None if users is None else _by_content(users, "user_id")
        events = events.filter(pa.array(_first_of_each(events["event_id"])))
        runs = pa.compute.run_end_encode(events["user_id"].combine_chunks())
        ids = tuple(value for run in _chunks(runs) for value in run.values.to_pylist())
        lengths = [np.diff(run.run_ends.to_numpy().astype(np.int64), prepend=0) for run in _chunks(runs)]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]))]).astype(np.int64)
        positions = {user_id: row for row, user_id in enumerate(ids)}
        rows = () if users is None else enumerate(users["user_id"].to_pylist())
        first_rows = {user_id: row for row, user_id in reversed([*rows])}
        return cls(
            user_ids=ids, offsets=offsets, table=events, users=users, positions=positions, user_positions=first_rows
        )

    def of_users(self, user_ids: Sequence[str]) -> "UserEvents":
        """The events of these users, in this order; a user without events has none."""
        spans = [self._span(user_id) for user_id in user_ids]
        tables = [self.table.slice(start, end - start) for start, end in spans]
        offsets = np.concatenate([[0], np.cumsum([end - start for start, end in spans])]).astype(np.int64)
        table = pa.concat_tables([self.table.slice(0, 0), *tables])
        return UserEvents(user_ids=tuple(user_ids), offsets=offsets, table=table, users=self.user_rows(user_ids))

    def _span(self, user_id: str) -> tuple[int, int]:
        position = self.positions.get(user_id)
        return (0, 0) if position is None else (int(self.offsets[position]), int(self.offsets[position + 1]))

    def user_rows(self, user_ids: Sequence[str]) -> pa.Table | None:
        """A row of user columns for each of these users, null where unknown; None without a users table."""
        if self.users is None:
            return None
        return self.users.take(pa.array([self.user_positions.get(user_id) for user_id in user_ids], pa.int64()))


def inline_events(histories: Iterable[Sequence[Mapping[str, Any]]], users: pa.Table | None = None) -> UserEvents:
    """Events that requests carry themselves, one history a request; missing canonical columns are null."""
    rows, lengths = [], []
    for number, history in enumerate(histories):
        ordered = sorted(history, key=lambda event: event["event_time"])
        rows += [{"user_id": str(number), "event_id": f"{number}-{i}", **event} for i, event in enumerate(ordered)]
        lengths.append(len(ordered))
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int64)
    table = pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)
    return UserEvents(user_ids=tuple(map(str, range(len(lengths)))), offsets=offsets, table=table, users=users)


def _by_content(table: pa.Table, *keys: str) -> pa.Table:
    """Rows sorted by ``keys``, equal ones by their other columns, but for vectors, which have no order here."""
    others = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    return table.sort_by([(name, "ascending") for name in dict.fromkeys([*keys, *others])])


def _first_of_each(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    encoded = column.combine_chunks().dictionary_encode()
    codes = np.concatenate([np.empty(0, np.int64), *(c.indices.to_numpy() for c in _chunks(encoded))])
    first = np.zeros(len(codes), bool)
    first[np.unique(codes, return_index=True)[1]] = True
    return first


def _chunks(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    return array.chunks if isinstance(array, pa.ChunkedArray) else [array]
