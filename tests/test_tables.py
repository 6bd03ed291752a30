"""Reading tables: what is accepted arrives in the canonical schema, what is not names file, column and row."""

import csv
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from google.cloud import storage as gcs

from conversion_retrieval.errors import TableError
from conversion_retrieval.schema import EVENTS, TIMESTAMP
from conversion_retrieval.storage import open_store
from conversion_retrieval.tables import read_tables

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def events(rows: int = 3, **columns: Any) -> pa.Table:
    values = {
        "event_id": [f"e{n}" for n in range(rows)],
        "user_id": ["u"] * rows,
        "item_id": ["i"] * rows,
        "event_type": ["click"] * rows,
        "event_time": pa.array([NOON] * rows, TIMESTAMP),
    }
    return pa.table({name: value for name, value in (values | columns).items() if value is not None})


ITEMS = pa.table({"item_id": ["i"], "advertiser_id": ["a"]})


def write(directory: Path, *parts: pa.Table, items: pa.Table = ITEMS) -> Path:
    (directory / "events").mkdir(parents=True)
    for number, part in enumerate(parts or (events(),)):
        pq.write_table(part, directory / "events" / f"part-{number}.parquet")
    pq.write_table(items, directory / "items.parquet")
    return directory


def write_csv(directory: Path, text: str) -> Path:
    write(directory)
    for path in (directory / "events").iterdir():
        path.unlink()
    (directory / "events").rmdir()
    (directory / "events.csv").write_text(text)
    return directory


def test_part_files_arrive_in_order_with_their_row_numbers(tmp_path: Path) -> None:
    tables = read_tables(write(tmp_path, events(2), events(3)))
    located = [(part.file.name, part.first_row, part.batch.num_rows) for part in tables.events.batches()]
    assert located == [("part-0.parquet", 0, 2), ("part-1.parquet", 0, 3)]
    assert (tables.events.num_rows, tables.users) == (5, None)


def test_accepted_types_become_canonical_ones(tmp_path: Path) -> None:
    mixed = events(
        user_id=pa.array([1, 2, 3], pa.int64()),
        event_type=pa.array(["click"] * 3).dictionary_encode(),
        event_time=pa.array([NOON] * 3, pa.timestamp("ns", "Europe/Berlin")),
        value=pa.array([1, 2, 3], pa.int32()),
        context_embedding=pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float64(), 2)),
    )
    table = read_tables(write(tmp_path, mixed)).events.read()
    assert table.schema == pa.schema([(column.name, column.kind) for column in EVENTS.columns])
    row = table.to_pylist()[0]
    assert (row["user_id"], row["event_time"], row["value"], row["surface"]) == ("1", NOON, 1.0, None)
    assert row["context_embedding"] == [1.0, 2.0]


def test_csv_gives_the_same_rows_as_parquet(tmp_path: Path) -> None:
    text = "event_id,user_id,item_id,event_type,event_time\n" + "".join(
        f"e{n},u,i,click,2026-01-05T12:00:00Z\n" for n in range(3)
    )
    from_csv = read_tables(write_csv(tmp_path / "csv", text)).events.read()
    assert from_csv.equals(read_tables(write(tmp_path / "parquet")).events.read())


def test_leading_zeros_of_csv_ids_survive(tmp_path: Path) -> None:
    text = "event_id,user_id,item_id,event_type,event_time\n007,01,i,click,2026-01-05T12:00:00Z\n"
    assert read_tables(write_csv(tmp_path, text)).events.read()["user_id"].to_pylist() == ["01"]


@pytest.mark.parametrize("word", ["NA", "null", "NULL", "NaN", "N/A", "nan", "#N/A"])
def test_of_csv_only_an_empty_field_is_null(tmp_path: Path, word: str) -> None:
    """Oracle: the text of the file, as a reader without any notion of null sees it."""
    text = f"event_id,user_id,item_id,event_type,event_time,surface\n{word},{word},{word},click,2026-01-05T12:00:00Z,"
    directory = write_csv(tmp_path, f"{text}\ne,u,i,click,2026-01-05T12:00:00Z,{word}\n")
    (directory / "items.parquet").unlink()
    (directory / "items.csv").write_text(f'item_id,advertiser_id,country,note\n{word},{word},{word},\ni,a,,""\n')
    tables = read_tables(directory)
    found = tables.events.read(["event_id", "user_id", "item_id", "surface"]).to_pylist()
    assert [list(row.values()) for row in found] == [[word, word, word, None], ["e", "u", "i", word]]
    found = tables.items.read(["item_id", "advertiser_id", "note"]).to_pylist()
    assert [list(row.values()) for row in found] == [[word, word, None], ["i", "a", ""]]


