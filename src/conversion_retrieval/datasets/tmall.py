"""Tmall brand log of the 2014 contest: ``user_id,brand_id,type,visit_datetime`` with days but no year.

The item is the brand, and so is the advertiser: this log knows nothing finer. Days are taken as UTC days of 2014;
within a user's day, events are a second apart in the order of the file, which need not be the order in which they
happened. Lines that repeat are kept: with a resolution of days, a second visit looks like a copy of the first.
"""

from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from conversion_retrieval.datasets.csv_files import (
    find_csv_files,
    keep_digits,
    keep_known,
    keep_rows,
    parse_times,
    read_csv,
)
from conversion_retrieval.datasets.partitions import write_events
from conversion_retrieval.datasets.report import ImportReport
from conversion_retrieval.datasets.tables import new_directory, write_table

COLUMNS: Final = ("user_id", "brand_id", "type", "visit_datetime")
EVENT_TYPE: Final = {"0": "click", "1": "checkout", "2": "save", "3": "add_to_cart"}
YEAR: Final = 2014
SURFACE: Final = "site"
_HINT: Final = "the contest's CSV with the columns user_id,brand_id,type,visit_datetime"


def import_tmall(source: Path | None, output_dir: Path, *, seed: int = 0) -> ImportReport:  # noqa: ARG001 - no sampling
    """Convert the brand log's CSV; see ``importers.import_dataset``."""
    files = find_csv_files(source, "*.csv", dataset="tmall", hint=_HINT)
    report = ImportReport(dataset="tmall", source=str(source))
    frames = [
        _checked(block, path.name, report).to_pandas() for path in files for block in read_csv(path, COLUMNS, report)
    ]
    events = _events(pd.concat(frames, ignore_index=True)) if frames else pd.DataFrame()
    report.require_rows("events", len(events))
    report.wrote("events", len(events))
    with new_directory(output_dir) as directory:
        write_events(directory, 0, events)
        brands = pa.array(sorted(events["item_id"].unique(), key=lambda brand: (len(brand), brand)), pa.string())
        write_table(pa.table({"item_id": brands, "advertiser_id": brands}), directory / "items.parquet")
        report.wrote("items", len(brands))
        report.note("the item is the brand, and so is the advertiser; click durations are unknown")
        report.note(f"days are UTC days of {YEAR}; within a user's day events are a second apart in file order")
        report.note("repeated lines are kept: with a resolution of days they may be repeated visits")
        report.save(directory)
    return report


def _checked(block: pa.Table, file: str, report: ImportReport) -> pa.Table:
    rows = keep_known(block, "type", EVENT_TYPE, file=file, report=report)
    rows = keep_digits(rows, ("user_id", "brand_id"), file=file, report=report)
    dated = pc.binary_join_element_wise(str(YEAR), rows["visit_datetime"], "-")
    day = parse_times(dated, format="%Y-%m-%d", day="-(?P<day>[0-9]+)$")
    rows = rows.append_column("day", day)
    reason = "visit_datetime is not a month and day such as 6-4"
    return keep_rows(rows, pc.is_valid(rows["day"]), reason, file=file, column="visit_datetime", report=report)


def _events(rows: pd.DataFrame) -> pd.DataFrame:
    order = rows.groupby(["user_id", "day"]).cumcount()
    events = pd.DataFrame(
        {
            "event_id": [f"{number:09d}" for number in range(len(rows))],
            "user_id": rows["user_id"],
            "item_id": rows["brand_id"],
            "event_type": rows["type"],
            "event_time": rows["day"] + pd.to_timedelta(order, unit="s"),
            "surface": pd.Series(SURFACE, index=rows.index).where(rows["type"].isin(["click", "save"])),
        }
    )
    return events.sort_values(["user_id", "event_time"], kind="stable", ignore_index=True)
