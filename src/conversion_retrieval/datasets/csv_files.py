"""Public logs as CSV: streamed as text with line numbers, so that every dropped row can be named."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from conversion_retrieval.datasets.report import ImportReport
from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.progress import meter
from conversion_retrieval.schema import TIMESTAMP

BLOCK_BYTES = 16 << 20
LINE = "line"


def find_csv_files(source: Path | None, pattern: str, *, dataset: str, hint: str) -> list[Path]:
    """The file ``source``, or the files of the directory ``source`` that match ``pattern``, in order of their names."""
    if source is None:
        raise UserError(f"{dataset} is not part of a package, expected a source: {hint}")
    source = Path(source)
    if not source.exists():
        raise UserError(f"expected {dataset} at {source}, found no such file or directory: {hint}")
    if source.is_file():
        return [source]
    files = sorted(path for path in source.glob(pattern) if path.is_file()) if source.is_dir() else []
    if not files:
        raise UserError(f"expected {pattern} for {dataset} at {source}, found none: {hint}")
    return files


def read_csv(
    path: Path, columns: tuple[str, ...], report: ImportReport, *, whole_last_value: str = ""
) -> Iterator[pa.Table]:
    """Yield blocks of ``columns`` as strings (empty is null), with each row's line number in ``line``.

    Rows with too many or too few values are dropped and counted. A file that does not end with a line end may have
    been cut off: its last line is dropped too if its last value does not match the regular expression
    ``whole_last_value``. Raises ``UserError`` if the file is missing, empty, unreadable, or lacks a column.
    """
    invalid: list[csv.InvalidRow] = []

    def skip(row: csv.InvalidRow) -> str:
        invalid.append(row)
        return "skip"

    try:
        names = _header(path)
        if missing := [name for name in columns if name not in names]:
            raise UserError(f"expected column {missing[0]!r} in {path}, found: {', '.join(names)}")
        blocks = _blocks(path, columns, names, skip)
        yield from _numbered(blocks, path, report, invalid, names[-1], whole_last_value)
    except FileNotFoundError:
        raise UserError(f"expected a CSV file at {path}, found none") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"expected readable CSV at {path}, found: {one_line(error)}") from None


def _header(path: Path) -> list[str]:
    read = csv.ReadOptions(use_threads=False, block_size=1 << 20)
    parse = csv.ParseOptions(invalid_row_handler=lambda _: "skip")
    with csv.open_csv(path, read_options=read, parse_options=parse) as reader:
        return list(reader.schema.names)


def _blocks(path: Path, columns: tuple[str, ...], names: list[str], skip: object) -> Iterator[pa.RecordBatch]:
    wanted = [*columns, *(name for name in names[-1:] if name not in columns)]
    # One thread: with more, pyarrow does not tell which line a bad row is.
    with csv.open_csv(
        path,
        read_options=csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        parse_options=csv.ParseOptions(invalid_row_handler=skip, ignore_empty_lines=False),
        convert_options=csv.ConvertOptions(
            include_columns=wanted,
            column_types={name: pa.string() for name in wanted},
            strings_can_be_null=True,
            null_values=[""],
        ),
    ) as reader:
        yield from reader


def _numbered(
    blocks: Iterable[pa.RecordBatch],
    path: Path,
    report: ImportReport,
    invalid: list[csv.InvalidRow],
    last_column: str,
    whole_last_value: str,
) -> Iterator[pa.Table]:
    valid = 0
    cut_off = _lacks_line_end(path)
    previous: pa.Table | None = None
    report.read(path.name, 0)
    with meter(f"reading {path.name}", unit="rows") as progress:
        for block in blocks:
            if previous is not None:
                yield previous
            lines = _line_numbers(valid, len(block), [row.number for row in invalid])
            valid += len(block)
            previous = pa.Table.from_batches([block]).append_column(LINE, pa.array(lines))
            progress.advance(len(block))
    report.read(path.name, valid + len(invalid))
    _count_invalid(path, report, invalid, valid, cut_off=cut_off)
    if previous is not None:
        yield _without_cut_line(previous, path, report, last_column, whole_last_value if cut_off else "")


def _line_numbers(first: int, count: int, invalid: list[int]) -> NDArray[np.int64]:
    """Lines of the ``count`` valid rows from number ``first`` on; line 1 is the header."""
    valid_before = np.asarray(invalid, dtype=np.int64) - 2 - np.arange(len(invalid))
    rows = np.arange(first, first + count)
    lines: NDArray[np.int64] = rows + 2 + np.searchsorted(valid_before, rows, side="right")
    return lines


def _lacks_line_end(path: Path) -> bool:
    if path.suffix in (".gz", ".bz2", ".zst"):
        return False
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - 1, 0))
        return file.read(1) not in (b"\n", b"\r", b"")


def _count_invalid(
    path: Path, report: ImportReport, invalid: list[csv.InvalidRow], valid: int, *, cut_off: bool
) -> None:
    last_line = valid + len(invalid) + 1
    for row in invalid:
        example = f"line {row.number}: {row.actual_columns} of {row.expected_columns}"
        if cut_off and row.number == last_line:
            report.drop(path.name, "the last line is cut off", 1, example)
        else:
            report.drop(path.name, "wrong number of values", 1, example)


def _without_cut_line(
    table: pa.Table, path: Path, report: ImportReport, column: str, whole_last_value: str
) -> pa.Table:
    if not whole_last_value or not len(table):
        return table
    value = table[column][-1].as_py()
    if value is not None and pc.match_substring_regex(pa.scalar(value), f"^(?:{whole_last_value})$").as_py():
        return table
    report.drop(path.name, "the last line is cut off", 1, f"line {table[LINE][-1]}: {column} {value!r}")
    return table.slice(0, len(table) - 1)


def keep_rows(
    table: pa.Table, mask: pa.ChunkedArray, reason: str, *, file: str, column: str, report: ImportReport
) -> pa.Table:
    """The rows where ``mask`` is true; the others are counted, with the line and ``column`` value of the first."""
    mask = pc.fill_null(mask, False)
    num_dropped = len(table) - (pc.sum(mask).as_py() or 0)
    if not num_dropped:
        return table
    first = table.filter(pc.invert(mask)).slice(0, 1)
    found = first[column][0].as_py()
    report.drop(file, reason, num_dropped, f"line {first[LINE][0]}: {column} {found!r}")
    return table.filter(mask)


def keep_digits(
    table: pa.Table, columns: tuple[str, ...], *, file: str, report: ImportReport, at_most: int = 19
) -> pa.Table:
    """The rows whose ``columns`` all hold whole numbers of ``at_most`` digits (kept as strings)."""
    for column in columns:
        mask = pc.match_substring_regex(table[column], f"^[0-9]{{1,{at_most}}}$")
        table = keep_rows(table, mask, f"{column} is not a whole number", file=file, column=column, report=report)
    return table


def keep_numbers(table: pa.Table, column: str, *, file: str, report: ImportReport) -> pa.Table:
    """The rows whose ``column`` is empty or a decimal number; the column as float64."""
    text = table[column]
    mask = pc.or_(pc.is_null(text), pc.match_substring_regex(text, r"^[0-9]+(\.[0-9]*)?$"))
    table = keep_rows(table, mask, f"{column} is not a number", file=file, column=column, report=report)
    return table.set_column(table.schema.get_field_index(column), column, table[column].cast(pa.float64()))


def keep_known(table: pa.Table, column: str, meaning: dict[str, str], *, file: str, report: ImportReport) -> pa.Table:
    """The rows whose ``column`` is a key of ``meaning``, replaced by what it means."""
    position = pc.index_in(table[column], pa.array(list(meaning)))
    reason = f"{column} is none of {', '.join(meaning)}"
    table = keep_rows(table, pc.is_valid(position), reason, file=file, column=column, report=report)
    position = pc.index_in(table[column], pa.array(list(meaning)))
    means = pa.chunked_array([pa.array(list(meaning.values()))]).take(position)
    return table.set_column(table.schema.get_field_index(column), column, means)


def parse_times(text: pa.ChunkedArray, *, format: str, day: str) -> pa.ChunkedArray:
    """UTC times; null where ``text`` is not in ``format`` or no date of the calendar.

    ``day`` is a regular expression with a group of that name: the parser takes 31 June for 1 July, so the day that it
    found is compared with the one that is written.
    """
    time = pc.strptime(text, format=format, unit="us", error_is_null=True)
    written = pc.struct_field(pc.extract_regex(text, day), "day").cast(pa.int64())
    valid = pc.fill_null(pc.equal(pc.day(time), written), False)
    return pc.if_else(valid, time, None).cast(TIMESTAMP)