def test_nan_in_a_number_column_of_csv_is_a_number_and_an_empty_field_null(tmp_path: Path) -> None:
    header = "event_id,user_id,item_id,event_type,event_time,value\n"
    rows = [f"e{n},u,i,click,2026-01-05T12:00:00Z,{value}\n" for n, value in enumerate(("1.5", "NaN", "nan", ""))]
    directory = write_csv(tmp_path, header + "".join(rows))
    (directory / "items.parquet").unlink()
    (directory / "items.csv").write_text("item_id,advertiser_id,price\ni,a,1\nj,a,NaN\nk,a,\n")
    tables = read_tables(directory)
    assert tables.items.schema.field("price").type == pa.float64()
    found = tables.events.read(["value"])["value"].to_pylist(), tables.items.read(["price"])["price"].to_pylist()
    assert [list(map(str, column)) for column in found] == [["1.5", "nan", "nan", "None"], ["1.0", "nan", "None"]]


def test_a_word_for_null_among_numbers_of_csv_is_located_with_what_to_write(tmp_path: Path) -> None:
    header = "event_id,user_id,item_id,event_type,event_time,value\n"
    rows = [f"e{n},u,i,click,2026-01-05T12:00:00Z,{value}\n" for n, value in enumerate(("1.5", "NA"))]
    with pytest.raises(
        TableError, match=r"events.csv, found in column value, row 3: .*: leave the field empty for null$"
    ):
        read_tables(write_csv(tmp_path, header + "".join(rows)))


def test_bucket_gives_the_same_rows_as_its_directory(tmp_path: Path, gcs_bucket: str) -> None:
    directory = write(tmp_path, events(2), events(3))
    open_store(gcs_bucket).upload_directory(directory, "team/data")
    assert read_tables(f"{gcs_bucket}/team/data").events.read().equals(read_tables(directory).events.read())
    with pytest.raises(TableError, match="found no objects"):
        read_tables(f"{gcs_bucket}/team/nothing")


def test_nothing_but_csv_is_copied_from_a_bucket_and_the_copy_goes_with_its_table(
    tmp_path: Path, gcs_bucket: str
) -> None:
    store = open_store(f"{gcs_bucket}/team")
    store.upload_directory(write(tmp_path / "data"), "data")
    store.write("data/users.csv", b"user_id\nu\n")
    store.write("data/models/weights.csv", b"much")
    store.write("data/events_old.parquet", b"more")
    (tmp_path / "copy").mkdir()
    tables = read_tables(f"{gcs_bucket}/team/data", download_dir=tmp_path / "copy")
    copied = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert [path.name for path in copied] == ["users.csv"]
    assert tables.users is not None
    assert tables.users.read().to_pydict() == {"user_id": ["u"]}
    del tables
    assert list((tmp_path / "copy").iterdir()) == []


def test_whole_bucket_can_be_a_data_set(tmp_path: Path, gcs_bucket: str) -> None:
    store = open_store(gcs_bucket)
    for path in write(tmp_path).rglob("*.parquet"):
        store.write(path.relative_to(tmp_path).as_posix(), path.read_bytes())
    assert read_tables(gcs_bucket).events.num_rows == 3


