"""Reads the canonical tables from a directory or a ``gs://`` prefix, checks every file, and gives one schema.

A table is ``events.parquet``, ``events/`` with part files, or ``events.csv``. Batches are read by column and row group:
nothing here holds a whole table.
"""

import csv
import difflib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from conversion_retrieval.errors import UserError
from conversion_retrieval.schema import EVENTS, ITEMS, USERS, Column, Table, is_embedding, is_number, is_text
from conversion_retrieval.storage import open_store

BATCH_ROWS: Final = 131_072
SUFFIXES: Final = (".parquet", ".csv")


class TableError(UserError):
    """The tables cannot be read as what they should be: a file, column or row is missing, broken or of another type."""


@dataclass(frozen=True, kw_only=True)
class LocatedBatch:
    """Rows in the canonical schema and where they come from; ``first_row`` counts data rows of ``file`` from 0."""

    batch: pa.RecordBatch
    file: Path
    first_row: int


@dataclass(frozen=True, kw_only=True)
class TableReader:
    """The files of one table; opening it has checked every file's columns and types."""

    table: Table
    files: tuple[Path, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """Canonical columns first, in their order and type, then extra columns as the first file has them."""
        canonical = [pa.field(c.name, c.kind) for c in self.table.columns]
        names = {c.name for c in self.table.columns}
        extra = [
            pa.field(f.name, _plain(f.type)) for f in _file_schema(self.files[0], self.table) if f.name not in names
        ]
        return pa.schema(canonical + sorted(extra, key=lambda f: f.name))

    @cached_property
    def present(self) -> frozenset[str]:
        """Columns that at least one file has; the others are null throughout."""
        return frozenset(name for file in self.files for name in _file_schema(file, self.table).names)

    @cached_property
    def num_rows(self) -> int | None:
        """Rows in all files, or None where only reading tells (CSV)."""
        if any(file.suffix == ".csv" for file in self.files):
            return None
        return sum(int(_open_parquet(file).metadata.num_rows) for file in self.files)

    def batches(self, columns: list[str] | None = None) -> Iterator[LocatedBatch]:
        """Rows of all files in file order; only ``columns`` where given. ``TableError`` names the file that breaks."""
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        for file in self.files:
            first_row = 0
            for batch in _file_batches(file, self.table, schema.names):
                yield LocatedBatch(batch=_conform(batch, schema, file, first_row), file=file, first_row=first_row)
                first_row += batch.num_rows

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """All rows at once, for tables that fit in memory."""
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        return pa.Table.from_batches((located.batch for located in self.batches(columns)), schema)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The canonical tables of one data set; ``users`` is None where there is no such table."""

    events: TableReader
    items: TableReader
    users: TableReader | None
    _downloaded: Any = field(default=None, repr=False)  # keeps the temporary copy of a remote data set alive


def read_tables(data_uri: str | Path, *, download_dir: Path | None = None) -> Tables:
    """Find and check the tables below a directory or ``gs://`` prefix.

    Of a ``gs://`` prefix the tables' files, and nothing else below it, are copied in parallel into a temporary
    directory in ``download_dir`` (by default the system's), which goes with the result: it takes as much disk as they.

    Raises ``TableError`` naming file and column for a missing table or column, a wrong type in any part file, a
    time stamp without time zone, an unreadable file, or an empty table; storage errors as ``storage`` does.
    """
    downloaded = None
    directory = Path(str(data_uri).removeprefix("file://"))
    if "://" in str(data_uri) and not str(data_uri).startswith("file://"):
        downloaded = tempfile.TemporaryDirectory(prefix="conversion-retrieval-", dir=download_dir)
        directory = Path(downloaded.name)
        _download(str(data_uri), directory)
    if not directory.is_dir():
        raise TableError(f"expected a directory with the canonical tables at {data_uri}, found none")
    events, items, users = (_find(directory, table, str(data_uri)) for table in (EVENTS, ITEMS, USERS))
    assert events is not None
    assert items is not None
    return Tables(events=events, items=items, users=users, _downloaded=downloaded)


def _download(data_uri: str, directory: Path) -> None:
    store = open_store(data_uri)
    names = {path.name for table in (EVENTS, ITEMS, USERS) for path in _candidates(directory, table.name)}
    wanted = [key for key in store.list() if key.split("/")[0] in names]
    if not wanted:
        raise TableError(f"expected the canonical tables at {data_uri}, found no objects")
    store.download_files(wanted, directory)


def _find(directory: Path, table: Table, where: str) -> TableReader | None:
    candidates = [path for path in _candidates(directory, table.name) if path.exists()]
    if not candidates:
        if not table.required:
            return None
        wanted = f"{table.name}.parquet, {table.name}/ or {table.name}.csv"
        raise TableError(f"expected {wanted} in {where}, found neither")
    if len(candidates) > 1:
        raise TableError(
            f"expected one {table.name} table in {where}, found {' and '.join(p.name for p in candidates)}"
        )
    reader = TableReader(table=table, files=_part_files(candidates[0]))
    _check_files(reader)
    return reader


def _candidates(directory: Path, name: str) -> tuple[Path, ...]:
    return directory / f"{name}.parquet", directory / name, directory / f"{name}.csv"


def _part_files(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    files = sorted(
        p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file() and not p.name.startswith((".", "_"))
    )
    if not files:
        raise TableError(f"expected Parquet or CSV part files in {path}, found none")
    return tuple(files)


def _check_files(reader: TableReader) -> None:
    for file in reader.files:
        _check_columns(_file_schema(file, reader.table), reader, file)
    if reader.num_rows == 0 or (reader.num_rows is None and not any(b.batch.num_rows for b in reader.batches())):
        raise TableError(f"expected rows in the {reader.table.name} table, found none in {reader.files[0]}")


def _check_columns(found: pa.Schema, reader: TableReader, file: Path) -> None:
    table = reader.table
    for column in table.columns:
        if column.name in found.names:
            _check_type(found.field(column.name).type, column, file)
        elif column.required:
            near = difflib.get_close_matches(column.name, found.names, n=1)
            hint = f" (is it {near[0]!r}?)" if near else ""
            raise TableError(f"expected column {column.name} ({column.description}) in {file}, found none{hint}")
    extra = [f for f in found if f.name not in {c.name for c in table.columns}]
    if extra and not table.extra_columns:
        near = difflib.get_close_matches(extra[0].name, [c.name for c in table.columns], n=1)
        hint = f"rename it to {near[0]}" if near else "remove it"
        raise TableError(f"expected only the canonical columns in {file}, found {extra[0].name}: {hint}")
    for extra_field in extra:
        _check_extra(extra_field, reader.schema, file)


def _check_type(found: pa.DataType, column: Column, file: Path) -> None:
    if pa.types.is_null(found) and column.nullable:
        return
    if not column.accepts(found):
        raise TableError(f"expected {column.kind} in column {column.name} of {file}, found {found}")
    if pa.types.is_timestamp(found) and found.tz is None:
        raise TableError(
            f"expected times with a time zone in column {column.name} of {file}, found {found}: convert them to UTC"
        )


def _check_extra(extra: pa.Field, schema: pa.Schema, file: Path) -> None:
    kind = _plain(extra.type)
    if not (is_number(kind) or is_text(kind) or is_embedding(kind) or pa.types.is_boolean(kind)):
        raise TableError(f"expected text, numbers or embeddings in column {extra.name} of {file}, found {extra.type}")
    if extra.name not in schema.names:
        raise TableError(f"expected the columns of the first part file in {file}, found {extra.name} as well")
    if (first := schema.field(extra.name).type) != kind:
        raise TableError(f"expected {first} as in the first part in column {extra.name} of {file}, found {kind}")


def _plain(kind: pa.DataType) -> pa.DataType:
    """The one type that stands for all encodings of the same values."""
    if is_text(kind):
        return pa.string()
    if is_embedding(kind):
        return pa.list_(pa.float32())
    if pa.types.is_floating(kind):
        return pa.float64()
    return pa.int64() if pa.types.is_integer(kind) else kind


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise TableError(
            f"expected a Parquet file at {file}, found an unreadable or truncated one: {_line(error)}"
        ) from None


def _file_schema(file: Path, table: Table) -> pa.Schema:
    if file.suffix == ".csv":
        try:
            return _open_csv(file, table).schema
        except pa.ArrowException as error:
            raise _csv_error(error, file) from None
    return _open_parquet(file).schema_arrow


def _file_batches(file: Path, table: Table, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if file.suffix == ".csv":
        yield from _csv_batches(file, table)
        return
    parquet = _open_parquet(file)
    present = [name for name in columns if name in parquet.schema_arrow.names]
    try:
        yield from parquet.iter_batches(batch_size=BATCH_ROWS, columns=present)
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"expected intact row groups in {file}, found: {_line(error)}") from None


def _open_csv(file: Path, table: Table) -> pa_csv.CSVStreamingReader:
    kinds = {column.name: column.kind for column in table.columns if not is_embedding(column.kind)}
    options = pa_csv.ConvertOptions(column_types=kinds, strings_can_be_null=True, quoted_strings_can_be_null=False)
    return pa_csv.open_csv(file, convert_options=options)


def _csv_batches(file: Path, table: Table) -> Iterator[pa.RecordBatch]:
    try:
        yield from _open_csv(file, table)
    except pa.ArrowException as error:
        raise _csv_error(error, file) from None


def _csv_error(error: Exception, file: Path) -> TableError:
    message = _line(error)
    if match := re.search(r"In CSV column #(\d+): .*invalid value '(.*)'|In CSV column #(\d+): .*in '(.*)'", message):
        number, value = int(match[1] or match[3]), match[2] or match[4]
        return TableError(f"expected readable values in {file}, found in {_csv_place(file, number, value)}: {message}")
    return TableError(f"expected complete CSV lines in {file}, found: {message}")


def _csv_place(file: Path, column: int, value: str) -> str:
    """Name and row of the first such value: Arrow's conversion errors carry no row."""
    with file.open(newline="") as lines:
        rows = csv.reader(lines)
        name = next(rows)[column]
        row = next(
            (number for number, row in enumerate(rows, start=2) if len(row) > column and row[column] == value), 0
        )
    return f"column {name}, row {row}"


def _conform(batch: pa.RecordBatch, schema: pa.Schema, file: Path, first_row: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([_column(batch, want, file, first_row) for want in schema], schema=schema)


def _column(batch: pa.RecordBatch, want: pa.Field, file: Path, first_row: int) -> pa.Array:
    if want.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, want.type)
    values = batch.column(want.name)
    if values.type == want.type:
        return values
    try:
        return pc.cast(values, want.type, safe=not pa.types.is_timestamp(want.type) and not is_embedding(want.type))
    except pa.ArrowException as error:
        rows = f"rows {first_row} to {first_row + batch.num_rows - 1}"
        message = f"expected {want.type} in column {want.name}, {rows} of {file}, found: {_line(error)}"
        raise TableError(message) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
