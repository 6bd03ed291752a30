"""A hand-made log against the tables written out by hand."""

import gzip
import random
import uuid
from pathlib import Path

import pandas as pd
import pytest

from conversion_retrieval.datasets import csv_files, partitions
from conversion_retrieval.datasets.importers import import_dataset
from conversion_retrieval.datasets.report import ImportReport
from conversion_retrieval.errors import UserError

HEADER = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session"
S1 = "72d76fde-8bb3-4e00-8c23-a032dfed738c"
S2 = "9333dfbd-b87a-4708-9857-6336556b0fcc"
LINES = [
    f"2019-10-01 00:00:00 UTC,view,100,77,electronics.audio.headphone,sony,35.79,1,{S1}",
    f"2019-10-01 00:00:05 UTC,view,200,88,,,10.00,2,{S2}",
    f"2019-10-01 00:00:42 UTC,cart,100,77,electronics.audio.headphone,sony,35.79,1,{S1}",
    f"2019-10-01 00:01:00 UTC,view,200,88,,acme,9.00,2,{S2}",
    f"2019-10-01 00:02:00 UTC,purchase,100,77,electronics.audio.headphone,sony,34.00,1,{S1}",
    f"2019-10-01 00:03:00 UTC,view,300,99,,,1,1,{S1}",
    f"2019-10-01 00:03:00 UTC,view,300,99,,,1,1,{S1}",
    "2019-10-01 00:04:00 UTC,view,300,99,,,1,3,",
    "2019-10-01 00:05:00 UTC,view,300,99,,,1,3,",
]


def write_csv(path: Path, lines: list[str], *, end: str = "\n") -> Path:
    path.write_text("\n".join([HEADER, *lines]) + end)
    return path


def imported(source: Path, output: Path) -> tuple[ImportReport, pd.DataFrame, pd.DataFrame]:
    report = import_dataset("rees46", source, output)
    return report, pd.read_parquet(output / "events"), pd.read_parquet(output / "items.parquet")


def drops(report: ImportReport) -> list[tuple[str, int, str]]:
    return [(drop.reason, drop.rows, drop.example) for drop in report.dropped]


def test_events_are_those_written_out_by_hand(tmp_path: Path) -> None:
    report, events, _ = imported(write_csv(tmp_path / "2019-Oct.csv", LINES), tmp_path / "out")
    found = [
        (
            r.event_id,
            r.user_id,
            r.item_id,
            r.event_type,
            r.event_time.strftime("%H:%M:%S"),
            r.surface,
            r.click_duration_seconds,
            r.value,
        )
        for r in events.astype(object).where(events.notna(), None).itertuples()
    ]
    assert found == [
        ("0-2", "1", "100", "click", "00:00:00", "site", 42.0, None),
        ("0-4", "1", "100", "add_to_cart", "00:00:42", None, None, 35.79),
        ("0-6", "1", "100", "checkout", "00:02:00", None, None, 34.0),
        ("0-7", "1", "300", "click", "00:03:00", "site", None, None),
        ("0-3", "2", "200", "click", "00:00:05", "site", 55.0, None),
        ("0-5", "2", "200", "click", "00:01:00", "site", None, None),
        # Without a session nobody knows what came next.
        ("0-9", "3", "300", "click", "00:04:00", "site", None, None),
        ("0-10", "3", "300", "click", "00:05:00", "site", None, None),
    ]
    assert str(events["event_time"].dtype) in ("datetime64[us, UTC]", "datetime64[ns, UTC]")
    assert drops(report) == [("repeats an earlier row in every column", 1, "line 8")]
    assert report.rows_read == {"2019-Oct.csv": 9}
    assert report.rows_written == {"events": 8, "items": 3}


