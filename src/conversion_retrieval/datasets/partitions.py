"""Events of one user together, however large the log: rows are spread over temporary files by user."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conversion_retrieval.datasets.tables import EVENTS_SCHEMA, write_table

PARTITION_BYTES = 128 << 20
_MAX_PARTITIONS = 256
_TEXT_PER_COMPRESSED_BYTE = 8  # a log's ids and times shrink to between a seventh and a third


def num_partitions(files: list[Path]) -> int:
    """So many that a partition's share of the source text is at most ``PARTITION_BYTES``."""
    text = sum(path.stat().st_size * (1 if path.suffix == ".csv" else _TEXT_PER_COMPRESSED_BYTE) for path in files)
    return min(max(1, -(-text // PARTITION_BYTES)), _MAX_PARTITIONS)


class UserPartitions:
    """Spreads tables over ``count`` files by a column's hash; a context manager that leaves no file behind."""

    def __init__(self, directory: Path, count: int, key: str) -> None:
        self._directory, self._count, self._key = directory, count, key
        self._writers: dict[int, pq.ParquetWriter] = {}

    def __enter__(self) -> "UserPartitions":
        self._directory.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        for path in self._directory.iterdir():
            path.unlink()
        self._directory.rmdir()

    def add(self, table: pa.Table) -> None:
        """Append rows, in order, to their users' partitions."""
        codes = pd.util.hash_array(table[self._key].to_numpy(zero_copy_only=False)) % np.uint64(self._count)
        for code in np.unique(codes).tolist():
            self._write(int(code), table.filter(pa.array(codes == code)))

    def _write(self, code: int, rows: pa.Table) -> None:
        if code not in self._writers:
            self._writers[code] = pq.ParquetWriter(self._directory / f"{code}.parquet", rows.schema, compression="lz4")
        self._writers[code].write_table(rows)

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def read(self) -> Iterator[pd.DataFrame]:
        """One partition after the other; nothing can be added any more."""
        self._close()
        for code in sorted(self._writers):
            yield pq.read_table(self._directory / f"{code}.parquet").to_pandas()
        self._writers = {}


def seconds_to_next(frame: pd.DataFrame, key: str, *, at_most: float = float("inf")) -> NDArray[np.float64]:
    """Seconds [n] from each row's ``time`` to the next row with the same ``key``; NaN if there is none or it is late.

    ``frame`` is sorted by ``key`` and ``time``. A null key has no next.
    """
    apart = frame["time"].shift(-1).sub(frame["time"]).dt.total_seconds()
    same = frame[key] == frame[key].shift(-1)
    return np.asarray(apart.where(same & (apart <= at_most)), dtype=np.float64)


def write_events(directory: Path, part: int, frame: pd.DataFrame) -> None:
    """Write rows as ``events/part-<part>.parquet``; canonical columns that ``frame`` lacks are null."""
    columns = {
        field.name: pa.array(frame[field.name], from_pandas=True).cast(field.type)
        if field.name in frame
        else pa.nulls(len(frame), field.type)
        for field in EVENTS_SCHEMA
    }
    write_table(pa.table(columns, schema=EVENTS_SCHEMA), directory / "events" / f"part-{part:05d}.parquet")


def first_seen(so_far: pd.DataFrame | None, rows: pd.DataFrame, key: str) -> pd.DataFrame:
    """The first value that is not null of every column, by ``key``, over all rows so far."""
    rows = rows.groupby(key, sort=True, as_index=False).first()
    if so_far is None:
        return rows
    return pd.concat([so_far, rows]).groupby(key, sort=True, as_index=False).first()