def with_column(name: str, values: Any) -> list[pa.Table]:
    return [events(), events(), events(**{name: values})]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (with_column("user_id", None), "expected column user_id (who) in {}/events/part-2.parquet, found none"),
        (
            with_column("user_id", [1.5] * 3),
            "expected string or integer in column user_id of {}/events/part-2.parquet, found double",
        ),
        (
            with_column("event_time", pa.array([NOON.replace(tzinfo=None)] * 3, pa.timestamp("us"))),
            "expected times with a time zone in column event_time of {}/events/part-2.parquet",
        ),
        (with_column("sureface", ["x"] * 3), "{}/events/part-2.parquet, found sureface: rename it to surface"),
        (with_column("value", ["x"] * 3), "expected double in column value of {}/events/part-2.parquet, found string"),
        ([events().slice(0, 0), events().slice(0, 0)], "expected rows in the events table, found none"),
    ],
)
def test_one_bad_part_file_is_named_with_its_column(tmp_path: Path, parts: list[pa.Table], message: str) -> None:
    with pytest.raises(TableError, match=re.escape(message.format(tmp_path))) as caught:
        read_tables(write(tmp_path, *parts))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("e0,u,i,click,2026-01-05T12:00:00Z\ne1,u,i,cl", "Expected 5 columns, got 4"),
        ("e0,u,i,click,2026-01-05T12:00:00Z\ne1,u,i,click,2026-01-05T12:00:00", "column event_time, row 3"),
        ("e0,u,i,click,yesterday", "column event_time, row 2"),
        ("", "expected rows in the events table"),
    ],
)
def test_bad_csv_line_is_named(tmp_path: Path, lines: str, message: str) -> None:
    header = "event_id,user_id,item_id,event_type,event_time\n"
    with pytest.raises(TableError, match=message) as caught:
        read_tables(write_csv(tmp_path, header + lines))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\xef\xbb\xbfitem_id,advertiser_id,p\n%bz,a,1.5\n",
            "column p, row 200002: .*: put such a row first",
        ),
        (
            b"p,item_id,advertiser_id\n%bz,a,b\n",
            "column p, row 200002: .*'z': put such a row first",
        ),
        (b"item_id,advertiser_id,p\n%bz,a,NULL\n", "column p, row 200002: .*: leave the field empty for null$"),
        (b"item_id,advertiser_id,p\n%bz,\xe9,1\n", "expected UTF-8 in .*column advertiser_id, row 200002: convert the"),
        (
            b"\xef\xbb\xbfitem_id,advertiser_id,p,t\na,b,,\xe9" + b"x" * 200_000 + b"\nz,\xe9,1,\n",
            "expected UTF-8 in .*",
        ),
    ],
)
def test_a_value_that_the_first_rows_do_not_prepare_for_is_named_with_what_to_do(
    tmp_path: Path, content: bytes, message: str
) -> None:
    directory = write(tmp_path)
    (directory / "items.parquet").unlink()
    (directory / "items.csv").write_bytes(content.replace(b"%b", b"1,2,3\n" * 200_000))
    with pytest.raises(TableError, match=message) as caught:
        read_tables(directory).items.read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("before", [b"\xe9", b"x" * 200_000])
def test_a_bad_value_is_named_whatever_else_is_in_the_file(tmp_path: Path, before: bytes) -> None:
    header = b"\xef\xbb\xbfevent_time,event_id,user_id,item_id,event_type,surface\n"
    rows = b"2026-01-05T12:00:00Z,e,u,i,click," + before + b"\nyesterday,f,u,i,click,\n"
    directory = write_csv(tmp_path, "")
    (directory / "events.csv").write_bytes(header + rows)
    with pytest.raises(
        TableError, match=r"events.csv, found in column event_time, row 3: .* invalid value 'yesterday'$"
    ):
        read_tables(directory)


def test_a_csv_column_without_a_value_among_its_first_rows_is_said_so(tmp_path: Path) -> None:
    directory = write(tmp_path)
    (directory / "items.parquet").unlink()
    (directory / "items.csv").write_text("item_id,advertiser_id,p\n" + "i,a,\n" * 300_000 + "z,a,1.5\n")
    with pytest.raises(TableError, match=r"column p of .*items.csv, found none in its first megabyte: put a row"):
        read_tables(directory)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path) / "events" / "part-0.parquet"
    for content in (b"", b"no parquet at all", path.read_bytes()[:-20]):
        path.write_bytes(content)
        with pytest.raises(TableError, match=re.escape(str(path))):
            read_tables(tmp_path)


