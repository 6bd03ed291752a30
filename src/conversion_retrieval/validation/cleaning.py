"""Loads the tables into an on-disk database and applies the row rules: what is dropped, what is repaired.

DuckDB joins, sorts and groups more rows than fit in memory. Every rule depends on contents only, never on row order:
where one of several rows is kept, it is the first of them sorted by all columns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa

from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.processors import usable_processors
from conversion_retrieval.progress import meter
from conversion_retrieval.schema import EVENT_TYPES, EVENTS
from conversion_retrieval.tables import LocatedBatch, TableReader, Tables
from conversion_retrieval.validation.time_order import TimeOrder

EVENT_COLUMNS: Final = tuple(column.name for column in EVENTS.columns)
REQUIRED: Final = tuple(column.name for column in EVENTS.columns if column.required)
DROP_RULES: Final = (
    *(f"null_{name}" for name in REQUIRED),
    "unknown_event_type",
    "unreadable_event_time",
    "future_dated",
    "orphan_item",
    "exact_duplicate",
    "conflicting_duplicate",
)
FIRST_TIME: Final = "TIMESTAMPTZ '0001-01-01 00:00:00+00'"
LAST_TIME: Final = "TIMESTAMPTZ '9999-12-31 23:59:59.999999+00'"
"""What the features can write as dates; exclusive, for windows end a microsecond after the last time."""
FINITE: Final = "list_transform(context_embedding, lambda x: coalesce(isfinite(x), false))"
REPAIRS: Final = {
    "bad_click_duration": "NOT (click_duration_seconds >= 0 AND isfinite(click_duration_seconds))",
    "click_duration_elsewhere": "click_duration_seconds IS NOT NULL AND event_type <> 'click'",
    "bad_value": "NOT (value >= 0 AND isfinite(value))",
    "reported_before_event": "reported_time < event_time",
    "unreadable_reported_time": f"reported_time < {FIRST_TIME} OR reported_time >= {LAST_TIME}",
    "bad_context_embedding": f"NOT list_bool_and({FINITE})",
}
REPAIRED_COLUMNS: Final = {
    "click_duration_seconds": ("bad_click_duration", "click_duration_elsewhere"),
    "value": ("bad_value",),
    "reported_time": ("reported_before_event", "unreadable_reported_time"),
    "context_embedding": ("bad_context_embedding",),
}
"""Repairs set the column to null: missing rather than wrong."""


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """The database after cleaning.

    It has ``events`` (canonical columns, ``drop_rule`` null where kept, ``repairs`` as a bit mask, ``file``, ``row``),
    the view ``kept`` of the rows to keep, ``items``, and ``users`` where given, with unique keys; ``raw_items`` and
    ``raw_users`` are those before, with ``place_columns``. Events after ``latest`` were future-dated.
    """

    database: duckdb.DuckDBPyConnection
    tables: Tables
    time_order: TimeOrder
    latest: datetime

    def rows(self, query: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
        """A query's result as dictionaries."""
        result = self.database.execute(query, parameters or [])
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def value(self, query: str) -> Any:
        """The first value of a query's first row."""
        row = self.database.execute(query).fetchone()
        assert row is not None
        return row[0]


@contextmanager
def open_database(working_dir: Path, *, memory_mb: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database file in ``working_dir`` that spills beyond ``memory_mb``; times are in UTC.

    ``UserError`` for a limit so low that even that does not help, and for a directory without room.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_mb}MB",
        "temp_directory": str(working_dir / "spill"),
        "preserve_insertion_order": "false",
        "threads": str(usable_processors()),
        "autoinstall_known_extensions": "false",
    }
    connection = duckdb.connect(str(working_dir / "validation.duckdb"), config=config)
    try:
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        yield connection
    except duckdb.OutOfMemoryException:
        raise UserError(f"expected validation.memory_mb to be enough, found {memory_mb}: raise it") from None
    except duckdb.IOException as error:
        raise UserError(
            f"expected room for a database of the tables' size in {working_dir}, found: {one_line(error)}: "
            "write the report where there is more"
        ) from None
    finally:
        connection.close()


def clean(database: duckdb.DuckDBPyConnection, tables: Tables, *, latest: datetime) -> Cleaned:
    """Load all tables; events after ``latest`` are future-dated. ``TableError`` if a file cannot be read to its end."""
    _load_entities(database, tables.items)
    if tables.users is not None:
        _load_entities(database, tables.users)
    time_order = TimeOrder()
    _load_events(database, tables.events, latest, time_order)
    _mark_duplicates(database)
    database.execute("CREATE VIEW kept AS SELECT * FROM events WHERE drop_rule IS NULL")
    return Cleaned(database=database, tables=tables, time_order=time_order, latest=latest)


def _load_entities(database: duckdb.DuckDBPyConnection, reader: TableReader) -> None:
    name, key = reader.table.name, reader.table.key
    required = " AND ".join(f"{quoted(column.name)} IS NOT NULL" for column in reader.table.columns)
    with _incoming(database, reader):
        database.execute(f"CREATE TABLE raw_{name} AS SELECT * FROM incoming")
    order = ", ".join(map(quoted, dict.fromkeys([key, *reader.schema.names])))
    place = ", ".join(map(quoted, place_columns(reader)))
    database.execute(
        f"CREATE TABLE {name} AS SELECT DISTINCT ON ({key}) * EXCLUDE ({place}) FROM raw_{name} "
        f"WHERE {required} ORDER BY {order}"
    )


