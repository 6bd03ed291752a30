"""Parquet in a bucket of a real storage server: the same rows as from a directory, and no more bytes than asked for."""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from google.auth.transport.requests import AuthorizedSession
from hypothesis import given
from hypothesis import strategies as st
from urllib3.exceptions import ProtocolError
from urllib3.response import HTTPResponse

from conversion_retrieval import remote_parquet, table_files
from conversion_retrieval.cloud_storage import CloudStore
from conversion_retrieval.errors import TableError, UserError
from conversion_retrieval.remote_parquet import coalesced
from conversion_retrieval.storage import PreconditionFailedError, StorageUnavailableError
from conversion_retrieval.tables import TableReader, read_tables
from tests.test_tables import events

FEATURES = [f"f{number:02d}" for number in range(10)]
ROWS, GROUP = 400_000, 100_000
CHUNK = GROUP * 8  # bytes of a column chunk of random doubles, which do not compress


class Traffic:
    """What goes over the wire for objects' contents: each request's byte range, and failures put in its way."""

    def __init__(self) -> None:
        self.ranges: list[tuple[str, int, int]] = []
        self.failures: list[int | Exception] = []
        self.before: Callable[[int], None] = lambda number: None

    @property
    def bytes(self) -> int:
        return sum(end - start for _, start, end in self.ranges)

    def of(self, name: str) -> list[tuple[int, int]]:
        return [(start, end) for key, start, end in self.ranges if key.endswith(name)]


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    found, genuine = Traffic(), AuthorizedSession.request

    def request(self: AuthorizedSession, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:
        if method != "GET" or "alt=media" not in url:
            return genuine(self, method, url, *args, **kwargs)
        found.before(len(found.ranges))
        if found.failures:
            return refusal(found.failures.pop(0), url)
        response = genuine(self, method, url, *args, **kwargs)
        if span := re.fullmatch(r"bytes (\d+)-(\d+)/\d+", response.headers.get("Content-Range", "")):
            key = requests.utils.unquote(url.split("/o/")[1].split("?")[0])
            found.ranges.append((key, int(span[1]), int(span[2]) + 1))
        return response

    monkeypatch.setattr(AuthorizedSession, "request", request)
    return found


def refusal(failure: int | Exception, url: str) -> requests.Response:
    if isinstance(failure, Exception):
        raise failure
    response = requests.Response()
    response.status_code, response._content, response.url = failure, b"{}", url
    response.request = requests.Request("GET", url).prepare()
    return response


@pytest.fixture
def cloud(gcs_bucket: str, monkeypatch: pytest.MonkeyPatch) -> CloudStore:
    """The store below the tables: as ``open_store`` makes it, but impatient."""
    store = CloudStore(gcs_bucket.removeprefix("gs://"), "data", pause_seconds=0.01, retry_seconds=5.0)
    monkeypatch.setattr(table_files, "open_store", lambda uri: store)
    return store


def wide_items(rows: int = ROWS) -> pa.Table:
    """Twelve columns: two keys and ten features."""
    random = np.random.default_rng(0)
    keys = {"item_id": np.char.add("i", np.arange(rows).astype(str)), "advertiser_id": np.repeat("a", rows)}
    return pa.table(keys | {name: random.random(rows) for name in FEATURES})


def put(store: CloudStore, directory: Path, items: pa.Table, *, parts: int = 1, row_group_size: int = GROUP) -> Path:
    """A data set with these items in part files, in the bucket and, the same, in the returned directory."""
    (directory / "items").mkdir(parents=True)
    size = -(-items.num_rows // parts)
    for part in range(parts):
        path = directory / "items" / f"part-{part}.parquet"
        rows = items.slice(part * size, size)
        pq.write_table(rows, path, row_group_size=row_group_size, use_dictionary=["advertiser_id"])
    pq.write_table(events(), directory / "events.parquet")
    for path in sorted(p for p in directory.rglob("*.parquet")):
        store.write(path.relative_to(directory).as_posix(), path.read_bytes())
    return directory


def items_of(store: CloudStore) -> TableReader:
    return read_tables(store.uri).items


@pytest.fixture(scope="module")
def wide() -> pa.Table:
    return wide_items()


def test_two_of_twelve_columns_fetch_their_share_of_the_bytes(
    wide: pa.Table, cloud: CloudStore, traffic: Traffic, tmp_path: Path
) -> None:
    directory = put(cloud, tmp_path / "data", wide)
    reader = items_of(cloud)
    assert traffic.bytes <= 2 * remote_parquet.FOOTER_BYTES, "opening reads footers alone"
    traffic.ranges.clear()
    found = reader.read(["f02", "f07"])
    assert found.equals(read_tables(directory).items.read(["f02", "f07"]))
    wanted = 2 * ROWS * 8
    assert wanted <= traffic.bytes < wanted * 1.01
    assert traffic.bytes < (directory / "items" / "part-0.parquet").stat().st_size * 2 / 10


def test_first_rows_fetch_no_row_group_beyond_what_is_read_ahead(
    wide: pa.Table, cloud: CloudStore, traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cloud, tmp_path / "data", wide, parts=2)
    monkeypatch.setattr(remote_parquet, "WINDOW_BYTES", CHUNK)
    monkeypatch.setattr(remote_parquet, "BYTES_AHEAD", 2 * CHUNK + 10_000)
    reader = items_of(cloud)
    traffic.ranges.clear()
    batches = reader.batches(["f03"])
    next(batches)
    batches.close()
    reader.files[0].pool.shutdown()
    assert traffic.of("part-1.parquet") == []
    assert traffic.bytes < 2.1 * CHUNK
    assert traffic.bytes > CHUNK


def test_no_more_than_the_budget_is_asked_for_before_something_is_used(
    wide: pa.Table, cloud: CloudStore, traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cloud, tmp_path / "data", wide, parts=8)
    monkeypatch.setattr(remote_parquet, "BYTES_AHEAD", 3 * CHUNK // 2 + 10_000)
    reader = items_of(cloud)
    traffic.ranges.clear()
    batches = reader.batches(["f03"])
    next(batches)
    reader.files[0].pool.shutdown()
    assert len(traffic.ranges) == 3, "three half row groups are the budget"


def test_row_group_beyond_the_budget_is_streamed_in_small_requests(
    wide: pa.Table, cloud: CloudStore, traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = put(cloud, tmp_path / "data", wide, row_group_size=ROWS)
    monkeypatch.setattr(remote_parquet, "BYTES_AHEAD", 1_000_000)
    monkeypatch.setattr(remote_parquet, "STREAM_BYTES", 300_000)
    reader = items_of(cloud)
    traffic.ranges.clear()
    found = reader.read(["f01", "f05"])
    assert found.equals(read_tables(directory).items.read(["f01", "f05"]))
    page = 1_048_576 + 1_000  # a page is decoded whole; writers make them of a mebibyte
    assert max(end - start for _, start, end in traffic.ranges) <= page
    assert traffic.bytes < 2 * ROWS * 8 * 1.2


def test_all_kinds_of_columns_arrive_as_from_a_directory(cloud: CloudStore, tmp_path: Path) -> None:
    rows = 5_000
    items = wide_items(rows).append_column("category", pa.array(["x", "y", None, "z"] * (rows // 4)))
    items = items.append_column("category_long", pa.array([f"{n}" for n in range(rows)]))
    items = items.append_column("visual", pa.array([[n, 0.5] for n in range(rows)], pa.list_(pa.float32())))
    items = items.append_column("f00.5", pa.array(range(rows)))
    directory = put(cloud, tmp_path / "data", items, parts=3, row_group_size=700)
    remote, local = items_of(cloud), read_tables(directory).items
    assert remote.schema == local.schema
    assert remote.num_rows == local.num_rows == rows
    assert remote.read().equals(local.read())
    assert remote.read(["visual", "category"]).equals(local.read(["visual", "category"]))
    located = [(b.file.name, b.first_row) for b in remote.batches(["f00"]) if b.first_row == 0]
    assert located == [(f"part-{n}.parquet", 0) for n in range(3)]
    assert str(next(remote.batches()).file) == f"{cloud.uri}/items/part-0.parquet"


def test_footer_longer_than_the_first_request_is_read_whole(
    cloud: CloudStore, traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_parquet, "FOOTER_BYTES", 1000)
    directory = put(cloud, tmp_path / "data", wide_items(1000), row_group_size=50)
    assert items_of(cloud).read().equals(read_tables(directory).items.read())
    assert traffic.of("part-0.parquet")[0][1] - traffic.of("part-0.parquet")[0][0] == 1000


@pytest.mark.parametrize("failure", [429, 503, requests.ConnectionError("reset"), requests.ReadTimeout("slow")])
def test_passing_failures_of_ranges_are_retried(
    cloud: CloudStore, traffic: Traffic, tmp_path: Path, failure: int | Exception
) -> None:
    directory = put(cloud, tmp_path / "data", wide_items(1000), parts=3)
    traffic.failures = [failure, failure]
    reader = items_of(cloud)
    traffic.failures = [failure, failure]
    assert reader.read().equals(read_tables(directory).items.read())
    assert traffic.failures == []


def test_body_that_breaks_off_is_continued(
    cloud: CloudStore, traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = put(cloud, tmp_path / "data", wide_items(20_000))
    genuine, broken = HTTPResponse.stream, []

    def stream(self: HTTPResponse, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        chunks = genuine(self, *args, **kwargs)
        if int(self.headers.get("Content-Length", 0)) > 100_000 and not broken:
            broken.append(next(chunks))
            yield broken[0]
            raise ProtocolError("Connection broken")
        yield from chunks

    reader = items_of(cloud)
    traffic.ranges.clear()
    monkeypatch.setattr(HTTPResponse, "stream", stream)
    assert reader.read().equals(read_tables(directory).items.read())
    (start, end), *others = traffic.of("part-0.parquet")
    assert (start + len(broken[0]), end) in others


def test_lasting_failure_ends_as_one_line(cloud: CloudStore, traffic: Traffic, tmp_path: Path) -> None:
    put(cloud, tmp_path / "data", wide_items(100))
    reader = items_of(cloud)
    traffic.failures = [403] * 100
    with pytest.raises(StorageUnavailableError, match=r"expected to reach items/part-0\.parquet .*403") as caught:
        reader.read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("delete", [False, True])
def test_object_replaced_in_the_middle_of_a_read_is_an_error_and_no_mixture(
    wide: pa.Table,
    cloud: CloudStore,
    traffic: Traffic,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    delete: bool,
) -> None:
    directory = put(cloud, tmp_path / "data", wide)
    monkeypatch.setattr(remote_parquet, "WINDOW_BYTES", CHUNK)
    monkeypatch.setattr(table_files, "PARALLEL_READS", 1)  # the fake server stops when read and written at once
    reader = items_of(cloud)
    traffic.ranges.clear()

    def replace(number: int) -> None:
        if number == 2:
            traffic.before = lambda number: None
            if delete:
                cloud.delete_prefix("items")
            else:
                cloud.write("items/part-0.parquet", (directory / "items" / "part-0.parquet").read_bytes())

    traffic.before = replace
    with pytest.raises(PreconditionFailedError, match=r"expected generation \d+ of items/part-0") as caught:
        reader.read(["f03"])
    assert "\n" not in str(caught.value)
    assert len(traffic.ranges) == 2, "the first windows came, the third was refused"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-100], "expected a Parquet file at {}, found an unreadable or truncated one"),
        (lambda content: b"", "expected a Parquet file at {}, found an unreadable or truncated one"),
        (lambda content: content[: -len(content) // 2] + content[-30_000:], "expected intact row groups in {}"),
        (lambda content: content[:4] + b"\xff" * 100_000 + content[100_004:], "expected intact row groups in {}"),
    ],
)
def test_damaged_object_is_named(
    cloud: CloudStore, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    content = (put(cloud, tmp_path / "data", wide_items(20_000)) / "items" / "part-0.parquet").read_bytes()
    cloud.write("items/part-0.parquet", damage(content))
    with pytest.raises(TableError, match=re.escape(message.format(f"{cloud.uri}/items/part-0.parquet"))) as caught:
        items_of(cloud).read()
    assert "\n" not in str(caught.value)


def test_footer_that_points_outside_the_object_is_refused_before_any_request(
    cloud: CloudStore, tmp_path: Path, traffic: Traffic
) -> None:
    put(cloud, tmp_path / "data", wide_items(100))
    (file,) = items_of(cloud).files
    for wanted in ((0, file.info.size + 1), (-1, 5), (7, 3)):
        with pytest.raises(pa.ArrowInvalid):
            file.fetch(wanted)


def test_a_table_may_mix_parquet_and_csv_parts(cloud: CloudStore, tmp_path: Path) -> None:
    put(cloud, tmp_path / "data", pa.table({"item_id": ["i"], "advertiser_id": ["a"]}))
    cloud.write("items/part-1.csv", b"item_id,advertiser_id\nj,b\n")
    assert items_of(cloud).read().to_pydict() == {"item_id": ["i", "j"], "advertiser_id": ["a", "b"]}


def test_unknown_scheme_is_one_line() -> None:
    with pytest.raises(UserError, match="found scheme 's3'"):
        read_tables("s3://bucket/data")


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), max_size=12), st.integers(0, 40), st.integers(1, 100)
)
def test_requests_cover_what_is_wanted_and_only_short_gaps_beside(
    spans: list[tuple[int, int]], gap: int, most: int
) -> None:
    wanted = {byte for start, length in spans for byte in range(start, start + length)}
    found = coalesced([(start, start + length) for start, length in spans], gap=gap, most=most)
    asked = [byte for start, end in found for byte in range(start, end)]
    assert len(asked) == len(set(asked)), "nothing is fetched twice"
    assert wanted <= set(asked)
    assert all(0 < end - start <= most for start, end in found)
    extra = sorted(set(asked) - wanted)
    runs = np.split(extra, np.flatnonzero(np.diff(extra) > 1) + 1) if extra else []
    assert all(len(run) <= gap for run in runs)
    assert all(later[0] - earlier[1] > gap or earlier[1] == later[0] for earlier, later in pairwise(found))
