"""A hand-made log against the tables written out by hand."""

from pathlib import Path

import pandas as pd
import pytest

from conversion_retrieval.datasets.importers import import_dataset
from conversion_retrieval.datasets.retailrocket import root_of
from conversion_retrieval.errors import UserError

START = 1_433_221_332_117
EVENTS = [
    "timestamp,visitorid,event,itemid,transactionid",
    f"{START + 60_000},7,addtocart,11,",
    f"{START},7,view,11,",  # the file is not sorted by time
    f"{START + 90_500},7,view,22,",
    f"{START + 90_500 + 1_800_001},7,transaction,11,4000",  # more than half an hour later
    f"{START},8,view,33,",
    f"{START},8,view,33,",
    f"{START + 1_800_000},8,view,33,",  # half an hour to the millisecond
    f"{START},9,stare,33,",
    "1000000000000000000,9,view,33,",  # no time of this era
]
PROPERTIES_1 = [
    "timestamp,itemid,property,value",
    f"{START + 500},11,categoryid,999",
    f"{START + 100},11,available,0",
    f"{START},22,790,n552.000",
]
PROPERTIES_2 = [
    "timestamp,itemid,property,value",
    f"{START + 100},11,categoryid,30",  # earlier than the first part's
    f"{START + 900},11,available,1",
    f"{START},44,categoryid,20",
]
TREE = ["categoryid,parentid", "30,20", "20,10", "10,"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "retailrocket"
    directory.mkdir()
    for name, lines in {
        "events": EVENTS,
        "item_properties_part1": PROPERTIES_1,
        "item_properties_part2": PROPERTIES_2,
        "category_tree": TREE,
    }.items():
        (directory / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return directory


def test_events_are_those_written_out_by_hand(source: Path, tmp_path: Path) -> None:
    report = import_dataset("retailrocket", source, tmp_path / "out")
    events = pd.read_parquet(tmp_path / "out" / "events")
    start = pd.Timestamp("2015-06-02T05:02:12.117Z")  # of START
    found = [
        (
            r.event_id,
            r.user_id,
            r.item_id,
            r.event_type,
            (r.event_time - start).total_seconds(),
            r.surface,
            r.click_duration_seconds,
        )
        for r in events.astype(object).where(events.notna(), None).itertuples()
    ]
    assert found == [
        ("3", "7", "11", "click", 0.0, "site", 60.0),
        ("2", "7", "11", "add_to_cart", 60.0, None, None),
        ("4", "7", "22", "click", 90.5, "site", None),
        ("5", "7", "11", "checkout", 1890.501, None, None),
        ("6", "8", "33", "click", 0.0, "site", 1800.0),
        ("8", "8", "33", "click", 1800.0, "site", None),
    ]
    assert [(d.reason, d.rows, d.example) for d in report.dropped] == [
        ("event is none of view, addtocart, transaction", 1, "line 9: event 'stare'"),
        ("timestamp is not a whole number", 1, "line 10: timestamp '1000000000000000000'"),
        ("repeats an earlier row in every column", 1, "line 7"),
    ]


def test_items_have_their_earliest_properties_and_the_root_category_as_advertiser(source: Path, tmp_path: Path) -> None:
    import_dataset("retailrocket", source, tmp_path / "out")
    items = pd.read_parquet(tmp_path / "out" / "items.parquet")
    rows = items.astype(object).where(items.notna(), None)
    assert rows.to_numpy().tolist() == [
        ["11", "category:10", "30", "20", "10", "0"],
        ["22", "category:unknown", None, None, None, None],
        ["33", "category:unknown", None, None, None, None],
        ["44", "category:10", "20", "10", "10", None],
    ]
    assert list(items) == ["item_id", "advertiser_id", "category", "category_parent", "category_root", "available"]


def test_without_a_tree_the_category_is_the_advertiser(source: Path, tmp_path: Path) -> None:
    (source / "category_tree.csv").unlink()
    report = import_dataset("retailrocket", source, tmp_path / "out")
    assert pd.read_parquet(tmp_path / "out" / "items.parquet")["advertiser_id"][0] == "category:30"
    assert "no category_tree.csv: an item's advertiser is its category" in report.notes


def test_a_tree_without_categories_is_none(source: Path, tmp_path: Path) -> None:
    (source / "category_tree.csv").write_text(f"{TREE[0]}\n")
    import_dataset("retailrocket", source, tmp_path / "out")
    assert pd.read_parquet(tmp_path / "out" / "items.parquet")["advertiser_id"][0] == "category:30"


def test_categories_in_a_circle_are_their_own_roots() -> None:
    assert root_of("1", {"1": "2", "2": "3", "3": "1"}) == "1"


@pytest.mark.parametrize("name", ["events.csv", "item_properties_part1.csv"])
def test_a_missing_file_is_named(source: Path, tmp_path: Path, name: str) -> None:
    for path in source.glob("item_properties*" if "item" in name else name):
        path.unlink()
    with pytest.raises(UserError, match=r"expected (events|item_properties).*csv.* for retailrocket at .*, found none"):
        import_dataset("retailrocket", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_directory_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a directory at .*, found a file"):
        import_dataset("retailrocket", source / "events.csv", tmp_path / "out")