def _load_events(
    database: duckdb.DuckDBPyConnection, reader: TableReader, latest: datetime, time_order: TimeOrder
) -> None:
    types = ", ".join(f"'{name}'" for name in EVENT_TYPES)
    nulls = " ".join(f"WHEN {name} IS NULL THEN 'null_{name}'" for name in REQUIRED)
    present = {column: rules for column, rules in REPAIRED_COLUMNS.items() if column in reader.present}
    broken = {rule for rules in present.values() for rule in rules}
    bits = " + ".join(
        [
            "0",
            *(
                f"({1 << n} * coalesce({REPAIRS[rule]}, false)::INT)"
                for n, rule in enumerate(REPAIRS)
                if rule in broken
            ),
        ]
    )
    repaired = ", ".join(_repaired(column, rules) for column, rules in present.items())
    replaced = f"incoming.* REPLACE ({repaired})" if repaired else "incoming.*"
    with _incoming(database, reader, time_order.observe):
        database.execute(
            f"""
            CREATE TABLE events AS
            SELECT {replaced}, ({bits})::UTINYINT AS repairs,
                CASE {nulls} WHEN event_type NOT IN ({types}) THEN 'unknown_event_type'
                    WHEN event_time < {FIRST_TIME} THEN 'unreadable_event_time'
                    WHEN event_time > ? THEN 'future_dated' WHEN known.key IS NULL THEN 'orphan_item' END AS drop_rule
            FROM incoming LEFT JOIN (SELECT item_id AS key FROM items) known ON incoming.item_id = known.key
            """,
            [latest],
        )


def _repaired(column: str, rules: tuple[str, ...]) -> str:
    broken = " OR ".join(f"coalesce({REPAIRS[rule]}, false)" for rule in rules)
    return f"CASE WHEN {broken} THEN NULL ELSE {column} END AS {column}"


def _mark_duplicates(database: duckdb.DuckDBPyConnection) -> None:
    """Of the rows with one ``event_id`` the first in content order stays: equal rows are exact, others conflicting."""
    order = ", ".join(dict.fromkeys(["user_id", "event_time", *EVENT_COLUMNS]))
    database.execute(
        f"""
        CREATE TEMP TABLE doomed AS
        WITH repeated AS (SELECT event_id FROM events WHERE drop_rule IS NULL GROUP BY event_id HAVING count(*) > 1),
        ranked AS (
            SELECT rowid AS id, event_id, row_number() OVER same AS number, rank() OVER same AS content_rank
            FROM events WHERE drop_rule IS NULL AND event_id IN (FROM repeated)
            WINDOW same AS (PARTITION BY event_id ORDER BY {order})
        )
        SELECT id, CASE WHEN number = content_rank THEN 'conflicting_duplicate' ELSE 'exact_duplicate' END AS rule
        FROM ranked WHERE number > 1
        """
    )
    database.execute("UPDATE events SET drop_rule = doomed.rule FROM doomed WHERE events.rowid = doomed.id")


@contextmanager
def _incoming(
    database: duckdb.DuckDBPyConnection,
    reader: TableReader,
    observe: Callable[[LocatedBatch], None] = lambda _: None,
) -> Iterator[None]:
    """The rows of a table as ``incoming``, readable once; a file that breaks on the way raises its own error."""
    failures: list[UserError] = []
    database.register(
        "incoming", pa.RecordBatchReader.from_batches(_located_schema(reader), _located(reader, failures, observe))
    )
    try:
        yield
    except duckdb.Error:
        if failures:
            raise failures[0] from None
        raise
    finally:
        database.unregister("incoming")


def place_columns(reader: TableReader) -> tuple[str, str]:
    """The names of a row's file and number beside the table's own columns, which may be called ``file`` and ``row``."""
    own = {name.lower() for name in reader.schema.names}  # the database tells no case
    file, row = "file", "row"
    while {file, row} & own:
        file, row = f"{file}_", f"{row}_"
    return file, row


def _located_schema(reader: TableReader) -> pa.Schema:
    file, row = place_columns(reader)
    return reader.schema.append(pa.field(file, pa.int32())).append(pa.field(row, pa.int64()))


def _located(
    reader: TableReader, failures: list[UserError], observe: Callable[[LocatedBatch], None]
) -> Iterator[pa.RecordBatch]:
    """All rows with the number of their file and their row in it, read as they are asked for."""
    schema = _located_schema(reader)
    numbers = {file: number for number, file in enumerate(reader.files)}
    try:
        with meter(f"Reading {reader.table.name}", total=reader.num_rows, unit="rows") as progress:
            for part in reader.batches():
                observe(part)
                size = part.batch.num_rows
                file = pa.repeat(pa.scalar(numbers[part.file], pa.int32()), size)
                row = pa.array(np.arange(part.first_row, part.first_row + size))
                yield pa.RecordBatch.from_arrays([*part.batch.columns, file, row], schema=schema)
                progress.advance(size)
    except UserError as error:  # a table's or the storage's
        failures.append(error)
        raise


def quoted(name: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
