"""Partition results to the artifact's files, in an order and in pieces that no partitioning can change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.array_files import GrowingArray, concatenate_arrays
from conversion_retrieval.features.grouped import expand

QUERIES_PER_GROUP: Final = 262_144
POSITIVE_COLUMNS: Final = {
    "item": pa.int32(),
    "event_type": pa.int8(),
    "task": pa.int8(),
    "weight": pa.float32(),
    "attributed": pa.bool_(),
    "new_to_user": pa.bool_(),
    "value": pa.float32(),
}


def load(directory: Path, name: str) -> NDArray[Any]:
    """A partition's array, memory mapped where it has bytes to map."""
    array: NDArray[Any] = np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array


def write_history(directories: Sequence[Path], events_dir: Path, user_rows: NDArray[np.int64], num_users: int) -> None:
    """Write ``events/``: the partitions' histories one after the other, with an offset for every user."""
    events_dir.mkdir()
    kinds = {"item": np.int32, "action": np.int8, "surface": np.int16, "time": np.int64, "available": np.int64}
    for name, kind in kinds.items():
        sources = [directory / "history" / f"{name}.npy" for directory in directories]
        concatenate_arrays(sources, events_dir / f"{name}.npy", kind)
    lengths = np.zeros(num_users, np.int64)
    lengths[user_rows] = np.concatenate([load(d / "history", "lengths") for d in directories])
    np.save(events_dir / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]), allow_pickle=False)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One partition's share of a split: which of its queries are kept and where its history begins."""

    directory: Path
    rows: NDArray[np.int64]
    history_base: int


@dataclass(frozen=True, kw_only=True)
class QueryOrder:
    """The order of a split's queries over all partitions: (partition, row within it) for each output row."""

    sources: tuple[Source, ...]
    partition: NDArray[np.int32]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.row)


def order_queries(directories: Sequence[Path], name: str, *, limit: int = 0) -> QueryOrder:
    """Sort a split's queries by time and user; beyond ``limit`` keep those with the lowest seeded scores (0 is all)."""
    ends = np.cumsum([0, *(int(load(d / "history", "lengths").sum()) for d in directories)])
    folders = [directory / name for directory in directories]
    highest = _score_limit(folders, limit)
    kept = [np.flatnonzero(load(folder / "queries", "score") <= highest) for folder in folders]
    sources = tuple(
        Source(directory=folder, rows=rows, history_base=int(base))
        for folder, rows, base in zip(folders, kept, ends[:-1], strict=True)
    )
    time = np.concatenate([load(s.directory / "queries", "time")[s.rows] for s in sources])
    user = np.concatenate([load(s.directory / "queries", "user")[s.rows] for s in sources])
    partition = np.repeat(np.arange(len(sources), dtype=np.int32), [len(rows) for rows in kept])
    # Stable, and a user lies in one partition, so each user's queries keep their order by surface and context.
    order = np.lexsort((user, time))
    return QueryOrder(sources=sources, partition=partition[order], row=np.concatenate(kept)[order])


def _score_limit(folders: Sequence[Path], limit: int) -> np.uint64:
    scores = np.concatenate([load(folder / "queries", "score") for folder in folders])
    if not limit or len(scores) <= limit:
        return np.uint64(2**64 - 1)
    return np.uint64(np.partition(scores, limit - 1)[limit - 1])


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """Writes a split's files group by group and keeps count."""

    directory: Path
    snapshot_times: NDArray[np.int64]
    num_aggregates: int

    def write(self, order: QueryOrder) -> None:
        """Write queries, positives, hard negatives and context embeddings."""
        self.directory.mkdir()
        dim = _context_dim(order.sources)
        written = 0
        with (
            GrowingArray(self.directory / "context_embeddings.npy", np.float32, (dim,)) as embeddings,
            _writer(self.directory / "queries.parquet", self._query_schema()) as queries,
            _writer(self.directory / "positives.parquet", POSITIVES_SCHEMA) as positives,
            _writer(self.directory / "hard_negatives.parquet", HARD_NEGATIVES_SCHEMA) as negatives,
        ):
            for first in range(0, len(order), QUERIES_PER_GROUP):
                group = _Group(order, first, min(first + QUERIES_PER_GROUP, len(order)))
                vectors, index = group.context_embeddings(dim)
                queries.write_table(self._queries(group, np.where(index >= 0, index + written, -1)))
                embeddings.append(vectors)
                written += len(vectors)
                positives.write_table(group.labels("positives", POSITIVES_SCHEMA))
                negatives.write_table(group.labels("hard_negatives", HARD_NEGATIVES_SCHEMA))

    def _query_schema(self) -> pa.Schema:
        aggregates = pa.list_(pa.float32(), self.num_aggregates)
        return pa.schema([*QUERY_FIELDS, pa.field("user_aggregates", aggregates)])

    def _queries(self, group: "_Group", context_embedding: NDArray[np.int64]) -> pa.Table:
        time = group.column("time")
        flat = pa.array(group.column("user_aggregates").reshape(-1), pa.float32())
        arrays = {
            "user": group.column("user"),
            "time": time,
            "surface": group.column("surface"),
            "snapshot": (np.searchsorted(self.snapshot_times, time, side="right") - 1).astype(np.int16),
            "context_item": group.column("context_item"),
            "context_embedding": context_embedding.astype(np.int32),
            "history_end": group.history_end(),
        }
        aggregates = pa.FixedSizeListArray.from_arrays(flat, self.num_aggregates)
        columns = [pa.array(values) for values in arrays.values()]
        return pa.table([*columns, aggregates], schema=self._query_schema())