def test_items_have_the_first_known_brand_and_the_first_seen_price(tmp_path: Path) -> None:
    _, _, items = imported(write_csv(tmp_path / "a.csv", LINES), tmp_path / "out")
    assert items.astype(object).where(items.notna(), None).to_dict("records") == [
        {
            "item_id": "100",
            "advertiser_id": "sony",
            "category_id": "77",
            "category_code": "electronics.audio.headphone",
            "category_root": "electronics",
            "price": 35.79,
        },
        {
            "item_id": "200",
            "advertiser_id": "acme",
            "category_id": "88",
            "category_code": None,
            "category_root": None,
            "price": 10.0,
        },
        {
            "item_id": "300",
            "advertiser_id": "unknown:99",
            "category_id": "99",
            "category_code": None,
            "category_root": None,
            "price": 1.0,
        },
    ]


@pytest.mark.parametrize(
    "cut",
    [
        "2019-10-01 00:06:00 UTC,view,300,99,,,1,3",  # in the middle of the line
        "2019-10-01 00:06:00 UTC,view,300,99,,,1,3,72d76fde-8bb3-4e",  # in the middle of the last value
        "2019-10-01 00:06:00 UTC,view,300,99,,,1,3,",
        "201",
    ],
)
def test_a_last_line_that_is_cut_off_is_named_and_nothing_else_is_lost(tmp_path: Path, cut: str) -> None:
    path = write_csv(tmp_path / "cut.csv", [LINES[0], LINES[1], cut], end="")
    report, events, _ = imported(path, tmp_path / "out")
    assert events["event_id"].tolist() == ["0-2", "0-3"]
    ((reason, rows, example),) = drops(report)
    assert (reason, rows) == ("the last line is cut off", 1)
    assert example.startswith("line 4: ")
    assert report.dropped[0].file == "cut.csv"


def test_a_whole_last_line_without_line_end_is_kept(tmp_path: Path) -> None:
    report, events, _ = imported(write_csv(tmp_path / "a.csv", LINES[:2], end=""), tmp_path / "out")
    assert len(events) == 2
    assert report.dropped == []


def test_bad_rows_are_dropped_and_named_by_line_and_value(tmp_path: Path) -> None:
    bad = [
        f"2019-09-31 00:00:00 UTC,view,100,77,,sony,1,1,{S1}",
        f"2019-10-01 00:00:00 UTC,remove_from_cart,100,77,,sony,1,1,{S1}",
        f"2019-10-01 00:00:00 UTC,view,chair,77,,sony,1,1,{S1}",
        f"2019-10-01 00:00:00 UTC,view,100,77,,sony,cheap,1,{S1}",
        f"2019-10-01 00:00:00 UTC,view,100,77,,sony,1,,{S1}",
        "2019-10-01 00:00:00 UTC,view",
        "",
    ]
    report, events, _ = imported(write_csv(tmp_path / "a.csv", [LINES[0], *bad, LINES[1]]), tmp_path / "out")
    assert events["event_id"].tolist() == ["0-2", "0-10"]
    assert sorted(drops(report)) == sorted(
        [
            ("wrong number of values", 1, "line 8: 2 of 9"),
            ("event_type is none of view, cart, purchase", 2, "line 4: event_type 'remove_from_cart'"),
            ("product_id is not a whole number", 1, "line 5: product_id 'chair'"),
            ("user_id is not a whole number", 1, "line 7: user_id None"),
            ("price is not a number", 1, "line 6: price 'cheap'"),
            ("event_time is not like 2019-10-01 00:00:00 UTC", 1, "line 3: event_time '2019-09-31 00:00:00 UTC'"),
        ]
    )
    assert report.rows_read["a.csv"] == len(events) + report.dropped_rows("a.csv")


