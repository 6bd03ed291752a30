"""Reading built features: raw on disk, encoded on opening by this run's spec or by another's (the champion's)."""

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from conversion_retrieval.contracts import read_manifest
from conversion_retrieval.errors import CorruptArtifactError, UserError, one_line
from conversion_retrieval.features.inputs import EntityTable, QueryArrays
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.features.windows import DAY, SPLITS
from conversion_retrieval.schema import EVENT_TYPES, KNOWN_EVENTS

RECENT_SNAPSHOTS: Final = 4
COUNT: Final = re.compile(r"(?P<kind>\w+?)_(?:count|decayed)_.+")  # a performance figure of a kind of event


@dataclass(frozen=True, kw_only=True)
class Positives:
    """The positives of a split in CSR form: those of query q are ``offsets[q]:offsets[q + 1]``, sorted by item."""

    offsets: NDArray[np.int64]
    query: NDArray[np.int64]
    item: NDArray[np.int32]
    event_type: NDArray[np.int8]
    task: NDArray[np.int8]
    weight: NDArray[np.float32]
    attributed: NDArray[np.bool_]
    new_to_user: NDArray[np.bool_]
    value: NDArray[np.float32]

    def __len__(self) -> int:
        """The number of positives."""
        return len(self.item)


@dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """Served items without engagement in CSR form: those of query q are ``item[offsets[q]:offsets[q + 1]]``."""

    offsets: NDArray[np.int64]
    query: NDArray[np.int64]
    item: NDArray[np.int32]

    def __len__(self) -> int:
        """The number of hard negatives."""
        return len(self.item)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The labelled queries of one window, one row each, sorted by time and user.

    ``surface`` holds the spec's codes (0 unknown). ``history_end`` points past the last event that the query may see
    in the flat event arrays of the spec's histories, ``other_known_end`` in ``FeatureDataset.known_events``, None where
    those are the same. ``user_aggregates`` [Q, A] are raw; ``FeatureDataset.query_arrays`` normalises them.
    """

    name: str
    user: NDArray[np.int32]
    time: NDArray[np.int64]
    surface: NDArray[np.int16]
    snapshot: NDArray[np.int16]
    context_item: NDArray[np.int32]
    context_embedding: NDArray[np.int32]
    history_end: NDArray[np.int64]
    user_aggregates: NDArray[np.float32]
    context_embeddings: NDArray[np.float32]
    positives: Positives
    hard_negatives: HardNegatives
    other_known_end: NDArray[np.int64] | None = None

    @property
    def known_end(self) -> NDArray[np.int64]:
        """Past the last event that each query may know of all that users did, [Q]."""
        return self.history_end if self.other_known_end is None else self.other_known_end

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.user)


@dataclass(frozen=True, kw_only=True)
class Events:
    """Every user's history events, flat; those of user u are ``offsets[u]:offsets[u + 1]``, oldest first."""

    item: NDArray[np.int32]
    action: NDArray[np.int8]
    surface: NDArray[np.int16]
    time: NDArray[np.int64]
    available: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def empty(cls) -> "Events":
        """No users."""
        kinds = {"item": np.int32, "action": np.int8, "surface": np.int16, "time": np.int64, "available": np.int64}
        return cls(offsets=np.zeros(1, np.int64), **{name: np.empty(0, kind) for name, kind in kinds.items()})


def windows_before(values: NDArray[Any], end: NDArray[np.int64], length: int) -> NDArray[Any]:
    """``values[end - length:end]`` for each of ``end`` [B], a copy: [B, length].

    What would lie before the first value is zero or any value: callers must mask it.
    """
    if not length:
        return np.empty((len(end), 0), values.dtype)
    if len(values) < length:
        missing = length - len(values)
        return windows_before(np.pad(values, (missing, 0)), end + missing, length)
    start = end - length
    # One copy a window is several times as fast as an index for every value.
    taken: NDArray[Any] = sliding_window_view(values, length)[np.maximum(start, 0)]
    early = np.flatnonzero(start < 0)
    taken[early] = values[np.maximum(start[early, None] + np.arange(length), 0)]
    return taken


@dataclass(frozen=True, kw_only=True)
class Performance:
    """Item performance at each snapshot time, rows with a non-zero value only."""

    times: NDArray[np.int64]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    values: NDArray[np.float32]

    @classmethod
    def empty(cls) -> "Performance":
        """No snapshots."""
        times, offsets = np.empty(0, np.int64), np.zeros(1, np.int64)
        return cls(times=times, offsets=offsets, items=np.empty(0, np.int32), values=np.empty((0, 0), np.float32))


