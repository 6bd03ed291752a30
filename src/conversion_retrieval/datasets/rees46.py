"""REES46 multi-category shop, as Kaggle serves it: one CSV a month, sorted by time.

A view is a click whose duration is the time to the same session's next event. The brand is the advertiser; where the
log knows no brand for a product, each category has one advertiser of its own, ``unknown:<category_id>``, so that
unbranded goods of different kinds are not taken for one huge seller. The log holds no impressions.
"""

from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from conversion_retrieval.datasets.csv_files import (
    LINE,
    find_csv_files,
    keep_digits,
    keep_known,
    keep_numbers,
    keep_rows,
    parse_times,
    read_csv,
)
from conversion_retrieval.datasets.partitions import (
    UserPartitions,
    first_seen,
    num_partitions,
    seconds_to_next,
    write_events,
)
from conversion_retrieval.datasets.report import ImportReport
from conversion_retrieval.datasets.tables import new_directory, write_table

COLUMNS: Final = (
    "event_time",
    "event_type",
    "product_id",
    "category_id",
    "category_code",
    "brand",
    "price",
    "user_id",
    "user_session",
)
EVENT_TYPE: Final = {"view": "click", "cart": "add_to_cart", "purchase": "checkout"}
SURFACE: Final = "site"
_UUID: Final = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_HINT: Final = (
    "the CSV of a month, such as 2019-Oct.csv from Kaggle's ecommerce-behavior-data-from-multi-category-store"
)


def import_rees46(source: Path | None, output_dir: Path, *, seed: int = 0) -> ImportReport:  # noqa: ARG001 - no sampling
    """Convert one month's CSV, or a directory of them, streaming; see ``importers.import_dataset``."""
    files = sorted(find_csv_files(source, "*.csv*", dataset="rees46", hint=_HINT), key=_first_time)
    report = ImportReport(dataset="rees46", source=str(source))
    with new_directory(output_dir) as directory:
        with UserPartitions(directory / "partitions", num_partitions(files), "user_id") as partitions:
            products = _read(files, partitions, report)
            for part, rows in enumerate(partitions.read()):
                events = _events(rows, report)
                write_events(directory, part, events)
                report.wrote("events", len(events))
        report.require_rows("events", report.rows_written.get("events", 0))
        assert products is not None
        _write_items(products, directory, report)
        report.note("a view is a click; its duration is the time to the session's next event, empty for the last one")
        report.note("rows that repeat an earlier one in every column are dropped: the log's clock ticks in seconds")
        report.save(directory)
    return report


def _first_time(path: Path) -> str:
    """When a log sorted by time begins: the names of months are in another order, 2019-Nov before 2019-Oct."""
    first = next(read_csv(path, ("event_time",), ImportReport(dataset="rees46", source=str(path))), None)
    return "" if first is None else pc.min(first["event_time"]).as_py() or ""


def _read(files: list[Path], partitions: UserPartitions, report: ImportReport) -> pd.DataFrame | None:
    products = None
    for number, path in enumerate(files):
        for block in read_csv(path, COLUMNS, report, whole_last_value=_UUID):
            rows = _checked(block, path.name, report)
            if not len(rows):
                continue
            partitions.add(rows.append_column("file", pa.array([number] * len(rows), pa.int32())))
            attributes = rows.select(["product_id", "category_id", "category_code", "brand", "price"])
            products = first_seen(products, attributes.to_pandas(), "product_id")
    return products


def _checked(block: pa.Table, file: str, report: ImportReport) -> pa.Table:
    rows = keep_known(block, "event_type", EVENT_TYPE, file=file, report=report)
    rows = keep_digits(rows, ("product_id", "user_id"), file=file, report=report)
    rows = keep_numbers(rows, "price", file=file, report=report)
    time = parse_times(rows["event_time"], format="%Y-%m-%d %H:%M:%S UTC", day="^[0-9]+-[0-9]+-(?P<day>[0-9]+) ")
    rows = rows.append_column("time", time)
    reason = "event_time is not like 2019-10-01 00:00:00 UTC"
    return keep_rows(rows, pc.is_valid(rows["time"]), reason, file=file, column="event_time", report=report)


def _events(rows: pd.DataFrame, report: ImportReport) -> pd.DataFrame:
    repeated = rows.duplicated(list(COLUMNS))
    if repeated.any():
        line = rows.loc[repeated, LINE].iloc[0]
        report.drop("all files", "repeats an earlier row in every column", int(repeated.sum()), f"line {line}")
    rows = rows[~repeated].sort_values(["user_session", "time", "file", LINE], kind="stable", ignore_index=True)
    clicked = rows["event_type"] == "click"
    rows["click_duration_seconds"] = pd.Series(seconds_to_next(rows, "user_session")).where(clicked)
    rows["surface"] = pd.Series(SURFACE, index=rows.index).where(clicked)
    rows["value"] = rows["price"].mask(clicked)
    rows["event_id"] = rows["file"].astype(str) + "-" + rows[LINE].astype(str)
    rows = rows.sort_values(["user_id", "time", "file", LINE], kind="stable", ignore_index=True)
    return rows.drop(columns="event_time").rename(columns={"product_id": "item_id", "time": "event_time"})


def _write_items(products: pd.DataFrame, directory: Path, report: ImportReport) -> None:
    unknown = "unknown:" + products["category_id"].fillna("none").astype(str)
    items = {
        "item_id": pa.array(products["product_id"], pa.string()),
        "advertiser_id": pa.array(products["brand"].fillna(unknown), pa.string()),
        "category_id": pa.array(products["category_id"], pa.string(), from_pandas=True),
        "category_code": pa.array(products["category_code"], pa.string(), from_pandas=True),
        "category_root": pa.array(products["category_code"].str.split(".").str[0], pa.string(), from_pandas=True),
        "price": pa.array(products["price"], pa.float64(), from_pandas=True),
    }
    write_table(pa.table(items), directory / "items.parquet")
    report.wrote("items", len(products))
    without = int(products["brand"].isna().sum())
    report.note(f"{without:,} products without a brand have the advertiser unknown:<category_id>")
    report.note("a product's brand and categories are the first that the log names, its price the first seen")