def test_reading_a_large_file_holds_a_few_batches_and_not_the_file(tmp_path: Path) -> None:
    rows = 2_000_000
    keys = pa.array([f"{n}" for n in range(1000)]).take(pa.array(np.arange(rows) % 1000))
    numbers = {f"f{n}": np.random.default_rng(n).random(rows) for n in range(4)}
    table = pa.table({"item_id": keys, "advertiser_id": keys, **numbers})
    write(tmp_path)
    pq.write_table(table, tmp_path / "items.parquet", row_group_size=rows // 4, use_dictionary=False)
    del table, numbers, keys
    reader = read_tables(tmp_path).items
    before = most = pa.total_allocated_bytes()
    for _ in reader.batches():
        most = max(most, pa.total_allocated_bytes())
    assert (tmp_path / "items.parquet").stat().st_size > 60e6
    assert most - before < 30e6


def test_missing_directory_and_table_are_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="expected a directory with the canonical tables"):
        read_tables(tmp_path / "nothing")
    (write(tmp_path) / "items.parquet").unlink()
    with pytest.raises(TableError, match=r"expected items\.parquet, items/ or items\.csv"):
        read_tables(tmp_path)


def test_table_given_twice_is_refused(tmp_path: Path) -> None:
    pq.write_table(events(), write(tmp_path) / "events.parquet")
    with pytest.raises(TableError, match="expected one events table"):
        read_tables(tmp_path)


def test_extra_item_columns_must_agree_among_parts(tmp_path: Path) -> None:
    (write(tmp_path) / "items.parquet").unlink()
    (tmp_path / "items").mkdir()
    pq.write_table(ITEMS.append_column("price", pa.array([1.0])), tmp_path / "items" / "a.parquet")
    pq.write_table(ITEMS.append_column("price", pa.array(["1"])), tmp_path / "items" / "b.parquet")
    with pytest.raises(TableError, match=r"expected double as in the first part in column price of .*b\.parquet"):
        read_tables(tmp_path)


def test_a_column_that_is_there_twice_is_one_line(tmp_path: Path) -> None:
    directory = write(tmp_path)
    price = pa.array([1.0])
    twice = pa.Table.from_arrays([*ITEMS.columns, price, price], names=[*ITEMS.column_names, "price", "price"])
    pq.write_table(twice, directory / "items.parquet")
    with pytest.raises(TableError, match=r"expected every column of .*items.parquet once, found price more often"):
        read_tables(directory)
    (directory / "items.parquet").unlink()
    (directory / "items.csv").write_text("item_id,advertiser_id,item_id\ni,a,i\n")
    with pytest.raises(TableError, match=r"expected every column of .*items.csv once, found item_id more often"):
        read_tables(directory)


def test_columns_without_a_name_or_told_apart_by_case_are_one_line(tmp_path: Path) -> None:
    directory = write(tmp_path)
    price = pa.array([1.0])
    for names, message in (
        (("price", "Price"), r"of .*items.parquet that differ in more than case, found price and Price: rename"),
        (("Item_ID", "price"), r"of .*items.parquet that differ in more than case, found item_id and Item_ID: rename"),
        (("price", ""), r"expected a name for every column of .*items.parquet, found none for column 4: name or"),
        (("", ""), r"expected a name for every column of .*items.parquet, found none for column 3: name or"),
    ):
        table = pa.Table.from_arrays([*ITEMS.columns, price, price], names=[*ITEMS.column_names, *names])
        pq.write_table(table, directory / "items.parquet")
        with pytest.raises(TableError, match=message) as caught:
            read_tables(directory)
        assert "\n" not in str(caught.value)
    (directory / "items.parquet").unlink()
    (directory / "items.csv").write_text(",item_id,advertiser_id\n0,i,a\n")
    with pytest.raises(TableError, match=r"every column of .*items.csv, found none for column 1: name or remove it"):
        read_tables(directory)


@pytest.mark.parametrize("name", ["advertiser", "first_seen"])
def test_an_item_column_of_a_name_that_features_use_is_refused_where_it_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(TableError, match=rf"expected no items column called {name} in .*items.parquet"):
        read_tables(write(tmp_path, items=ITEMS.append_column(name, pa.array(["x"]))))


def test_a_type_that_is_no_feature_is_refused_with_those_that_are(tmp_path: Path) -> None:
    dated = ITEMS.append_column("created", pa.array([NOON], TIMESTAMP))
    with pytest.raises(TableError, match=r"expected text, integers, floats, booleans or lists .*: convert it or leave"):
        read_tables(write(tmp_path / "a", items=dated))
    with pytest.raises(TableError, match=r"expected string or integer in column item_id .*, found double"):
        read_tables(write(tmp_path / "b", items=ITEMS.set_column(0, "item_id", pa.array([1.0]))))


