"""CSV files as canonical tables: types from the schema, errors with file, column and row."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.csv as pa_csv

from conversion_retrieval.errors import TableError, one_line
from conversion_retrieval.schema import Table, is_embedding

NULL_WORDS: Final = ("#n/a", "n/a", "na", "none", "null", r"\n")


def csv_schema(file: Path, table: Table) -> pa.Schema:
    """Names of the header and types: the canonical ones, else those that the first block's values suggest."""
    try:
        return _open_csv(file, table).schema
    except pa.ArrowException as error:
        raise _csv_error(error, file, table) from None


def _open_csv(file: Path, table: Table) -> pa_csv.CSVStreamingReader:
    kinds = {column.name: column.kind for column in table.columns if not is_embedding(column.kind)}
    # Words such as NA are values, ids among them: by default Arrow would take them for null.
    options = pa_csv.ConvertOptions(
        column_types=kinds, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    # Without this a value of several lines is an error where a block of the file ends in it.
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    return pa_csv.open_csv(file, parse_options=parse, convert_options=options)


def csv_batches(file: Path, table: Table) -> Iterator[pa.RecordBatch]:
    """All rows with all columns; ``TableError`` names the file, and the column and row where Arrow tells."""
    try:
        yield from _open_csv(file, table)
    except pa.ArrowException as error:
        raise _csv_error(error, file, table) from None


def _csv_error(error: Exception, file: Path, table: Table) -> TableError:
    message = one_line(error)
    if match := re.search(r"In CSV column #(\d+): (?:Row #(\d+): )?(.*)", message):
        name, fault = _header(file)[int(match[1])], match[3]
        place = f"column {name}, row {match[2]}" if match[2] else f"column {name}"
        if "invalid UTF8" in fault:
            return TableError(f"expected UTF-8 in {file}, found other bytes in {place}: convert the file")
        hint = _hint(fault, own=name not in {column.name for column in table.columns})
        return TableError(f"expected readable values in {file}, found in {place}: {message}{hint}")
    if "straddl" in message:
        return TableError(
            f"expected CSV rows of less than a megabyte in {file}, found a longer one: close a quote that is left open "
            "or shorten the values"
        )
    return TableError(f"expected complete CSV lines in {file}, found: {message}")


def _hint(fault: str, *, own: bool) -> str:
    """What to do about a value that cannot be read; ``own`` columns are those whose type nobody gave."""
    value = re.search(r"invalid value '(.*)'", fault)
    if value and value[1].lower() in NULL_WORDS:
        return ": leave the field empty for null"
    return ": put such a row first, for a column has the type of its first megabyte" if own else ""


def _header(file: Path) -> list[str]:
    with file.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        return next(csv.reader(lines))
