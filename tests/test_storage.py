"""The same contract for both kinds of store; the cloud one against a server that enforces preconditions."""

import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from filelock import FileLock
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage as gcs

from conversion_retrieval.cloud_storage import CloudStore
from conversion_retrieval.errors import UserError
from conversion_retrieval.storage import (
    LocalStore,
    NotFoundError,
    ObjectStore,
    PreconditionFailedError,
    StorageUnavailableError,
    open_store,
)

RACERS = 16


@pytest.fixture(params=["local", "cloud"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "registry")
    return f"{request.getfixturevalue('gcs_bucket')}/team/registry"


@pytest.fixture
def store(uri: str) -> ObjectStore:
    return open_store(uri)


def files_below(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def make_files(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


class TestContract:
    def test_what_was_written_is_read_with_its_generation(self, store: ObjectStore) -> None:
        generation = store.write("versions/1/a.json", b"\x00content")
        stored = store.read("versions/1/a.json")
        assert (stored.content, stored.generation) == (b"\x00content", generation)

    def test_generations_are_positive_and_grow(self, store: ObjectStore) -> None:
        generations = [store.write("champion.json", str(n).encode()) for n in range(20)]
        assert generations == sorted(set(generations))
        assert generations[0] > 0

    def test_generation_survives_reopening(self, store: ObjectStore, uri: str) -> None:
        generation = store.write("champion.json", b"1")
        assert open_store(uri).read("champion.json").generation == generation
        open_store(uri).write("champion.json", b"2", if_generation=generation)

    def test_swap_on_the_present_generation_succeeds_and_on_a_past_one_fails(self, store: ObjectStore) -> None:
        first = store.write("champion.json", b"1", if_generation=0)
        store.write("champion.json", b"2", if_generation=first)
        with pytest.raises(PreconditionFailedError, match=f"expected generation {first} of champion"):
            store.write("champion.json", b"3", if_generation=first)
        assert store.read("champion.json").content == b"2"

    def test_create_fails_where_something_is(self, store: ObjectStore) -> None:
        store.write("champion.json", b"1")
        with pytest.raises(PreconditionFailedError, match="expected generation 0"):
            store.write("champion.json", b"2", if_generation=0)

    def test_swap_on_a_missing_object_fails(self, store: ObjectStore) -> None:
        with pytest.raises(PreconditionFailedError, match="expected generation 17"):
            store.write("champion.json", b"1", if_generation=17)

    def test_returning_to_old_content_does_not_revive_the_old_generation(self, store: ObjectStore) -> None:
        old = store.write("champion.json", b"A")
        store.write("champion.json", b"B")
        store.write("champion.json", b"A")
        with pytest.raises(PreconditionFailedError):
            store.write("champion.json", b"C", if_generation=old)

    def test_missing_object_is_not_found(self, store: ObjectStore) -> None:
        with pytest.raises(NotFoundError, match=r"expected an object champion\.json in .*registry, found none"):
            store.read("champion.json")

    def test_listing_takes_prefix_as_a_directory(self, store: ObjectStore) -> None:
        for key in ("versions/1/a", "versions/10/a", "champion.json", "versions/1/b/c"):
            store.write(key, b"")
        assert store.list() == ["champion.json", "versions/1/a", "versions/1/b/c", "versions/10/a"]
        assert store.list("versions/1") == ["versions/1/a", "versions/1/b/c"]
        assert store.list("nothing") == []

    def test_objects_are_described_with_the_generation_of_their_bytes(self, store: ObjectStore) -> None:
        generations = {key: store.write(key, b"x" * size) for key, size in (("data/a", 3), ("data/b/c", 0))}
        store.write("data2/a", b"")
        found = [(info.key, info.size, info.generation) for info in store.describe("data")]
        assert found == [("data/a", 3, generations["data/a"]), ("data/b/c", 0, generations["data/b/c"])]

    def test_range_has_its_bytes_until_the_object_is_replaced(self, store: ObjectStore, tmp_path: Path) -> None:
        store.write("data/a", bytes(range(100)))
        (info,) = store.describe("data")
        assert store.read_range(info, 0, 100) == bytes(range(100))
        assert store.read_range(info, 10, 13) == b"\x0a\x0b\x0c"
        store.download_files([info], tmp_path / "down")
        assert files_below(tmp_path / "down") == {"data/a": bytes(range(100))}
        store.write("data/a", bytes(100))
        for use in (lambda: store.read_range(info, 10, 13), lambda: store.download_files([info], tmp_path / "again")):
            with pytest.raises(PreconditionFailedError, match=f"expected generation {info.generation} of data/a"):
                use()

    def test_range_of_a_deleted_object_is_no_longer_there(self, store: ObjectStore) -> None:
        store.write("data/a", b"0123")
        (info,) = store.describe("data")
        store.delete_prefix("data")
        with pytest.raises(PreconditionFailedError, match="written meanwhile"):
            store.read_range(info, 0, 4)

    def test_directory_comes_back_byte_for_byte(self, store: ObjectStore, tmp_path: Path) -> None:
        files = {f"part-{n}/data.bin": os.urandom(1000 + n) for n in range(20)} | {"manifest.json": b"{}", "empty": b""}
        store.upload_directory(make_files(tmp_path / "up", files), "versions/1")
        store.download_directory("versions/1", tmp_path / "down")
        assert files_below(tmp_path / "down") == files

    def test_manifest_appears_after_everything_else(self, store: ObjectStore, tmp_path: Path) -> None:
        source = make_files(tmp_path / "up", {"a": b"1", "manifest.json": b"{}", "z/manifest.json": b"2"})
        store.upload_directory(source, "v")
        manifest = store.read("v/manifest.json").generation
        assert manifest > max(store.read("v/a").generation, store.read("v/z/manifest.json").generation)

    def test_downloading_or_uploading_nothing_is_an_error(self, store: ObjectStore, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="below versions/9"):
            store.download_directory("versions/9", tmp_path / "down")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="expected files to upload"):
            store.upload_directory(tmp_path / "empty", "v")

    def test_deleting_a_prefix_leaves_its_namesakes(self, store: ObjectStore) -> None:
        for key in ("versions/1/a", "versions/1/b", "versions/10/a"):
            store.write(key, b"")
        store.delete_prefix("versions/1")
        store.delete_prefix("versions/1")
        assert store.list() == ["versions/10/a"]

    @pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a\\b", ".lock", "a/.tmp", "a\0b"])
    def test_key_cannot_leave_the_store(self, store: ObjectStore, key: str) -> None:
        for use in (store.read, store.delete_prefix, lambda key: store.write(key, b"")):
            with pytest.raises(UserError, match="expected a relative key"):
                use(key)

    def test_of_racing_threads_one_wins(self, store: ObjectStore) -> None:
        start = store.write("champion.json", b"start")
        results = race(lambda n: store.write("champion.json", f"{n}".encode(), if_generation=start))
        winners = [n for n, generation in enumerate(results) if generation]
        assert len(winners) == 1
        stored = store.read("champion.json")
        assert (stored.content, stored.generation) == (f"{winners[0]}".encode(), results[winners[0]])

    def test_of_racing_creators_one_wins(self, uri: str) -> None:
        results = race(lambda n: open_store(uri).write("champion.json", f"{n}".encode(), if_generation=0))
        assert sum(map(bool, results)) == 1

    @pytest.mark.parametrize(
        "uri", ["local"], indirect=True
    )  # the fake server dead-locks when read and written at once
    def test_increments_by_compare_and_swap_lose_nothing(self, uri: str) -> None:
        open_store(uri).write("count", b"0", if_generation=0)

        def increment(_: int) -> int:
            store = open_store(uri)
            while True:
                stored = store.read("count")
                try:
                    return store.write("count", f"{int(stored.content) + 1}".encode(), if_generation=stored.generation)
                except PreconditionFailedError:
                    pass

        race(increment)
        assert open_store(uri).read("count").content == f"{RACERS}".encode()


def race(work: Callable[[int], int]) -> list[int]:
    """The generation of each racer, 0 for those refused."""

    def attempt(number: int) -> int:
        try:
            return work(number)
        except PreconditionFailedError:
            return 0

    with ThreadPoolExecutor(RACERS) as pool:
        return list(pool.map(attempt, range(RACERS)))


def create_champion(uri: str, number: int) -> int:
    try:
        return LocalStore(Path(uri)).write("champion.json", str(number).encode(), if_generation=0)
    except PreconditionFailedError:
        return 0


class TestLocal:
    def test_of_racing_processes_one_wins(self, tmp_path: Path) -> None:
        with multiprocessing.get_context("spawn").Pool(3) as pool:
            results = pool.starmap(create_champion, [(str(tmp_path), n) for n in range(RACERS)], chunksize=1)
        assert sum(map(bool, results)) == 1

    def test_writer_waits_for_the_lock_and_says_when_it_gives_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("conversion_retrieval.storage.LOCK_SECONDS", 0.05)
        with FileLock(tmp_path / ".lock"), pytest.raises(StorageUnavailableError, match="found it held"):
            LocalStore(tmp_path).write("champion.json", b"")
        assert LocalStore(tmp_path).list() == []

    def test_edit_by_hand_counts_as_a_write(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        generation = store.write("champion.json", b"1")
        (tmp_path / "champion.json").write_bytes(b"edited")
        with pytest.raises(PreconditionFailedError):
            store.write("champion.json", b"2", if_generation=generation)

    def test_generation_grows_though_the_clock_went_back(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        store.write("champion.json", b"1")
        far = 4_000_000_000 * 10**9
        os.utime(tmp_path / "champion.json", ns=(far, far))
        assert store.write("champion.json", b"2", if_generation=far) > far

    @pytest.mark.parametrize("call", ["replace", "utime", "fsync"])
    def test_writer_killed_at_any_step_leaves_the_old_object_and_blocks_nobody(self, tmp_path: Path, call: str) -> None:
        store = LocalStore(tmp_path)
        generation = store.write("champion.json", b"old")
        script = (
            "import os, pathlib, sys\n"
            "from conversion_retrieval.storage import LocalStore\n"
            f"os.{call} = os.rename = lambda *a, **k: os._exit(9)\n"
            "LocalStore(pathlib.Path(sys.argv[1])).write('champion.json', b'new')\n"
        )
        assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 9
        stored = store.read("champion.json")
        assert (stored.content, stored.generation) == (b"old", generation)
        assert store.list() == ["champion.json"]
        assert store.write("champion.json", b"next", if_generation=generation) > generation

    def test_failed_write_leaves_no_file_behind(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        store.write("a", b"")
        with pytest.raises(PreconditionFailedError):
            store.write("a", b"", if_generation=0)
        assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".lock") == ["a"]

    def test_file_in_the_place_of_the_store_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "registry").write_text("")
        store = LocalStore(tmp_path / "registry")
        for use in (store.read, lambda key: store.write(key, b"")):
            with pytest.raises(StorageUnavailableError, match=r"expected to reach champion\.json") as caught:
                use("champion.json")
            assert "\n" not in str(caught.value)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_unwritable_directory_is_one_line(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(StorageUnavailableError, match="Permission denied"):
            LocalStore(tmp_path).write("champion.json", b"")

    def test_file_uri_is_a_path(self, tmp_path: Path) -> None:
        open_store(f"file://{tmp_path}").write("a", b"1")
        assert (tmp_path / "a").read_bytes() == b"1"


@pytest.mark.parametrize("uri", ["s3://bucket/x", "http://host/x", "GS://bucket"])
def test_unknown_scheme_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="expected a local path, file:// or gs:// URI"):
        open_store(uri)


def test_uri_without_bucket_is_refused() -> None:
    with pytest.raises(UserError, match="found no bucket"):
        open_store("gs:///x")


@pytest.fixture
def unreliable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Make requests of one method fail: before the server saw them, or after, when the answer gets lost."""
    genuine = AuthorizedSession.request

    def install(verb: str, failures: list[int | Exception], *, after: bool = False) -> None:
        def request(
            self: AuthorizedSession, method: str, url: str, *args: object, **kwargs: object
        ) -> requests.Response:
            about_objects = re.search(r"/o([/?]|$)", url)  # the client looks at the bucket now and then by itself
            if method != verb or not about_objects or not failures:
                return genuine(self, method, url, *args, **kwargs)
            if after:
                genuine(self, method, url, *args, **kwargs)
            failure = failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            response = requests.Response()
            response.status_code, response._content, response.url = failure, b"{}", url
            response.request = requests.Request(method, url).prepare()
            return response

        monkeypatch.setattr(AuthorizedSession, "request", request)

    return install


@pytest.fixture
def cloud(gcs_bucket: str) -> CloudStore:
    return CloudStore(gcs_bucket.removeprefix("gs://"), pause_seconds=0.01)


class TestCloud:
    def test_swap_whose_answer_was_lost_is_won(self, cloud: CloudStore, unreliable: Callable[..., None]) -> None:
        unreliable("POST", [requests.ConnectionError("reset")], after=True)
        generation = cloud.write("champion.json", b"mine", if_generation=0)
        assert cloud.read("champion.json").generation == generation

    def test_swap_is_lost_to_another_writer_of_equal_content(self, cloud: CloudStore) -> None:
        cloud.write("champion.json", b"same", if_generation=0)
        with pytest.raises(PreconditionFailedError):
            cloud.write("champion.json", b"same", if_generation=0)

    @pytest.mark.parametrize(
        "failure", [408, 429, 500, 503, requests.ReadTimeout("slow"), requests.ConnectionError("x")]
    )
    def test_passing_failures_are_retried(
        self, cloud: CloudStore, unreliable: Callable[..., None], failure: int | Exception
    ) -> None:
        unreliable("POST", [failure, failure])
        cloud.write("a", b"1", if_generation=0)
        unreliable("GET", [failure])
        assert cloud.read("a").content == b"1"

    def test_lasting_failure_ends_as_one_line(self, gcs_bucket: str, unreliable: Callable[..., None]) -> None:
        store = CloudStore(gcs_bucket.removeprefix("gs://"), retry_seconds=0.05, pause_seconds=0.01)
        unreliable("GET", [503] * 1000)
        with pytest.raises(StorageUnavailableError, match="expected to reach a in gs://") as caught:
            store.read("a")
        assert "\n" not in str(caught.value)

    def test_forbidden_is_not_taken_for_missing(self, cloud: CloudStore, unreliable: Callable[..., None]) -> None:
        unreliable("GET", [403])
        with pytest.raises(StorageUnavailableError, match="403"):
            cloud.read("champion.json")

    def test_missing_bucket_is_not_taken_for_a_missing_object(self, gcs_bucket: str, tmp_path: Path) -> None:
        store = open_store("gs://no-such-bucket/registry")
        for use in (lambda: store.read("a"), lambda: store.write("a", b"", if_generation=0), store.list):
            with pytest.raises(StorageUnavailableError, match="expected a bucket no-such-bucket, found none"):
                use()

    def test_unreachable_host_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
        with pytest.raises(StorageUnavailableError, match="expected to reach a in gs://bucket") as caught:
            CloudStore("bucket", retry_seconds=0.05, pause_seconds=0.01).read("a")
        assert "\n" not in str(caught.value)

    def test_missing_credentials_are_one_line(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
        with pytest.raises(StorageUnavailableError, match="credentials"):
            open_store("gs://bucket/registry")

    def test_hostile_object_name_cannot_leave_the_directory(self, gcs_bucket: str, tmp_path: Path) -> None:
        bucket = gcs.Client().bucket(gcs_bucket.removeprefix("gs://"))
        bucket.blob("v/a/..\\..\\x").upload_from_string(b"")
        with pytest.raises(UserError, match="expected a relative key"):
            open_store(gcs_bucket).download_directory("v", tmp_path / "down")

    def test_hidden_objects_are_left_out_as_in_a_directory(self, gcs_bucket: str, tmp_path: Path) -> None:
        """Oracle: the local store of the same files. A file manager leaves ``.DS_Store`` wherever it looked."""
        names = ("a/b", "a/.DS_Store", ".DS_Store", "a/.tmp/b", "a/b.c/.d", "a/b.c/d")
        bucket = gcs.Client().bucket(gcs_bucket.removeprefix("gs://"))
        for name in names:
            bucket.blob(f"data/{name}").upload_from_string(b"x")
        local = LocalStore(make_files(tmp_path / "data", dict.fromkeys(names, b"x")))
        assert open_store(f"{gcs_bucket}/data").list() == local.list() == ["a/b", "a/b.c/d"]
        open_store(gcs_bucket).download_directory("data/a", tmp_path / "down")
        assert files_below(tmp_path / "down") == {"b": b"x", "b.c/d": b"x"}

    def test_folder_placeholders_are_ignored(self, gcs_bucket: str) -> None:
        gcs.Client().bucket(gcs_bucket.removeprefix("gs://")).blob("v/").upload_from_string(b"")
        assert open_store(gcs_bucket).list() == []