@dataclass(frozen=True, kw_only=True)
class FeatureDataset:
    """A features artifact seen through a spec."""

    directory: Path
    spec: FeatureSpec
    metadata: dict[str, Any]
    digest: str
    item_ids: pa.StringArray
    user_ids: pa.StringArray
    item_table: pa.Table
    user_table: pa.Table
    item_advertiser: NDArray[np.int32]
    items: EntityTable
    users: EntityTable
    events: Events
    stored_performance: Performance
    surface_codes: NDArray[np.int16]  # stored surface code -> this spec's
    event_positions: NDArray[np.int64] | None = field(default=None, repr=False)
    # What users did, whichever of it the spec's histories hold; None where those are the same.
    other_known_events: Events | None = field(default=None, repr=False)
    known_positions: NDArray[np.int64] | None = field(default=None, repr=False)
    # Training asks for the performance at one of a few snapshots with every batch.
    recent_performance: dict[int, tuple[NDArray[np.int32], NDArray[np.float32]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def open(cls, features_dir: Path | str, spec: FeatureSpec) -> "FeatureDataset":
        """Open features and encode them with ``spec``, whichever run it came from.

        Columns, surfaces, aggregates and performance figures are matched by name: what the features lack is missing
        (0, with the missing indicator set for numeric columns), what the spec does not name is left out. File contents
        are not verified here: a stage does that once with ``contracts.open_artifact``.
        """
        directory = Path(features_dir)
        manifest = read_manifest(directory, kind="features")
        metadata = json.loads((directory / "features.json").read_text())
        items, users = pq.read_table(directory / "items.parquet"), pq.read_table(directory / "users.parquet")
        stored, actions = _open_events(directory / "events", users.num_rows), metadata["history_events"]
        events, positions = _only_actions(stored, actions, spec.history_events)
        same = {*spec.history_events} & {*actions} == {*KNOWN_EVENTS} & {*actions}
        known, known_positions = (None, None) if same else _only_actions(stored, actions, KNOWN_EVENTS)
        return cls(
            directory=directory,
            spec=spec,
            metadata=metadata,
            digest=manifest.digest,
            item_ids=_strings(items["item_id"]),
            user_ids=_strings(users["user_id"]),
            item_table=items,
            user_table=users,
            item_advertiser=items["advertiser"].to_numpy().astype(np.int32),
            items=spec.encode_items(items),
            users=spec.encode_users(users),
            events=events,
            stored_performance=_open_performance(directory / "performance"),
            surface_codes=_surface_codes(metadata["surfaces"], spec.surfaces),
            event_positions=positions,
            other_known_events=known,
            known_positions=known_positions,
        )

    @classmethod
    def of_catalogue(
        cls, items: pa.Table, spec: FeatureSpec, metadata: dict[str, Any], directory: Path
    ) -> "FeatureDataset":
        """A dataset of items alone, for serving: queries bring their own events and user columns."""
        users = pa.table({"user_id": pa.array([], pa.string())})
        return cls(
            directory=directory,
            spec=spec,
            metadata=metadata,
            digest="",
            item_ids=_strings(items["item_id"]),
            user_ids=_strings(users["user_id"]),
            item_table=items,
            user_table=users,
            item_advertiser=items["advertiser"].to_numpy().astype(np.int32),
            items=spec.encode_items(items),
            users=spec.encode_users(users),
            events=Events.empty(),
            stored_performance=Performance.empty(),
            surface_codes=_surface_codes(metadata["surfaces"], spec.surfaces),
        )

    @property
    def known_events(self) -> Events:
        """What users did (``KNOWN_EVENTS``), whichever of it the spec's histories hold."""
        return self.events if self.other_known_events is None else self.other_known_events

    @property
    def missing_figures(self) -> list[str]:
        """What the spec's model reads of items, users and histories that these features were built without.

        Counts of events that the training window does not hold at all are no such: they are zero, as the model sees.
        """
        built = self.metadata["item_performance"]
        counted = {figure["kind"] for figure in map(COUNT.fullmatch, built) if figure}
        asked = {
            "item_performance": [
                statistic.name
                for statistic in self.spec.item_performance
                if (figure := COUNT.fullmatch(statistic.name)) and figure["kind"] in counted
            ],
            "user_aggregates": [statistic.name for statistic in self.spec.user_aggregates],
            "history_events": list(self.spec.history_events),
        }
        return [f"{kind}.{name}" for kind, names in asked.items() for name in names if name not in self.metadata[kind]]

    @property
    def num_items(self) -> int:
        """Items in the catalogue."""
        return len(self.item_ids)

    @property
    def num_users(self) -> int:
        """Users with events or attributes."""
        return len(self.user_ids)

    @property
    def num_snapshots(self) -> int:
        """Snapshots of item performance; the last is the newest, for serving."""
        return len(self.stored_performance.times)

    def split(self, name: str) -> Split:
        """The split called ``train``, ``validation``, ``test`` or ``recent``."""
        return _open_split(self, name)

    def split_directory(self, name: str) -> Path:
        """Where a split's files are. Raises ``UserError`` for one that there is not, or was not in another release."""
        if name not in SPLITS:
            raise UserError(f"expected one of {', '.join(SPLITS)}, found {name!r}")
        directory = self.directory / name
        if not directory.is_dir():
            raise UserError(f"expected the split {name!r} at {directory}, found none: build the features again")
        return directory

    def query_arrays(self, split: Split, rows: NDArray[np.integer], history_length: int | None = None) -> QueryArrays:
        """What the query tower sees for the queries at ``rows`` [B], with the last ``history_length`` events each."""
        length = self.spec.history_length if history_length is None else history_length
        user = split.user[rows]
        return QueryArrays(
            surface=split.surface[rows].astype(np.int64),
            context_item=split.context_item[rows].astype(np.int64),
            context_embedding=self._context_embeddings(split, rows),
            users=self.users.rows(user),
            user_aggregates=self.spec.normalize_aggregates(
                split.user_aggregates[rows], self.metadata["user_aggregates"]
            ),
            **self.history_arrays(user, split.history_end[rows], split.time[rows], length),
        )

    def history_arrays(
        self, user: NDArray[np.integer], end: NDArray[np.int64], time: NDArray[np.int64], length: int
    ) -> dict[str, NDArray[Any]]:
        """The windows of ``length`` events before ``end``, [B, length] each, as keywords of ``QueryArrays``."""
        first = self.events.offsets[np.maximum(user, 0)]
        end = np.where(user >= 0, end, first)
        padding = np.arange(length, 0, -1) > (end - first)[:, None]

        def window(values: NDArray[Any], kind: type, missing: int) -> NDArray[Any]:
            taken: NDArray[Any] = values.astype(kind, copy=False)
            np.copyto(taken, missing, where=padding)
            return taken

        surface = self.surface_codes[windows_before(self.events.surface, end, length)]
        age = (time[:, None] - windows_before(self.events.time, end, length)) / DAY
        return {
            "history_item": window(windows_before(self.events.item, end, length), np.int64, -1),
            "history_action": window(windows_before(self.events.action, end, length), np.int64, 0),
            "history_surface": window(surface, np.int64, 0),
            "history_age_days": window(age, np.float32, 0),
        }

    def performance(self, snapshot: int) -> NDArray[np.float32]:
        """Normalised performance [N, F] of all items at a snapshot; -1 is before the first."""
        items, values = self._normalized_rows(int(snapshot))
        dense = np.repeat(self._no_performance, self.num_items, axis=0)
        dense[items] = values
        return dense

    def performance_rows(self, items: NDArray[np.integer], snapshot: int) -> NDArray[np.float32]:
        """Normalised performance [B, F] of the items at these rows; -1 is an unknown item."""
        stored, values = self._normalized_rows(int(snapshot))
        result = np.repeat(self._no_performance, len(items), axis=0)
        if len(stored):
            # Of another type, ``stored`` would be copied to it: all of the catalogue for a few items.
            at = np.minimum(np.searchsorted(stored, items.astype(stored.dtype)), len(stored) - 1)
            found = stored[at] == items
            result[found] = values[at[found]]
        return result

    def user_rows(self, user_ids: pa.Array) -> NDArray[np.int64]:
        """Rows of these users, -1 where unknown."""
        return _index(user_ids, self.user_ids)

    def item_rows(self, item_ids: pa.Array) -> NDArray[np.int64]:
        """Rows of these items, -1 where the catalogue lacks them."""
        return _index(item_ids, self.item_ids)

    def _context_embeddings(self, split: Split, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        result = np.zeros((len(rows), self.spec.context_embedding_dim), np.float32)
        index = split.context_embedding[rows]
        if split.context_embeddings.shape[1] != self.spec.context_embedding_dim:
            return result
        result[index >= 0] = split.context_embeddings[index[index >= 0]]
        return result

    def _normalized_rows(self, snapshot: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Items with performance at a snapshot and their normalised values; the last few snapshots are remembered."""
        if (known := self.recent_performance.get(snapshot)) is not None:
            return known
        stored = self.stored_performance
        start, end = (stored.offsets[snapshot], stored.offsets[snapshot + 1]) if snapshot >= 0 else (0, 0)
        values = self.spec.normalize_performance(stored.values[start:end], self.metadata["item_performance"])
        rows = np.asarray(stored.items[start:end]), values
        for oldest in list(self.recent_performance)[: 1 - RECENT_SNAPSHOTS]:
            self.recent_performance.pop(oldest, None)  # another thread may have been faster
        self.recent_performance[snapshot] = rows
        return rows

    @cached_property
    def _no_performance(self) -> NDArray[np.float32]:
        names = self.metadata["item_performance"]
        return self.spec.normalize_performance(np.zeros((1, len(names)), np.float32), names)


def _open_split(dataset: FeatureDataset, name: str) -> Split:
    directory = dataset.split_directory(name)
    queries = pq.read_table(directory / "queries.parquet")
    count = queries.num_rows

    def column(key: str, kind: type) -> NDArray[Any]:
        return np.asarray(queries[key].to_numpy(), kind)

    return Split(
        name=name,
        user=column("user", np.int32),
        time=column("time", np.int64),
        surface=dataset.surface_codes[column("surface", np.int16)],
        snapshot=column("snapshot", np.int16),
        context_item=column("context_item", np.int32),
        context_embedding=column("context_embedding", np.int32),
        history_end=_moved(column("history_end", np.int64), dataset.event_positions),
        other_known_end=None
        if dataset.other_known_events is None
        else _moved(column("history_end", np.int64), dataset.known_positions),
        user_aggregates=_matrix(queries["user_aggregates"], len(dataset.metadata["user_aggregates"])),
        context_embeddings=np.load(directory / "context_embeddings.npy", mmap_mode="r", allow_pickle=False),
        positives=_open_positives(directory / "positives.parquet", count),
        hard_negatives=_open_hard_negatives(directory / "hard_negatives.parquet", count),
    )


def _open_positives(path: Path, num_queries: int) -> Positives:
    table = pq.read_table(path)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return Positives(offsets=_csr_offsets(columns["query"], num_queries), **columns)


def _open_hard_negatives(path: Path, num_queries: int) -> HardNegatives:
    table = pq.read_table(path)
    query = table["query"].to_numpy()
    return HardNegatives(offsets=_csr_offsets(query, num_queries), query=query, item=table["item"].to_numpy())


def _csr_offsets(query: NDArray[np.int64], num_queries: int) -> NDArray[np.int64]:
    return np.searchsorted(query, np.arange(num_queries + 1)).astype(np.int64)


def _open_events(directory: Path, num_users: int) -> Events:
    events = Events(**{name: _open_array(directory / f"{name}.npy") for name in Events.__dataclass_fields__})
    if len(events.offsets) != num_users + 1:
        raise CorruptArtifactError(
            f"expected {num_users + 1} offsets in {directory}, found {len(events.offsets)}: build the features again"
        )
    return events


def _open_performance(directory: Path) -> Performance:
    return Performance(**{name: _open_array(directory / f"{name}.npy") for name in Performance.__dataclass_fields__})


def _open_array(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(f"expected an array at {path}, found: {one_line(error)}") from None
    return array


def _only_actions(
    events: Events, stored: list[str], wanted: tuple[str, ...]
) -> tuple[Events, NDArray[np.int64] | None]:
    """Drop events of kinds that the spec's histories leave out; also how many are kept before each position."""
    if set(stored) <= set(wanted):
        return events, None
    keep = np.isin(events.action, [EVENT_TYPES.index(name) + 1 for name in wanted])
    kept_before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
    columns = {name: getattr(events, name)[keep] for name in ("item", "action", "surface", "time", "available")}
    return Events(offsets=kept_before[events.offsets], **columns), kept_before


def _moved(history_end: NDArray[np.int64], positions: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return history_end if positions is None else positions[history_end]


def _surface_codes(stored: list[str], wanted: tuple[str, ...]) -> NDArray[np.int16]:
    codes = {name: code for code, name in enumerate(wanted, start=1)}
    return np.array([0, *(codes.get(name, 0) for name in stored)], np.int16)


def _matrix(column: pa.ChunkedArray, width: int) -> NDArray[np.float32]:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32, copy=False).reshape(-1, width) if width else np.zeros((len(column), 0), np.float32)


def _strings(column: pa.ChunkedArray) -> pa.StringArray:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def _index(wanted: pa.Array, known: pa.Array) -> NDArray[np.int64]:
    found = pc.fill_null(pc.index_in(wanted, value_set=known), -1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)
