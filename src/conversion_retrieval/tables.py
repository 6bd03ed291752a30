"""Reads the canonical tables from a directory or a ``gs://`` prefix, checks every file, and gives one schema.

A table is ``events.parquet``, ``events/`` with part files, or ``events.csv``. Batches are read by column and row group:
nothing here holds a whole table.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from conversion_retrieval.errors import TableError, one_line
from conversion_retrieval.schema import (
    EVENTS,
    ITEMS,
    TABLES,
    USERS,
    Column,
    Table,
    is_embedding,
    is_key,
    is_number,
    is_text,
)
from conversion_retrieval.table_files import TableFile, file_schema, local_files, num_rows, read_files, remote_files

PANDAS_INDEX: Final = re.compile(r"__index_level_\d+__")


@dataclass(frozen=True, kw_only=True)
class LocatedBatch:
    """Rows in the canonical schema and where they come from; ``first_row`` counts data rows of ``file`` from 0."""

    batch: pa.RecordBatch
    file: TableFile
    first_row: int


@dataclass(frozen=True, kw_only=True)
class TableReader:
    """The files of one table; opening it has checked every file's columns and types."""

    table: Table
    files: tuple[TableFile, ...]
    _copies: Any = field(default=None, repr=False)  # keeps the temporary copies of remote CSV files alive

    @cached_property
    def schema(self) -> pa.Schema:
        """Canonical columns first, in their order and type, then the extra columns of the first file."""
        canonical = [pa.field(c.name, c.kind) for c in self.table.columns]
        names = {c.name for c in self.table.columns}
        extra = [f for f in file_schema(self.files[0], self.table) if f.name not in names]
        kinds = {f.name: self.found_type(f.name) if pa.types.is_null(f.type) else f.type for f in extra}
        return pa.schema(canonical + [pa.field(name, _plain(kind)) for name, kind in sorted(kinds.items())])

    def found_type(self, name: str) -> pa.DataType:
        """A column's type in the first file that has values of it: without any, pandas writes the type null."""
        kinds = (f.type for file in self.files for f in file_schema(file, self.table) if f.name == name)
        return next((kind for kind in kinds if not pa.types.is_null(kind)), pa.null())

    @cached_property
    def present(self) -> frozenset[str]:
        """Columns that at least one file has; the others are null throughout."""
        return frozenset(name for file in self.files for name in file_schema(file, self.table).names)

    @cached_property
    def num_rows(self) -> int | None:
        """Rows in all files, or None where only reading tells (CSV)."""
        return num_rows(self.files)

    def batches(self, columns: list[str] | None = None) -> Iterator[LocatedBatch]:
        """Rows of all files in file order; only ``columns`` where given, and only their bytes are read or fetched.

        ``TableError`` names the file that breaks; storage errors as ``storage`` raises them.
        """
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        first_row: Counter[TableFile] = Counter()
        for file, batch in read_files(self.files, self.table, schema.names):
            rows = _conform(batch, schema, file, first_row[file])
            yield LocatedBatch(batch=rows, file=file, first_row=first_row[file])
            first_row[file] += batch.num_rows

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


def read_tables(data_uri: str | Path, *, download_dir: Path | None = None) -> Tables:
    """Find and check the tables below a directory or ``gs://`` prefix.

    Of a ``gs://`` prefix, Parquet is read in place by ranges, as of the generations found now; CSV is copied into a
    temporary directory in ``download_dir`` (by default the system's), which goes with the result.

    Raises ``TableError`` naming file and column for a missing table or column, a wrong type in any part file, a
    time stamp without time zone, an unreadable file, or an empty table; storage errors as ``storage`` does.
    """
    uri = str(data_uri).removeprefix("file://")
    names = [candidate for table in TABLES for candidate in _candidates(table.name)]
    copies = None
    if "://" in uri:
        found, copies = remote_files(uri, names, download_dir=download_dir)
        if not found:
            raise TableError(f"expected the canonical tables at {uri}, found no objects")
    elif not Path(uri).is_dir():
        raise TableError(f"expected a directory with the canonical tables at {uri}, found none")
    else:
        found = local_files(Path(uri), names)
    events, items, users = (_reader(table, found, uri, copies) for table in (EVENTS, ITEMS, USERS))
    assert events is not None
    assert items is not None
    return Tables(events=events, items=items, users=users)


def _candidates(name: str) -> tuple[str, ...]:
    return f"{name}.parquet", name, f"{name}.csv"


def _reader(table: Table, found: Mapping[str, tuple[TableFile, ...]], where: str, copies: Any) -> TableReader | None:
    candidates = [name for name in _candidates(table.name) if name in found]
    if not candidates:
        if not table.required:
            return None
        wanted = f"{table.name}.parquet, {table.name}/ or {table.name}.csv"
        raise TableError(f"expected {wanted} in {where}, found neither")
    if len(candidates) > 1:
        raise TableError(f"expected one {table.name} table in {where}, found {' and '.join(candidates)}")
    if not found[candidates[0]]:
        raise TableError(f"expected Parquet or CSV part files in {where}/{candidates[0]}, found none")
    reader = TableReader(table=table, files=found[candidates[0]], _copies=copies)
    _check_files(reader)
    return reader


