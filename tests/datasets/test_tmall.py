"""A hand-made log against the tables written out by hand."""

from pathlib import Path

import pandas as pd
import pytest

from conversion_retrieval.datasets.importers import import_dataset
from conversion_retrieval.errors import UserError

LINES = [
    "user_id,brand_id,type,visit_datetime",
    "10,500,0,6-4",
    "10,60,2,6-4",
    "11,60,3,6-4",
    "10,500,0,6-4",
    "10,500,1,4-15",
    "10,500,5,6-4",
    "10,500,0,6-31",
    "10,,0,6-4",
]


def test_events_are_those_written_out_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("\n".join(LINES) + "\n")
    report = import_dataset("tmall", path, tmp_path / "out")
    events = pd.read_parquet(tmp_path / "out" / "events")
    found = [
        (r.user_id, r.item_id, r.event_type, r.event_time.strftime("%Y-%m-%d %H:%M:%S"), r.surface)
        for r in events.astype(object).where(events.notna(), None).itertuples()
    ]
    assert found == [
        ("10", "500", "checkout", "2014-04-15 00:00:00", None),
        ("10", "500", "click", "2014-06-04 00:00:00", "site"),
        ("10", "60", "save", "2014-06-04 00:00:01", "site"),
        ("10", "500", "click", "2014-06-04 00:00:02", "site"),  # repeated lines are kept
        ("11", "60", "add_to_cart", "2014-06-04 00:00:00", None),
    ]
    assert events["event_id"].is_unique
    assert [(d.reason, d.rows, d.example) for d in report.dropped] == [
        ("type is none of 0, 1, 2, 3", 1, "line 7: type '5'"),
        ("brand_id is not a whole number", 1, "line 9: brand_id None"),
        ("visit_datetime is not a month and day such as 6-4", 1, "line 8: visit_datetime '6-31'"),
    ]


def test_the_brand_is_item_and_advertiser(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("\n".join(LINES) + "\n")
    import_dataset("tmall", path, tmp_path / "out")
    items = pd.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.to_dict("list") == {"item_id": ["60", "500"], "advertiser_id": ["60", "500"]}


def test_a_log_without_events_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(LINES[0] + "\n")
    with pytest.raises(UserError, match=r"expected rows for events in .*log.csv, found none"):
        import_dataset("tmall", path, tmp_path / "out")
