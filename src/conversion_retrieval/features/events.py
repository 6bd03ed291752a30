"""Reading a snapshot's events: one scan for what is global, then user partitions as integer-coded arrays."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.features.grouped import group_starts
from conversion_retrieval.features.windows import DAY, FOREVER
from conversion_retrieval.schema import EVENT_TYPES

CLICK: Final = EVENT_TYPES.index("click")
IMPRESSION: Final = EVENT_TYPES.index("impression")
SAVE: Final = EVENT_TYPES.index("save")
ADD_TO_CART: Final = EVENT_TYPES.index("add_to_cart")
CHECKOUT: Final = EVENT_TYPES.index("checkout")

COLUMNS: Final = (
    "item_id",
    "event_type",
    "event_time",
    "surface",
    "click_duration_seconds",
    "context_item_id",
    "context_embedding",
    "reported_time",
    "value",
)
MAX_SURFACES: Final = int(np.iinfo(np.int16).max)
SCANNED: Final = ("user_id", "event_type", "event_time", "reported_time", "surface", "click_duration_seconds")


@dataclass(frozen=True, kw_only=True)
class EventScan:
    """What one pass over all events finds out.

    ``user_ids`` in order of appearance (sorted, by the snapshot's contract) with ``offsets`` [U + 1] into the rows;
    ``click_times`` and ``click_durations`` of the clicks that have a duration, for its percentile. At most a thousandth
    of the events lies before ``dense_from``, the first event's time or the start of a day: a few wrong clocks do not
    make a log decades long.
    """

    user_ids: pa.Array
    offsets: NDArray[np.int64]
    surfaces: tuple[str, ...]
    dense_from: int
    last_time: int
    last_available: int
    click_times: NDArray[np.int64]
    click_durations: NDArray[np.float32]

    @property
    def num_events(self) -> int:
        """Rows of the events table."""
        return int(self.offsets[-1])


@dataclass(frozen=True, kw_only=True)
class EventBlock:
    """The events of consecutive users, sorted by user, time and event id; all arrays have E rows.

    ``user`` counts from 0 within the block, its rows are ``offsets[user]:offsets[user + 1]``; ``item`` and
    ``context_item`` are catalogue rows (-1 none); times are microseconds; ``type`` is an index of ``EVENT_TYPES``.
    """

    user: NDArray[np.int32]
    offsets: NDArray[np.int64]
    time: NDArray[np.int64]
    available: NDArray[np.int64]
    type: NDArray[np.int8]
    item: NDArray[np.int32]
    surface: NDArray[np.int16]
    duration: NDArray[np.float64]
    value: NDArray[np.float64]
    context_item: NDArray[np.int32]
    context_embedding: pa.Array

    def __len__(self) -> int:
        """The number of events."""
        return len(self.time)

    def select(self, keep: NDArray[np.bool_]) -> "EventBlock":
        """The block without the events that ``keep`` leaves out; the users stay."""
        if keep.all():
            return self
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        arrays = {
            name: getattr(self, name)[keep]
            for name in ("user", "time", "available", "type", "item", "surface", "duration", "value", "context_item")
        }
        embedding = self.context_embedding.filter(pa.array(keep))
        return EventBlock(offsets=kept_before[self.offsets], context_embedding=embedding, **arrays)


@dataclass(frozen=True, kw_only=True)
class ItemIndex:
    """Catalogue ids in row order and each row's advertiser code."""

    ids: pa.Array
    advertiser: NDArray[np.int32]

    def rows(self, ids: pa.ChunkedArray | pa.Array) -> NDArray[np.int32]:
        """Rows of these ids, -1 where null or unknown."""
        if pc.all(ids.is_null()).as_py():
            return np.full(len(ids), -1, np.int32)
        found = pc.index_in(ids.cast(pa.string()), value_set=self.ids)
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int32)