class _Group:
    """Output rows [first, end) of a split: contiguous pieces of each partition, put in order."""

    def __init__(self, order: QueryOrder, first: int, end: int) -> None:
        partition, row = order.partition[first:end], order.row[first:end]
        self._first = first
        # Rows of a partition appear in increasing order in the output, so pieces are slices in order.
        by_partition = np.argsort(partition, kind="stable")
        self._position = by_partition  # output position of each gathered row
        counts = np.bincount(partition, minlength=len(order.sources))
        ends = np.cumsum(counts)
        self._pieces = [
            (source, row[by_partition[high - count : high]])
            for source, count, high in zip(order.sources, counts, ends, strict=True)
            if count
        ]

    def column(self, name: str) -> NDArray[Any]:
        """A query column in output order."""
        return self._ordered([load(s.directory / "queries", name)[rows] for s, rows in self._pieces])

    def history_end(self) -> NDArray[np.int64]:
        """History ends as positions in the merged event arrays."""
        pieces = [load(s.directory / "queries", "history_end")[rows] + s.history_base for s, rows in self._pieces]
        return self._ordered(pieces)

    def context_embeddings(self, dim: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Vectors in output order [n, C], and each query's row among them, -1 none."""
        index = self._ordered([_context_rows(s, rows) for s, rows in self._pieces])
        vectors = [_context_vectors(s, rows, dim) for s, rows in self._pieces]
        has = index >= 0
        gathered = np.concatenate([np.zeros((0, dim), np.float32), *vectors])
        # The gathered vectors follow partition order; bring them into output order.
        positions = self._position[has[self._position]]
        numbers = np.full(len(index), -1)
        numbers[has] = np.arange(int(has.sum()))
        result = np.empty_like(gathered)
        result[numbers[positions]] = gathered
        return result, numbers

    def labels(self, kind: str, schema: pa.Schema) -> pa.Table:
        """Rows of positives or hard negatives of these queries, sorted by query."""
        query, parts = [], []
        done = 0
        for source, rows in self._pieces:
            offsets = np.searchsorted(load(source.directory / kind, "query"), np.stack([rows, rows + 1]))
            counts = offsets[1] - offsets[0]
            parts.append((source, expand(offsets[0], counts)))
            query.append(np.repeat(self._position[done : done + len(rows)], counts))
            done += len(rows)
        joined = np.concatenate(query) if query else np.empty(0, np.int64)
        order = np.argsort(joined, kind="stable")
        columns = {
            name: np.concatenate([load(s.directory / kind, name)[rows] for s, rows in parts])[order]
            for name in schema.names
            if name != "query"
        }
        arrays = [pa.array(joined[order] + self._first, pa.int64()), *(pa.array(columns[n]) for n in schema.names[1:])]
        return pa.table(arrays, schema=schema)

    def _ordered(self, pieces: Sequence[NDArray[Any]]) -> NDArray[Any]:
        gathered = np.concatenate(pieces)
        result = np.empty_like(gathered)
        result[self._position] = gathered
        return result


QUERY_FIELDS: Final = (
    pa.field("user", pa.int32()),
    pa.field("time", pa.int64()),
    pa.field("surface", pa.int16()),
    pa.field("snapshot", pa.int16()),
    pa.field("context_item", pa.int32()),
    pa.field("context_embedding", pa.int32()),
    pa.field("history_end", pa.int64()),
)
POSITIVES_SCHEMA: Final = pa.schema([("query", pa.int64()), *POSITIVE_COLUMNS.items()])
HARD_NEGATIVES_SCHEMA: Final = pa.schema([("query", pa.int64()), ("item", pa.int32())])


def _context_rows(source: Source, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of each query's vector among the partition's vectors, -1 none."""
    with_context = load(source.directory / "queries", "context_rows")
    if len(with_context) == 0:
        return np.full(len(rows), -1)
    at = np.minimum(np.searchsorted(with_context, rows), len(with_context) - 1)
    return np.where(with_context[at] == rows, at, -1)


def _context_vectors(source: Source, rows: NDArray[np.int64], dim: int) -> NDArray[np.float32]:
    index = _context_rows(source, rows)
    vectors = load(source.directory / "queries", "context_embeddings")
    return vectors[index[index >= 0]] if len(vectors) else np.zeros((0, dim), np.float32)


def _context_dim(sources: Sequence[Source]) -> int:
    shapes = [load(s.directory / "queries", "context_embeddings").shape for s in sources]
    dims = sorted({width for count, width in shapes if count})
    if len(dims) > 1:
        raise UserError(f"expected vectors of one length in events.context_embedding, found lengths {dims[:5]}")
    return dims[0] if dims else 0


class _writer:  # noqa: N801 - a context manager used like a function
    """A Parquet writer with this project's fixed settings."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=1)

    def __enter__(self) -> pq.ParquetWriter:
        return self._writer

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def chunks(order: QueryOrder, name: str) -> Iterator[NDArray[Any]]:
    """A query column of a whole split, in order, a group at a time."""
    for first in range(0, len(order), QUERIES_PER_GROUP):
        yield _Group(order, first, min(first + QUERIES_PER_GROUP, len(order))).column(name)