def test_blocks_and_partitions_of_any_size_give_the_same_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that crosses the border of a block keeps its durations; oracle: the import in one block."""
    path = write_csv(tmp_path / "a.csv", [*LINES[:4], "broken", *LINES[4:]])
    _, whole, items = imported(path, tmp_path / "whole")
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 200)
    monkeypatch.setattr(partitions, "PARTITION_BYTES", 300)
    _, pieces, items_of_pieces = imported(path, tmp_path / "pieces")
    assert len(list((tmp_path / "pieces" / "events").iterdir())) > 1
    by = ["user_id", "event_time", "event_id"]
    pd.testing.assert_frame_equal(
        pieces.sort_values(by, ignore_index=True), whole.sort_values(by, ignore_index=True), check_dtype=False
    )
    pd.testing.assert_frame_equal(items_of_pieces, items)


def test_months_of_a_directory_are_read_in_order_compressed_or_not(tmp_path: Path) -> None:
    source = tmp_path / "months"
    source.mkdir()
    write_csv(source / "2019-Nov.csv", [LINES[0]])
    with gzip.open(source / "2019-Dec.csv.gz", "wt") as file:
        file.write("\n".join([HEADER, LINES[1]]) + "\n")
    _, events, _ = imported(source, tmp_path / "out")
    assert sorted(events["event_id"]) == ["0-2", "1-2"]


def test_a_compressed_log_is_cut_into_partitions_no_larger_than_those_of_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the same log as text, with ids and times as random as those of a shop."""
    monkeypatch.setattr(partitions, "PARTITION_BYTES", 100_000)
    rng = random.Random(0)
    lines = [
        f"2019-10-{1 + n // 700:02d} 00:{n // 60 % 60:02d}:{n % 60:02d} UTC,view,{rng.randrange(10**6, 10**8)},"
        f"20530135{rng.randrange(10**10):011d},electronics.smartphone,samsung,{rng.randrange(10**5) / 100},"
        f"{rng.randrange(10**9)},{uuid.UUID(int=rng.getrandbits(128))}"
        for n in range(20_000)
    ]
    path = write_csv(tmp_path / "a.csv", lines)
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        file.write(path.read_bytes())
    assert partitions.num_partitions([path]) == -(-path.stat().st_size // 100_000)
    assert partitions.num_partitions([tmp_path / "a.csv.gz"]) >= partitions.num_partitions([path])


def test_what_is_first_known_of_a_product_is_by_time_and_not_by_the_names_of_months(tmp_path: Path) -> None:
    """Oracle: the same lines in one file, in the order of time. By name, 2019-Nov comes before 2019-Oct."""
    lines = [
        f"{day} 00:00:00 UTC,view,{product},{category},{code},{brand},{price},1,{S1}"
        for day, product, category, code, brand, price in (
            ("2019-10-05", 1, 70, "", "", "1.00"),
            ("2019-11-03", 1, 71, "toys.cars", "acme", "2.00"),
            ("2020-01-02", 1, 72, "toys.trains", "sony", "3.00"),
            ("2020-01-02", 2, 72, "", "sony", "4.00"),
        )
    ]
    _, _, whole = imported(write_csv(tmp_path / "whole.csv", lines), tmp_path / "from_one")
    source = tmp_path / "months"
    source.mkdir()
    for name, month in (("2019-Oct", lines[:1]), ("2019-Nov", lines[1:2]), ("2020-Jan", lines[2:]), ("2020-Feb", [])):
        write_csv(source / f"{name}.csv", month)
    _, _, items = imported(source, tmp_path / "from_months")
    pd.testing.assert_frame_equal(items, whole)
    assert items["price"].tolist() == [1.0, 4.0]


def test_the_source_is_never_replaced_by_the_output(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", LINES)
    with pytest.raises(UserError, match=r"found a\.csv: choose another output"):
        import_dataset("rees46", path, tmp_path)
    assert path.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected rees46 at .*2019-Oct.csv, found no such file"),
        ("", "expected readable CSV at .*2019-Oct.csv, found: Empty CSV file"),
        (HEADER + "\n", "expected rows for events in .*2019-Oct.csv, found none that can be used"),
        (
            "event_time,event_type\n1,2\n",
            "expected column 'product_id' in .*2019-Oct.csv, found: event_time, event_type",
        ),
        (HEADER + "\nx,y,1,1,,,1,1,1\n", "found none that can be used; 1 rows dropped, event_type is none of .*line 2"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_and_leaves_nothing(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "2019-Oct.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        import_dataset("rees46", path, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [entry for entry in tmp_path.iterdir() if entry != path] == []


def test_bytes_that_are_no_text_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(HEADER.encode() + b"\n\xff\xfe,view,1,1,,,1,1,1\n")
    with pytest.raises(UserError, match=r"expected readable CSV at .*invalid UTF8"):
        import_dataset("rees46", path, tmp_path / "out")
