"""RetailRocket's e-commerce log: ``events.csv``, ``item_properties_part*.csv`` and ``category_tree.csv``.

A view is a click whose duration is the time to the visitor's next event, if that comes within half an hour. The log
names no seller: the root of an item's category stands in for the advertiser (the category itself without a tree).
Item properties change over time; the earliest value of each is taken, so that none comes from after the events.
"""

from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from conversion_retrieval.datasets.csv_files import LINE, find_csv_files, keep_digits, keep_known, read_csv
from conversion_retrieval.datasets.partitions import (
    UserPartitions,
    num_partitions,
    seconds_to_next,
    write_events,
)
from conversion_retrieval.datasets.report import ImportReport
from conversion_retrieval.datasets.tables import new_directory, write_table
from conversion_retrieval.errors import UserError
from conversion_retrieval.schema import TIMESTAMP

EVENT_COLUMNS: Final = ("timestamp", "visitorid", "event", "itemid", "transactionid")
PROPERTY_COLUMNS: Final = ("timestamp", "itemid", "property", "value")
TREE_COLUMNS: Final = ("categoryid", "parentid")
EVENT_TYPE: Final = {"view": "click", "addtocart": "add_to_cart", "transaction": "checkout"}
# All other properties are hashed.
PROPERTIES: Final = ("categoryid", "available")
MAX_DWELL_SECONDS: Final = 1800.0
SURFACE: Final = "site"
# Milliseconds since the epoch: enough until the year 5138, and far from overflowing.
_TIME_DIGITS: Final = 14
_HINT: Final = "the directory with events.csv and item_properties_part1.csv, part2.csv from Kaggle's ecommerce-dataset"


def import_retailrocket(source: Path | None, output_dir: Path, *, seed: int = 0) -> ImportReport:  # noqa: ARG001 - no sampling
    """Convert the directory of CSV files, streaming; see ``importers.import_dataset``."""
    if source is not None and not Path(source).is_dir():
        raise UserError(
            f"expected a directory at {source}, found {'a file' if Path(source).exists() else 'none'}: {_HINT}"
        )
    event_files = find_csv_files(source, "events.csv*", dataset="retailrocket", hint=_HINT)
    property_files = find_csv_files(source, "item_properties*.csv*", dataset="retailrocket", hint=_HINT)
    assert source is not None
    report = ImportReport(dataset="retailrocket", source=str(source))
    with new_directory(output_dir) as directory:
        with UserPartitions(directory / "partitions", num_partitions(event_files), "visitorid") as partitions:
            seen = _read_events(event_files, partitions, report)
            for part, rows in enumerate(partitions.read()):
                events = _events(rows, report)
                write_events(directory, part, events)
                report.wrote("events", len(events))
        report.require_rows("events", report.rows_written.get("events", 0))
        properties = _read_properties(property_files, report)
        parents = _read_tree(Path(source), report)
        _write_items(seen, properties, parents, directory, report)
        report.note("a view is a click; its duration is the time to the visitor's next event within 30 minutes")
        report.note(
            "rows that repeat an earlier one in every column are dropped: the log's clock ticks in milliseconds"
        )
        report.save(directory)
    return report


def _read_events(files: list[Path], partitions: UserPartitions, report: ImportReport) -> set[str]:
    seen: set[str] = set()
    for path in files:
        for block in read_csv(path, EVENT_COLUMNS, report):
            rows = keep_known(block, "event", EVENT_TYPE, file=path.name, report=report)
            rows = keep_digits(rows, ("timestamp",), file=path.name, report=report, at_most=_TIME_DIGITS)
            rows = keep_digits(rows, ("visitorid", "itemid"), file=path.name, report=report)
            if not len(rows):
                continue
            partitions.add(rows.append_column("time", _milliseconds(rows["timestamp"])))
            seen.update(pc.unique(rows["itemid"]).to_pylist())
    return seen


def _milliseconds(text: pa.ChunkedArray) -> pa.ChunkedArray:
    return text.cast(pa.int64()).cast(pa.timestamp("ms")).cast(TIMESTAMP)