def _check_files(reader: TableReader) -> None:
    """Look at every file, so that all faults are counted and mended at once."""
    schemas: dict[TableFile, pa.Schema] = {}
    faults: list[TableError] = []
    for file in reader.files:
        try:
            schemas[file] = file_schema(file, reader.table)
        except TableError as error:
            faults.append(error)
    if not faults and reader.num_rows == 0:
        faults.append(_no_rows(reader))
    for file, schema in () if faults else schemas.items():
        try:
            _check_columns(schema, reader, file)
        except TableError as error:
            faults.append(error)
    if faults:
        more = f" ({len(faults) - 1} more files with a fault)" if len(faults) > 1 else ""
        raise TableError(f"{faults[0]}{more}", files=len(faults))
    if reader.num_rows is None and not any(located.batch.num_rows for located in reader.batches()):
        raise _no_rows(reader)


def _no_rows(reader: TableReader) -> TableError:
    return TableError(f"expected rows in the {reader.table.name} table, found none in {reader.files[0]}")


def _check_columns(found: pa.Schema, reader: TableReader, file: TableFile) -> None:
    table = reader.table
    canonical = {column.name for column in table.columns}
    _check_names(found.names, file)
    if reserved := [name for name in found.names if name in table.reserved_columns]:
        raise TableError(
            f"expected no {table.name} column called {reserved[0]} in {file}, a name that the features use: rename it"
        )
    for column in table.columns:
        if column.name in found.names:
            _check_type(found.field(column.name).type, column, reader, file)
        elif column.required:
            near = difflib.get_close_matches(column.name, set(found.names) - canonical, n=1)
            hint = f" (is it {near[0]!r}?)" if near else ""
            raise TableError(f"expected column {column.name} ({column.description}) in {file}, found none{hint}")
    extra = [f for f in found if f.name not in canonical]
    if extra and not table.extra_columns:
        near = difflib.get_close_matches(extra[0].name, [c.name for c in table.columns], n=1)
        hint = f"rename it to {near[0]}" if near else "remove it"
        raise TableError(f"expected only the canonical columns in {file}, found {extra[0].name}: {hint}")
    for extra_field in extra:
        _check_extra(extra_field, reader.schema, file)


def _check_names(names: list[str], file: TableFile) -> None:
    """Names that somebody gave and that the database of the checks, which tells no case, can tell apart."""
    if "" in names:
        raise TableError(
            f"expected a name for every column of {file}, found none for column {names.index('') + 1}: "
            "name or remove it"
        )
    if index := [name for name in names if PANDAS_INDEX.fullmatch(name)]:
        raise TableError(
            f"expected a name for every column of {file}, found {index[0]}, as pandas calls an index without a name: "
            "write it with index=False"
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise TableError(f"expected every column of {file} once, found {repeated[0]} more often: rename or remove it")
    same: dict[str, str] = {}
    for name in names:
        if (first := same.setdefault(name.lower(), name)) != name:
            raise TableError(
                f"expected columns of {file} that differ in more than case, found {first} and {name}: "
                "rename or remove one"
            )


def _check_type(found: pa.DataType, column: Column, reader: TableReader, file: TableFile) -> None:
    if pa.types.is_null(found) and (column.nullable or not pa.types.is_null(reader.found_type(column.name))):
        return
    if not column.accepts(found):
        wanted = f"{column.kind} or integer" if column.accepts is is_key else f"{column.kind}"
        raise TableError(f"expected {wanted} in column {column.name} of {file}, found {found}")
    if pa.types.is_timestamp(found) and found.tz is None:
        raise TableError(
            f"expected times with a time zone in column {column.name} of {file}, found {found}: convert them to UTC"
        )


def _check_extra(extra: pa.Field, schema: pa.Schema, file: TableFile) -> None:
    kind = _plain(extra.type)
    if pa.types.is_null(kind) and extra.name in schema.names and not pa.types.is_null(schema.field(extra.name).type):
        return
    if pa.types.is_null(kind):
        first_rows = " in its first megabyte: put a row that has one first, or" if file.suffix == ".csv" else ":"
        raise TableError(f"expected values in column {extra.name} of {file}, found none{first_rows} leave it out")
    if not (is_number(kind) or is_text(kind) or is_embedding(kind) or pa.types.is_boolean(kind)):
        raise TableError(
            f"expected text, integers, floats, booleans or lists of floats in column {extra.name} of {file}, "
            f"found {extra.type}: convert it or leave it out"
        )
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


def _conform(batch: pa.RecordBatch, schema: pa.Schema, file: TableFile, first_row: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([_column(batch, want, file, first_row) for want in schema], schema=schema)


def _column(batch: pa.RecordBatch, want: pa.Field, file: TableFile, first_row: int) -> pa.Array:
    if want.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, want.type)
    values = batch.column(want.name)
    if values.type == want.type:
        return values
    if pa.types.is_timestamp(values.type) and values.type.unit == "ms":
        values = _within_microseconds(values)
    try:
        return pc.cast(values, want.type, safe=not pa.types.is_timestamp(want.type) and not is_embedding(want.type))
    except pa.ArrowException as error:
        rows = f"rows {first_row} to {first_row + batch.num_rows - 1}"
        message = f"expected {want.type} in column {want.name}, {rows} of {file}, found: {one_line(error)}"
        raise TableError(message) from None


def _within_microseconds(times: pa.Array) -> pa.Array:
    """Times in milliseconds, those beyond what microseconds can hold as the nearest: a cast would wrap them around.

    The nearest are far outside of the years that the row rules let through.
    """
    last = (2**63 - 1) // 1_000
    ticks = pc.min_element_wise(times.cast(pa.int64()), last, skip_nulls=False)
    return pc.max_element_wise(ticks, -last, skip_nulls=False).cast(times.type)