def event_files(snapshot_dir: Path) -> list[Path]:
    """The part files in order; ``CorruptArtifactError`` if there are none."""
    files = sorted((snapshot_dir / "events").glob("part-*.parquet"))
    if not files:
        raise CorruptArtifactError(f"expected events/part-*.parquet in the snapshot at {snapshot_dir}, found none")
    return files


def scan_events(files: Sequence[Path], *, before: int = FOREVER) -> EventScan:
    """Read the few columns that global facts need, row group by row group; ``UserError`` for too many surfaces.

    Events at or after ``before``, where the log is looked at as of then, make no earlier one a stray.
    """
    users = _UserRuns()
    surfaces: set[str] = set()
    first, last, available = [], [], []
    by_day: Counter[int] = Counter()
    click_times, click_durations = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for table in _row_groups(files, SCANNED):
        users.add(table["user_id"])
        surfaces.update(pc.unique(table["surface"]).drop_null().to_pylist())
        if len(surfaces) > MAX_SURFACES:
            raise UserError(
                f"expected at most {MAX_SURFACES} surfaces in column surface of the events, found more: "
                "write the kind of place there, such as search, rather than each place"
            )
        time = microseconds(table["event_time"])
        first.append(int(time.min()))
        days, counts = np.unique(time[time < before] // DAY, return_counts=True)
        by_day.update(dict(zip(days.tolist(), counts.tolist(), strict=True)))
        last.append(int(time.max()))
        available.append(int(np.maximum(time, microseconds(table["reported_time"], time)).max()))
        timed = pc.and_(pc.equal(table["event_type"], "click"), table["click_duration_seconds"].is_valid())
        timed = timed.to_numpy(zero_copy_only=False).astype(bool)
        click_times.append(time[timed])
        durations = table["click_duration_seconds"].to_numpy(zero_copy_only=False)
        click_durations.append(durations[timed].astype(np.float32))
    if not first:
        raise UserError("expected events in the snapshot, found none")
    user_ids, offsets = users.result()
    return EventScan(
        user_ids=user_ids,
        offsets=offsets,
        surfaces=tuple(sorted(surfaces)),
        dense_from=max(min(first), _dense_from(by_day)) if by_day else min(first),
        last_time=max(last),
        last_available=max(available),
        click_times=np.concatenate(click_times),
        click_durations=np.concatenate(click_durations),
    )


def _dense_from(by_day: Mapping[int, int]) -> int:
    """The start of the first day by whose end more than a thousandth of the events has come, in microseconds."""
    days = np.array(sorted(by_day), np.int64)
    so_far = np.cumsum([by_day[day] for day in days.tolist()])
    return int(days[np.searchsorted(so_far, so_far[-1] // 1000, side="right")]) * DAY


class _UserRuns:
    """Collects the distinct users and their row counts from consecutive pieces of a sorted column."""

    def __init__(self) -> None:
        self._ids: list[pa.Array] = []
        self._lengths: list[NDArray[np.int64]] = []

    def add(self, column: pa.ChunkedArray) -> None:
        encoded = pc.run_end_encode(column.combine_chunks().cast(pa.string()))
        for run in encoded.chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]:
            self._ids.append(run.values)
            self._lengths.append(np.diff(run.run_ends.to_numpy().astype(np.int64), prepend=0))

    def result(self) -> tuple[pa.Array, NDArray[np.int64]]:
        ids, lengths = pa.concat_arrays(self._ids), np.concatenate(self._lengths)
        # A user may straddle pieces: join runs of equal neighbours.
        same = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy(zero_copy_only=False).astype(bool)
        starts = np.flatnonzero(np.r_[True, ~same])
        ids, lengths = ids.take(pa.array(starts)), np.add.reduceat(lengths, starts)
        if len(ids) > 1 and not pc.all(pc.less(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py():
            raise CorruptArtifactError("expected the snapshot's events sorted by user_id, found them out of order")
        return ids, np.concatenate([[0], np.cumsum(lengths)])


def read_block(
    files: Sequence[Path], scan_offsets: NDArray[np.int64], items: ItemIndex, surfaces: Sequence[str]
) -> EventBlock:
    """The events of the users whose row spans ``scan_offsets`` [u + 1] delimits.

    Raises ``UserError`` for events that are not sorted by time within a user or an unknown event type.
    """
    start, end = int(scan_offsets[0]), int(scan_offsets[-1])
    table = pa.concat_tables(_row_range(files, start, end)) if end > start else _empty(files)
    return encode_block(table, scan_offsets - start, items, surfaces)


def encode_block(table: pa.Table, offsets: NDArray[np.int64], items: ItemIndex, surfaces: Sequence[str]) -> EventBlock:
    """Canonical events, those of user u at rows ``offsets[u]:offsets[u + 1]``, as arrays; errors as ``read_block``."""
    time = microseconds(table["event_time"])
    user = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
    _check_sorted(user, time)
    return EventBlock(
        user=user,
        offsets=offsets,
        time=time,
        available=np.maximum(time, microseconds(table["reported_time"], time)),
        type=_codes(table["event_type"], EVENT_TYPES).astype(np.int8) - np.int8(1),
        item=items.rows(table["item_id"]),
        surface=_codes(table["surface"], surfaces),
        duration=_floats(table["click_duration_seconds"]),
        value=_floats(table["value"]),
        context_item=items.rows(table["context_item_id"]),
        context_embedding=_one_chunk(table["context_embedding"]),
    )


def microseconds(column: pa.ChunkedArray, default: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """A timestamp column as int64 microseconds; ``default`` where null."""
    ticks = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    if default is None or ticks.null_count == 0:
        return np.asarray(ticks.to_numpy(), np.int64)
    known = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
    return np.where(known, pc.fill_null(ticks, 0).to_numpy(), default)


def _codes(column: pa.ChunkedArray, values: Sequence[str]) -> NDArray[np.int16]:
    """1 + position in ``values``, 0 where null or absent."""
    if column.null_count == len(column):
        return np.zeros(len(column), np.int16)
    found = pc.index_in(column.cast(pa.string()), value_set=pa.array(list(values), pa.string()))
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False) + 1, np.int16)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def _check_sorted(user: NDArray[np.int32], time: NDArray[np.int64]) -> None:
    if np.any((time[1:] < time[:-1]) & ~group_starts(user)[1:]):
        raise CorruptArtifactError(
            "expected the snapshot's events sorted by time within a user, found them out of order"
        )


def _row_groups(files: Sequence[Path], columns: Sequence[str]) -> Iterator[pa.Table]:
    for path in files:
        with pq.ParquetFile(path) as file:
            for index in range(file.num_row_groups):
                table = _read(path, file, index, columns)
                if table.num_rows:
                    yield table


def _row_range(files: Sequence[Path], start: int, end: int) -> Iterator[pa.Table]:
    """Rows [start, end) of all files, reading only the row groups that overlap."""
    first = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            for index in range(file.num_row_groups):
                count = file.metadata.row_group(index).num_rows
                if first < end and first + count > start:
                    low, high = max(start - first, 0), min(end - first, count)
                    yield _read(path, file, index, COLUMNS).slice(low, high - low)
                first += count


def _empty(files: Sequence[Path]) -> pa.Table:
    schema = pq.read_schema(files[0])
    return pa.table({name: pa.array([], schema.field(name).type) for name in COLUMNS})


def _read(path: Path, file: pq.ParquetFile, index: int, columns: Sequence[str]) -> pa.Table:
    names: list[Any] = file.schema_arrow.names
    if missing := [name for name in columns if name not in names]:
        raise CorruptArtifactError(f"expected column {missing[0]} in {path}, found: {', '.join(names)}")
    return file.read_row_group(index, columns=list(columns))