@pytest.mark.parametrize(("kind", "arrow"), [(object, pa.null()), (float, pa.float64())])
def test_a_column_that_one_part_has_no_values_of_is_read_as_the_other_parts_have_it(
    tmp_path: Path, kind: type, arrow: pa.DataType
) -> None:
    """Oracle: pandas' own concatenation of the parts, whichever of them has no rows or no values of a column."""
    good = events(2, surface=["search", None], value=[1.0, 2.0])
    empty = pa.Table.from_pandas(pd.DataFrame({name: [] for name in good.column_names}, dtype=kind))
    assert set(empty.schema.types) == {arrow}
    typed = ITEMS.append_column("price", pa.array([1.5])).append_column("vector", pa.array([[1.0, 2.0]]))
    untyped = pa.table({"item_id": ["j"], "advertiser_id": pa.nulls(1), "price": pa.nulls(1), "vector": pa.nulls(1)})
    for number, order in enumerate((1, -1)):
        directory = write(tmp_path / str(number), *[good, empty][::order])
        (directory / "items.parquet").unlink()
        (directory / "items").mkdir()
        for part, table in enumerate([typed, untyped][::order]):
            pq.write_table(table, directory / "items" / f"{part}.parquet")
        tables = read_tables(directory)
        assert tables.events.read(good.column_names).to_pylist() == good.to_pylist()
        assert tables.items.schema.types == [pa.string(), pa.string(), pa.float64(), pa.list_(pa.float32())]
        assert tables.items.read().to_pylist() == [*typed.to_pylist(), *untyped.to_pylist()][::order]


def test_the_index_of_a_frame_is_no_column(tmp_path: Path) -> None:
    """pandas writes the numbers of rows where some are left out; as a column of items they would be a feature."""
    items = pd.DataFrame({"item_id": ["h", "i"], "advertiser_id": "a"})
    with pytest.raises(TableError, match=r"items.parquet, found __index_level_0__, as pandas calls .* index=False"):
        read_tables(write(tmp_path / "a", items=pa.Table.from_pandas(items[items.item_id == "i"])))
    assert (
        read_tables(write(tmp_path / "b", items=pa.Table.from_pandas(items))).items.schema.names == ITEMS.schema.names
    )


def test_a_column_that_no_part_has_values_of_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"expected values in column price of .*items.parquet, found none: leave"):
        read_tables(write(tmp_path / "a", items=ITEMS.append_column("price", pa.nulls(1))))
    with pytest.raises(TableError, match=r"expected string or integer in column user_id of .*, found null"):
        read_tables(write(tmp_path / "b", *[events(user_id=pa.nulls(3))] * 2))


def test_times_in_milliseconds_that_microseconds_cannot_hold_are_not_wrapped_around(tmp_path: Path) -> None:
    """Oracle: Python's integers, cut at the largest whole millisecond of 64 bits of microseconds."""
    ticks = [2**62, -(2**62), 2**63 - 1, -(2**63), 10**16, 253_402_300_800_000, -62_135_596_800_001, 0, None]
    most = (2**63 - 1) // 1000 * 1000
    wanted = [None if tick is None else max(-most, min(most, tick * 1000)) for tick in ticks]
    times = pa.array(ticks, pa.int64()).cast(pa.timestamp("ms", "Europe/Berlin"))
    reader = read_tables(write(tmp_path, events(len(ticks), reported_time=times))).events
    assert reader.read(["reported_time"])["reported_time"].cast(pa.int64()).to_pylist() == wanted


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_text_of_any_layout_is_text_in_ids_as_in_other_columns(tmp_path: Path, kind: pa.DataType) -> None:
    """Oracle: the same rows as plain strings. pandas writes a categorical id, Arrow's other writers views."""
    plain = events(user_id=["u", "v", "u"], surface=["search", None, "search"])
    items = ITEMS.append_column("category", pa.array(["x"]))
    texts = {name: plain[name].cast(kind) for name in ("event_id", "user_id", "item_id", "event_type", "surface")}
    other = items.cast(pa.schema([(name, kind) for name in items.column_names]))
    tables = read_tables(write(tmp_path, events(**texts), items=other))
    assert tables.events.read(plain.column_names).equals(plain.cast(tables.events.read(plain.column_names).schema))
    assert tables.items.read().equals(items)


UNCOMMITTED = ("_temporary/0/part-9.parquet", ".tmp/part-9.parquet", "_delta_log/9.parquet", ".part-9.csv", "_SUCCESS")


