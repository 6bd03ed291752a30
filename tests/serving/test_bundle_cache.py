"""Copies of bundles on this machine. Oracle: the bytes of the promoted bundle; which directories there are."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.registry.decision import ChampionState
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.serving import bundle_cache
from conversion_retrieval.serving.bundle_cache import BundleCache
from tests.registry.artifacts import make_bundle

FETCH_AND_WAIT = """
import sys
from pathlib import Path
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.serving.bundle_cache import BundleCache
cache = BundleCache(Path(sys.argv[2]))
cache.fetch(Registry.open(sys.argv[1]), sys.argv[3])
print("fetched", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry")


@pytest.fixture
def promoted(registry: Registry, tmp_path: Path) -> Callable[[str], str]:
    """Promotes a new bundle; returns its version."""

    def promote(name: str) -> str:
        champion = registry.champion()
        state = ChampionState(status="absent")
        if champion:
            state = ChampionState(status="present", version=champion.version, digest=champion.digest)
        return registry.promote(*make_bundle(tmp_path / name, name, state)).version

    return promote


def copies(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_a_version_is_downloaded_once_and_used_again(
    registry: Registry, promoted: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = promoted("a")
    first = BundleCache(tmp_path / "cache").fetch(registry, version)
    monkeypatch.setattr(registry, "download", None)  # a call would fail
    again = BundleCache(tmp_path / "cache").fetch(registry, version)
    assert again == first
    assert again.directory == tmp_path / "cache" / version
    weights = "model/weights.safetensors"
    assert (again.directory / weights).read_bytes() == (tmp_path / "a/bundle" / weights).read_bytes()


def test_an_altered_copy_is_replaced(registry: Registry, promoted: Callable[[str], str], tmp_path: Path) -> None:
    version = promoted("a")
    cache = BundleCache(tmp_path / "cache")
    path = cache.fetch(registry, version).directory / "items.parquet"
    genuine = path.read_bytes()
    path.write_bytes(b"altered")
    assert (cache.fetch(registry, version).directory / "items.parquet").read_bytes() == genuine


def test_a_whole_copy_of_something_else_is_replaced(
    registry: Registry, promoted: Callable[[str], str], tmp_path: Path
) -> None:
    first, second = promoted("a"), promoted("b")
    cache = BundleCache(tmp_path / "cache")
    cache.fetch(registry, first).directory.rename(tmp_path / "cache" / second)
    assert cache.fetch(registry, second).version == second


def test_a_damaged_version_leaves_no_copy(registry: Registry, promoted: Callable[[str], str], tmp_path: Path) -> None:
    version = promoted("a")
    (tmp_path / "registry/versions" / version / "items.parquet").write_bytes(b"damaged")
    with pytest.raises(CorruptArtifactError, match=r"items\.parquet"):
        BundleCache(tmp_path / "cache").fetch(registry, version)
    assert copies(tmp_path / "cache") == []


def test_what_a_killed_download_left_is_cleared_by_the_next(
    registry: Registry, promoted: Callable[[str], str], tmp_path: Path
) -> None:
    left = tmp_path / "cache/some-version.partial/model"
    left.mkdir(parents=True)
    version = promoted("a")
    BundleCache(tmp_path / "cache").fetch(registry, version)
    assert copies(tmp_path / "cache") == [version]


def test_what_a_killed_deletion_left_is_cleared_by_the_next_download(
    registry: Registry, promoted: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [promoted(name) for name in "abcd"]
    for version in versions[:3]:
        BundleCache(tmp_path / "cache").fetch(registry, version)

    def killed(path: Path, **_: object) -> None:
        (path / "manifest.json").unlink()
        raise KeyboardInterrupt

    cache = BundleCache(tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        patch.setattr(bundle_cache, "KEPT_UNUSED", 1)
        with pytest.raises(KeyboardInterrupt):
            cache.release_all_but("")
    BundleCache(tmp_path / "cache").fetch(registry, versions[3])
    assert copies(tmp_path / "cache") == sorted([versions[0], *versions[2:]])  # the second was being deleted


def test_of_unused_copies_the_newest_two_stay(
    registry: Registry, promoted: Callable[[str], str], tmp_path: Path
) -> None:
    versions = [promoted(name) for name in "abcde"]
    cache = BundleCache(tmp_path / "cache")
    for version in versions:
        cache.fetch(registry, version)
    cache.release_all_but(versions[0])
    assert copies(tmp_path / "cache") == sorted([versions[0], *versions[3:]])


def test_processes_that_only_fetch_leave_no_more_than_that(
    registry: Registry, promoted: Callable[[str], str], tmp_path: Path
) -> None:
    versions = [promoted(name) for name in "abcd"]
    for version in versions:
        BundleCache(tmp_path / "cache").fetch(registry, version)  # unused again at once
    assert copies(tmp_path / "cache") == sorted(versions[1:])


def test_a_copy_stays_while_another_process_uses_it_however_that_ends(
    registry: Registry, promoted: Callable[[str], str], tmp_path: Path
) -> None:
    root = tmp_path / "cache"
    versions = [promoted(name) for name in "abcd"]
    command = [sys.executable, "-c", FETCH_AND_WAIT, registry.uri, str(root), versions[0]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout.readline() == b"fetched\n"
        cache = BundleCache(root)
        for version in versions[1:]:
            cache.fetch(registry, version)
        cache.release_all_but(versions[3])
        assert copies(root) == sorted(versions)
        user.kill()
        user.wait()
    BundleCache(root).release_all_but("")
    cache.release_all_but(versions[3])
    assert copies(root) == sorted(versions[1:])


def test_without_a_writable_home_copies_go_to_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv(bundle_cache.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "no directory"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert bundle_cache.cache_dir().parent == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert bundle_cache.cache_dir() == tmp_path / "home/conversion-retrieval/bundles"


def test_a_temporary_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv(bundle_cache.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "no directory"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = os.getuid() + 1
    (tmp_path / f"conversion-retrieval-{other}").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(UserError, match="found somebody else's: set CONVERSION_RETRIEVAL_CACHE"):
        bundle_cache.cache_dir()


@pytest.mark.parametrize("below", ["", "no directory"])
def test_a_chosen_directory_that_cannot_be_one_is_one_line(
    registry: Registry, promoted: Callable[[str], str], tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").touch()
    cache = BundleCache(tmp_path / "file" / below)
    with pytest.raises(UserError, match=r"at .*/file.*, found none that can be written to: set CONVERSION_RETRIEVAL_"):
        cache.fetch(registry, promoted("first"))
