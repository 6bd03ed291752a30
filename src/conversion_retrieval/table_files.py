"""The files of tables, in a directory or below a ``gs://`` prefix: finding them, and reading them batch by batch.

Parquet is read where it lies, by column and row group; CSV of a bucket is copied first, for it has neither.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from conversion_retrieval.csv_tables import csv_batches, csv_schema
from conversion_retrieval.errors import TableError, one_line
from conversion_retrieval.remote_parquet import PARALLEL_READS, ReadAhead, RemoteParquet, fetch_footers
from conversion_retrieval.schema import Table
from conversion_retrieval.storage import ObjectInfo, ObjectStore, open_store

BATCH_ROWS: Final = 131_072
BUFFER_BYTES: Final = 2**20
SUFFIXES: Final = (".parquet", ".csv")
UNREAD: Final = re.compile(r"\.(parquet|csv)(\.(gz|bz2|zst|lz4|br|zip))?$", re.IGNORECASE)
TableFile = Path | RemoteParquet


def local_files(directory: Path, names: Iterable[str]) -> dict[str, tuple[TableFile, ...]]:
    """The part files of every one of ``names`` (files or directories) that is there, sorted."""
    found = (directory / name for name in names if (directory / name).exists())
    return {path.name: (path,) if path.is_file() else _parts(path) for path in found}


def _parts(directory: Path) -> tuple[TableFile, ...]:
    keys = {p: p.relative_to(directory).as_posix() for p in sorted(directory.rglob("*"))}
    for path, key in keys.items():
        if path.is_symlink() and not path.is_file() and not _is_hidden(key):
            raise TableError(
                f"expected part files in {directory}, found {key}, a link to a directory or to nothing: "
                "put what it leads to in its place, or remove it"
            )
    return tuple(path for path, key in keys.items() if path.is_file() and _is_part(key, str(directory)))


def _is_hidden(key: str) -> bool:
    """What Spark and its like have not committed, or keep for themselves, has a dot or an underscore in front."""
    return any(part.startswith((".", "_")) for part in key.split("/"))


def _is_part(key: str, where: str) -> bool:
    """Whether ``key`` below a table's directory is one of its files; ``TableError`` for rows that would go unread."""
    if _is_hidden(key):
        return False
    if not key.endswith(SUFFIXES) and UNREAD.search(key):
        raise TableError(
            f"expected part files ending in .parquet or .csv in {where}, found {key}: unpack, rename or remove it"
        )
    return key.endswith(SUFFIXES)


def remote_files(
    uri: str, names: Iterable[str], *, download_dir: Path | None
) -> tuple[dict[str, tuple[TableFile, ...]], tempfile.TemporaryDirectory[str] | None]:
    """As ``local_files``, below a ``gs://`` prefix, and the temporary directory that holds copies of CSV objects.

    All footers are read here, in parallel. Storage errors as ``storage`` raises them.
    """
    store, wanted = open_store(uri), set(names)
    infos = [info for info in store.describe() if info.key.split("/")[0] in wanted]
    split = ((info, *info.key.partition("/")) for info in infos)
    parts = [info for info, table, _, key in split if not key or _is_part(key, f"{store.uri}/{table}")]
    copies = _copied_csv(store, [info for info in parts if info.key.endswith(".csv")], download_dir)
    pool = ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="read-parquet")
    found: dict[str, tuple[TableFile, ...]] = {info.key.split("/")[0]: () for info in infos}
    for info in parts:
        file = Path(copies.name, info.key) if copies and info.key.endswith(".csv") else None
        found[info.key.split("/")[0]] += (file or RemoteParquet(store=store, info=info, pool=pool),)
    fetch_footers(file for files in found.values() for file in files if isinstance(file, RemoteParquet))
    return found, copies


def _copied_csv(
    store: ObjectStore, infos: Sequence[ObjectInfo], download_dir: Path | None
) -> tempfile.TemporaryDirectory[str] | None:
    if not infos:
        return None
    copies = tempfile.TemporaryDirectory(prefix="conversion-retrieval-", dir=download_dir)
    store.download_files(infos, Path(copies.name))
    return copies


def file_schema(file: TableFile, table: Table) -> pa.Schema:
    """Names and types of a file's columns, null where it has no rows; ``TableError`` for one that cannot be read."""
    if isinstance(file, Path) and file.suffix == ".csv":
        return csv_schema(file, table)
    parquet = open_parquet(file)
    schema = parquet.schema_arrow
    return schema if parquet.metadata.num_rows else pa.schema([f.with_type(pa.null()) for f in schema])


def num_rows(files: Sequence[TableFile]) -> int | None:
    """Rows in all files, or None where only reading tells (CSV)."""
    if any(file.suffix == ".csv" for file in files):
        return None
    return sum(int(open_parquet(file).metadata.num_rows) for file in files)


def open_parquet(file: TableFile) -> pq.ParquetFile:
    """A Parquet file of which nothing but the footer has been read; ``TableError`` where that fails."""
    try:
        if isinstance(file, RemoteParquet):
            return file.open()
        # Without buffering a whole column chunk is read at once, with pre-buffering all of the file is kept.
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise TableError(
            f"expected a Parquet file at {file}, found an unreadable or truncated one: {one_line(error)}"
        ) from None


def read_files(
    files: Sequence[TableFile], table: Table, columns: Sequence[str]
) -> Iterator[tuple[TableFile, pa.RecordBatch]]:
    """All rows in file order, with those of ``columns`` that a file has (of CSV all); ``TableError`` names the file."""
    with ExitStack() as opened:
        remote = [file for file in files if isinstance(file, RemoteParquet)]
        ahead = opened.enter_context(ReadAhead(remote, columns)) if remote else None
        for file in files:
            if isinstance(file, Path) and file.suffix == ".csv":
                yield from ((file, batch) for batch in csv_batches(file, table))
            else:
                yield from ((file, batch) for batch in _parquet_batches(file, columns, ahead))


def _parquet_batches(file: TableFile, columns: Sequence[str], ahead: ReadAhead | None) -> Iterator[pa.RecordBatch]:
    parquet = open_parquet(file)
    present = [name for name in columns if name in parquet.schema_arrow.names]
    whole = [(parquet, list(range(parquet.num_row_groups)))]
    try:
        for part, groups in ahead.parts(file) if ahead and isinstance(file, RemoteParquet) else whole:
            yield from part.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=present)
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"expected intact row groups in {file}, found: {one_line(error)}") from None