@pytest.mark.parametrize("remote", [False, True])
def test_what_a_writer_has_not_committed_is_no_part(tmp_path: Path, remote: bool, request: Any) -> None:
    """Oracle: Arrow's own notion of a data set, of which no path has a part with a dot or an underscore in front."""
    directory = write(tmp_path, events(2), events(3))
    (directory / "events" / "day=2026-01-05").mkdir()
    (directory / "events" / "part-1.parquet").rename(directory / "events" / "day=2026-01-05" / "part-1.parquet")
    for name in UNCOMMITTED:
        (directory / "events" / name).parent.mkdir(exist_ok=True, parents=True)
        (directory / "events" / name).write_bytes((directory / "events" / "part-0.parquet").read_bytes())
    data_uri = str(directory)
    if remote:
        data_uri = request.getfixturevalue("gcs_bucket")
        bucket = gcs.Client().bucket(data_uri.removeprefix("gs://"))
        for path in directory.rglob("*"):
            if path.is_file():
                bucket.blob(path.relative_to(directory).as_posix()).upload_from_filename(path)
    assert read_tables(data_uri).events.num_rows == pa.dataset.dataset(directory / "events").count_rows() == 5


@pytest.mark.parametrize("name", ["b.csv.gz", "b.CSV", "b.PARQUET", "deep/b.csv.bz2"])
def test_a_part_that_would_go_unread_is_refused_by_name(tmp_path: Path, name: str, gcs_bucket: str) -> None:
    directory = write(tmp_path)
    (directory / "events" / name).parent.mkdir(exist_ok=True)
    (directory / "events" / name).write_bytes(b"x")
    (directory / "events" / "README").write_text("No data.")
    open_store(gcs_bucket).upload_directory(directory, "data")
    for data_uri in (str(directory), f"{gcs_bucket}/data"):
        message = f"expected part files ending in .parquet or .csv in {data_uri}/events, found {name}: unpack, rename"
        with pytest.raises(TableError, match=re.escape(message)):
            read_tables(data_uri)


def test_links_to_files_are_parts_and_links_that_lead_to_no_file_are_refused(tmp_path: Path) -> None:
    """A directory that is linked is not searched, and its rows would be missing without a word."""
    elsewhere = write(tmp_path / "elsewhere", events(5)) / "events"
    directory = write(tmp_path / "data", events(2))
    (directory / "events" / "day-1.parquet").symlink_to(elsewhere / "part-0.parquet")
    (directory / "events" / ".day-2").symlink_to(elsewhere)
    assert read_tables(directory).events.num_rows == 7
    for target in (elsewhere, tmp_path / "nothing"):
        link = directory / "events" / "day-2.parquet"
        link.symlink_to(target)
        with pytest.raises(TableError, match=r"found day-2\.parquet, a link to a directory or to nothing: put what it"):
            read_tables(directory)
        link.unlink()


def test_csv_values_of_several_lines_are_whole_in_a_file_of_any_size(tmp_path: Path) -> None:
    """Oracle: Python's csv module on the same bytes."""
    directory = write(tmp_path)
    (directory / "items.parquet").unlink()
    rows = [
        ["item_id", "advertiser_id", "text"],
        *([f"i{n}", "a", "x" * (n % 90) + '\n",\r\n' * 9] for n in range(40_000)),
    ]
    with (directory / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert (directory / "items.csv").stat().st_size > 3e6  # several blocks
    found = read_tables(directory).items.read(["item_id", "advertiser_id", "text"])
    with (directory / "items.csv").open(newline="") as file:
        assert [list(row.values()) for row in found.to_pylist()] == list(csv.reader(file))[1:]


@pytest.mark.parametrize("value", ['"' + "x\n" * 2_000_000, "x" * 3_000_000])
def test_a_quote_that_is_left_open_is_said_and_not_read_to_the_end_of_the_file(tmp_path: Path, value: str) -> None:
    directory = write(tmp_path)
    (directory / "items.parquet").unlink()
    (directory / "items.csv").write_text(f"item_id,advertiser_id,text\ni,a,b\nj,a,{value}\n")
    with pytest.raises(TableError, match=r"less than a megabyte in .*items.csv, found a longer one: close a quote"):
        read_tables(directory).items.read()
