"""Writes the cleaned tables: sorted, in parts that end where a user ends, with the same bytes for any input order."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conversion_retrieval.schema import EVENTS
from conversion_retrieval.validation.cleaning import EVENT_COLUMNS, Cleaned

ROW_GROUP: Final = 131_072
EVENT_SCHEMA: Final = pa.schema([(column.name, column.kind) for column in EVENTS.columns])


def write_snapshot(cleaned: Cleaned, directory: Path, *, rows_per_part: int) -> None:
    """Write ``events/part-*.parquet``, ``items.parquet`` and ``users.parquet`` into ``directory``."""
    for reader in (cleaned.tables.items, cleaned.tables.users):
        if reader is not None:
            rows = cleaned.database.sql(f"SELECT * FROM {reader.table.name} ORDER BY {reader.table.key}")
            _write(rows.to_arrow_table().cast(reader.schema), directory / f"{reader.table.name}.parquet")
    (directory / "events").mkdir()
    # One part is encoded and compressed while the database sorts out the rows of the next.
    with ThreadPoolExecutor(max_workers=1) as pool:
        writing: Future[None] | None = None
        for number, part in enumerate(_parts(_sorted_events(cleaned), rows_per_part)):
            if writing is not None:
                writing.result()
            writing = pool.submit(_write, part, directory / "events" / f"part-{number:05d}.parquet")
        if writing is not None:
            writing.result()


def _sorted_events(cleaned: Cleaned) -> Iterator[pa.Table]:
    query = f"SELECT {', '.join(EVENT_COLUMNS)} FROM kept ORDER BY user_id, event_time, event_id"
    for batch in cleaned.database.sql(query).to_arrow_reader(ROW_GROUP):
        yield pa.Table.from_batches([batch]).cast(EVENT_SCHEMA)


def _parts(batches: Iterator[pa.Table], rows_per_part: int) -> Iterator[pa.Table]:
    """Regroup sorted rows: each part is the shortest run of whole users with at least ``rows_per_part`` rows."""
    pending = EVENT_SCHEMA.empty_table()
    written = False
    for batch in batches:
        pending = pa.concat_tables([pending, batch])
        while (end := _user_end(pending, rows_per_part)) is not None:
            yield pending.slice(0, end)
            pending, written = pending.slice(end), True
    if pending.num_rows or not written:
        yield pending


def _user_end(rows: pa.Table, at_least: int) -> int | None:
    """Where the user of row ``at_least - 1`` ends, or None while that is not known."""
    if rows.num_rows <= at_least:
        return None
    user = rows["user_id"][at_least - 1]
    if rows["user_id"][-1] == user:  # sorted: nobody else's row is in between, however many there are
        return None
    return at_least + int(pc.index(pc.not_equal(rows["user_id"].slice(at_least), user), True).as_py())


def _write(table: pa.Table, path: Path) -> None:
    # One chunk: where the input's batches began must not show in the pages.
    pq.write_table(table.combine_chunks(), path, row_group_size=ROW_GROUP, compression="zstd", compression_level=1)