def _events(rows: pd.DataFrame, report: ImportReport) -> pd.DataFrame:
    repeated = rows.duplicated(list(EVENT_COLUMNS))
    if repeated.any():
        line = rows.loc[repeated, LINE].iloc[0]
        report.drop("events.csv", "repeats an earlier row in every column", int(repeated.sum()), f"line {line}")
    # The file is not sorted by time.
    rows = rows[~repeated].sort_values(["visitorid", "time", LINE], kind="stable", ignore_index=True)
    clicked = rows["event"] == "click"
    dwell = pd.Series(seconds_to_next(rows, "visitorid", at_most=MAX_DWELL_SECONDS))
    return pd.DataFrame(
        {
            "event_id": rows[LINE].astype(str),
            "user_id": rows["visitorid"],
            "item_id": rows["itemid"],
            "event_type": rows["event"],
            "event_time": rows["time"],
            "surface": pd.Series(SURFACE, index=rows.index).where(clicked),
            "click_duration_seconds": dwell.where(clicked),
        }
    )


def _read_properties(files: list[Path], report: ImportReport) -> pd.DataFrame:
    """The earliest value of each property, by item: columns ``itemid`` and ``PROPERTIES``."""
    earliest = pd.DataFrame({name: pd.Series(dtype=object) for name in ("timestamp", "itemid", "property", "value")})
    for path in files:
        for block in read_csv(path, PROPERTY_COLUMNS, report):
            rows = keep_digits(block, ("timestamp",), file=path.name, report=report, at_most=_TIME_DIGITS)
            rows = keep_digits(rows, ("itemid",), file=path.name, report=report)
            rows = rows.filter(pc.is_in(rows["property"], pa.array(PROPERTIES)))
            frame = rows.select(list(PROPERTY_COLUMNS)).to_pandas().astype({"timestamp": "int64"})
            frame = pd.concat([earliest, frame]).sort_values("timestamp", kind="stable")
            earliest = frame.drop_duplicates(["itemid", "property"])
    table = earliest.pivot(index="itemid", columns="property", values="value")
    return table.reindex(columns=list(PROPERTIES)).rename_axis(columns=None).reset_index()


def _read_tree(source: Path, report: ImportReport) -> dict[str, str]:
    """Each category's parent; empty without ``category_tree.csv``."""
    path = source / "category_tree.csv"
    if not path.is_file():
        report.note("no category_tree.csv: an item's advertiser is its category")
        return {}
    report.note("an item's advertiser is the root of its category")
    parents: dict[str, str] = {}
    for block in read_csv(path, TREE_COLUMNS, report):
        rows = keep_digits(block, ("categoryid",), file=path.name, report=report)
        rows = rows.filter(pc.is_valid(rows["parentid"]))
        parents |= zip(rows["categoryid"].to_pylist(), rows["parentid"].to_pylist(), strict=True)
    return parents


def root_of(category: str, parents: dict[str, str]) -> str:
    """The topmost ancestor; of a category in a cycle, itself."""
    seen = {category}
    node = category
    while (parent := parents.get(node)) is not None:
        if parent in seen:
            return category
        seen.add(parent)
        node = parent
    return node


def _write_items(
    seen: set[str], properties: pd.DataFrame, parents: dict[str, str], directory: Path, report: ImportReport
) -> None:
    missing = sorted(seen - set(properties["itemid"]))
    frame = pd.concat([properties, pd.DataFrame({"itemid": missing})], ignore_index=True)
    frame = frame.sort_values("itemid", ignore_index=True)
    category = frame["categoryid"]
    root = category.map(lambda name: root_of(name, parents), na_action="ignore")
    items = {
        "item_id": pa.array(frame["itemid"], pa.string()),
        "advertiser_id": pa.array("category:" + root.fillna("unknown"), pa.string()),
        "category": pa.array(category, pa.string(), from_pandas=True),
        "category_parent": pa.array(category.map(parents), pa.string(), from_pandas=True),
        "category_root": pa.array(root, pa.string(), from_pandas=True),
        "available": pa.array(frame["available"], pa.string(), from_pandas=True),
    }
    write_table(pa.table(items), directory / "items.parquet")
    report.wrote("items", len(frame))
    report.note(f"{len(missing):,} items of the events have no properties: advertiser category:unknown")
