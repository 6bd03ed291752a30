"""Promotion, rollback, history and pruning, on a directory and on a storage server alike.

Oracle: the registry's bytes, read with the plain object store.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.registry import bundle as bundles
from conversion_retrieval.registry.comparison import compare
from conversion_retrieval.registry.decision import ChampionState, Decision
from conversion_retrieval.registry.lookup import fetch_champion
from conversion_retrieval.registry.pointer import Champion
from conversion_retrieval.registry.registry import LostRaceError, Registry
from conversion_retrieval.storage import PreconditionFailedError, open_store
from tests.registry.artifacts import make_bundle

RACERS = 32


def state_of(champion: Champion | None) -> ChampionState:
    if champion is None:
        return ChampionState(status="absent")
    return ChampionState(status="present", version=champion.version, digest=champion.digest)


def promote_new(registry: Registry, root: Path, name: str) -> Champion:
    """Promote a new bundle, decided against whatever is the champion now."""
    return registry.promote(*make_bundle(root / name, name, state_of(registry.champion())))


def test_registry_without_promotion_has_no_champion(registry: Registry) -> None:
    assert registry.champion() is None
    assert registry.history() == []
    assert registry.versions() == []


def test_promoted_bundle_comes_back_byte_for_byte(registry: Registry, tmp_path: Path) -> None:
    bundle_dir, decision = make_bundle(tmp_path / "a", "a")
    champion = registry.promote(bundle_dir, decision)
    downloaded = registry.download(champion.version, tmp_path / "down")
    assert downloaded.manifest.digest == champion.digest
    files = [p.relative_to(bundle_dir) for p in bundle_dir.rglob("*") if p.is_file()]
    assert all((tmp_path / "down" / file).read_bytes() == (bundle_dir / file).read_bytes() for file in files)


def test_every_swap_is_numbered_and_remembered(registry: Registry, tmp_path: Path) -> None:
    first, second = (promote_new(registry, tmp_path, name) for name in "ab")
    back = registry.rollback()
    assert registry.history() == [first, second, back]
    assert [entry.generation for entry in registry.history()] == [1, 2, 3]
    assert (back.version, back.previous, back.action) == (first.version, second.version, "rollback")


def test_rollback_is_undone_by_another(registry: Registry, tmp_path: Path) -> None:
    promote_new(registry, tmp_path, "a")
    second = promote_new(registry, tmp_path, "b")
    registry.rollback()
    assert registry.rollback().version == second.version


def test_rollback_to_any_kept_version_by_name(registry: Registry, tmp_path: Path) -> None:
    first, _, _ = (promote_new(registry, tmp_path, name) for name in "abc")
    assert registry.rollback(first.version).version == registry.champion().version == first.version


def test_rollback_without_predecessor_asks_for_a_version(registry: Registry, tmp_path: Path) -> None:
    promote_new(registry, tmp_path, "a")
    with pytest.raises(UserError, match="name a version"):
        registry.rollback()


@pytest.mark.parametrize("version", ["nothing-here", "../escape", "/etc", ""])
def test_rollback_to_an_unknown_version_changes_nothing(registry: Registry, tmp_path: Path, version: str) -> None:
    champion = promote_new(registry, tmp_path, "a")
    with pytest.raises(UserError, match="expected"):
        registry.rollback(version)
    assert registry.champion() == champion


def test_rollback_to_a_version_that_no_server_could_load_changes_nothing(registry_uri: str, tmp_path: Path) -> None:
    registry = Registry.open(registry_uri)
    first, second = (promote_new(registry, tmp_path, name) for name in "ab")
    name = f"versions/{first.version}/model/config.json"
    open_store(registry_uri).write(name, b"{}")
    with pytest.raises(CorruptArtifactError, match=rf"model/config.json, .*versions/{first.version}$"):
        registry.rollback()
    assert registry.champion() == second


def test_rollback_to_the_champion_itself_verifies_it_too(registry_uri: str, tmp_path: Path) -> None:
    registry = Registry.open(registry_uri)
    champion = promote_new(registry, tmp_path, "a")
    assert registry.rollback(champion.version) == champion
    open_store(registry_uri).write(f"versions/{champion.version}/model/config.json", b"{}")
    with pytest.raises(CorruptArtifactError, match=r"model/config\.json"):
        registry.rollback(champion.version)


def test_a_corrupt_champion_is_named_with_where_it_is_kept(registry_uri: str, tmp_path: Path) -> None:
    champion = promote_new(Registry.open(registry_uri), tmp_path, "a")
    open_store(registry_uri).write(f"versions/{champion.version}/model/config.json", b"{}")
    state = fetch_champion(registry_uri, tmp_path / "fetched")
    assert (state.status, state.version, state.digest) == ("corrupt", champion.version, champion.digest)
    assert f"/versions/{champion.version}" in state.reason
    assert str(tmp_path / "fetched") not in state.reason


def test_candidate_compared_with_a_replaced_champion_is_refused(registry: Registry, tmp_path: Path) -> None:
    first = promote_new(registry, tmp_path, "a")
    late = make_bundle(tmp_path / "late", "late", state_of(first))
    second = promote_new(registry, tmp_path, "b")
    with pytest.raises(LostRaceError, match=f"expected champion {first.version}.*found {second.version}"):
        registry.promote(*late)
    assert registry.champion() == second


def test_first_promotion_decided_without_a_champion_is_refused_when_there_is_one(
    registry: Registry, tmp_path: Path
) -> None:
    late = make_bundle(tmp_path / "late", "late")
    first = promote_new(registry, tmp_path, "a")
    with pytest.raises(LostRaceError, match="expected champion none"):
        registry.promote(*late)
    assert registry.champion() == first


def test_of_racing_promoters_one_wins_and_all_others_are_told_who(registry_uri: str, tmp_path: Path) -> None:
    prepared = [make_bundle(tmp_path / f"{n}", f"{n}") for n in range(RACERS)]

    def promote(candidate: tuple[Path, Decision]) -> Champion | LostRaceError:
        try:
            return Registry.open(registry_uri).promote(*candidate)
        except LostRaceError as error:
            return error

    with ThreadPoolExecutor(RACERS) as pool:
        results = list(pool.map(promote, prepared))
    winners = [result for result in results if isinstance(result, Champion)]
    assert len(winners) == 1
    assert Registry.open(registry_uri).champion() == winners[0]
    assert Registry.open(registry_uri).history() == winners
    losers = [str(result) for result in results if isinstance(result, LostRaceError)]
    assert len(losers) == RACERS - 1
    assert all(winners[0].version in message for message in losers)


class Crash(BaseException):
    """A process that died: nothing may catch it."""


class CrashingStore:
    """A store whose process dies just before or just after its ``at``-th write; uploads count file by file."""

    def __init__(self, uri: str, at: int, *, after: bool) -> None:
        self._store, self._left, self._after = open_store(uri), at, after
        self.uri = self._store.uri
        self.read, self.list, self.newest_write = self._store.read, self._store.list, self._store.newest_write
        self.download_directory = self._store.download_directory

    def write(self, key: str, content: bytes, *, if_generation: int | None = None) -> int:
        return self._counted(lambda: self._store.write(key, content, if_generation=if_generation))

    def upload_directory(self, local_dir: Path, prefix: str) -> None:
        files = sorted((p for p in local_dir.rglob("*") if p.is_file()), key=lambda p: p == local_dir / "manifest.json")
        for path in files:
            key = f"{prefix}/{path.relative_to(local_dir).as_posix()}"
            self._counted(lambda key=key, path=path: self._store.write(key, path.read_bytes()))

    def delete_prefix(self, prefix: str) -> None:
        self._counted(lambda: self._store.delete_prefix(prefix))

    def _counted(self, work: Callable[[], int]) -> int:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Crash
        result = work()
        if self._left == 0:
            raise Crash
        return result


def survive_crashes(uri: str, after: bool, work: Callable[[Registry], object], check: Callable[[bool], None]) -> int:
    """Let ``work`` die at each of its writes in turn, checking after each crash; returns how many writes there are."""
    for at in range(1, 200):
        try:
            work(Registry(CrashingStore(uri, at, after=after)))
        except Crash:
            check(False)
        else:
            check(True)
            return at - 1
    raise AssertionError("never finished")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_crash_at_any_write_of_a_promotion_leaves_the_old_champion_served_and_a_retry_completes(
    registry_uri: str, tmp_path: Path, after: bool
) -> None:
    registry = Registry.open(registry_uri)
    old = promote_new(registry, tmp_path, "old")
    bundle_dir, decision = make_bundle(tmp_path / "new", "new", state_of(old))
    new = bundles.open_bundle(bundle_dir)

    def check(finished: bool) -> None:
        served = Registry.open(registry_uri).champion()
        assert served.version in ((new.version,) if finished else (old.version, new.version))
        Registry.open(registry_uri).download(served.version, tmp_path / "served" / served.version)
        assert [entry.generation for entry in registry.history()] == [1, 2][: served.generation]

    writes = survive_crashes(registry_uri, after, lambda crashing: crashing.promote(bundle_dir, decision), check)
    assert writes >= 1
    assert registry.champion().previous == old.version
    assert [entry.version for entry in registry.history()] == [old.version, new.version]


def test_each_single_crash_before_the_swap_keeps_the_old_champion(registry_uri: str, tmp_path: Path) -> None:
    old = promote_new(Registry.open(registry_uri), tmp_path, "old")
    files = len([p for p in (tmp_path / "old/bundle").rglob("*") if p.is_file()])
    candidate = make_bundle(tmp_path / "new", "new", state_of(old))
    # All files, the manifest last, then the old champion's history entry again; with all of them there, the swap.
    for at in (*range(1, files + 2), 1, 2):
        with pytest.raises(Crash):
            Registry(CrashingStore(registry_uri, at, after=False)).promote(*candidate)
        assert Registry.open(registry_uri).champion() == old


def test_history_entry_lost_in_a_crash_is_appended_by_the_next_swap(registry_uri: str, tmp_path: Path) -> None:
    registry = Registry.open(registry_uri)
    first = promote_new(registry, tmp_path, "a")
    open_store(registry_uri).delete_prefix("history")
    assert registry.history() == [first]
    second = promote_new(registry, tmp_path, "b")
    assert open_store(registry_uri).list("history") == [first.history_key, second.history_key]


class AnswerLost:
    """A store that wrote the champion but reports a refusal, and lets another writer go on before the answer."""

    def __init__(self, uri: str, meanwhile: Callable[[], object]) -> None:
        self._store, self._meanwhile = open_store(uri), meanwhile

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def write(self, key: str, content: bytes, *, if_generation: int | None = None) -> int:
        generation = self._store.write(key, content, if_generation=if_generation)
        if key == "champion.json":
            self._meanwhile()
            raise PreconditionFailedError("expected generation 0, found another: written meanwhile")
        return generation


def test_promotion_whose_answer_was_lost_is_won(registry_uri: str, tmp_path: Path) -> None:
    champion = Registry(AnswerLost(registry_uri, lambda: None)).promote(*make_bundle(tmp_path / "a", "a"))
    assert Registry.open(registry_uri).champion() == champion
    assert Registry.open(registry_uri).history() == [champion]


def test_promotion_whose_answer_was_lost_is_won_though_another_followed(registry_uri: str, tmp_path: Path) -> None:
    followers = []

    def follow() -> None:
        followers.append(promote_new(Registry.open(registry_uri), tmp_path, "follower"))

    champion = Registry(AnswerLost(registry_uri, follow)).promote(*make_bundle(tmp_path / "a", "a"))
    assert Registry.open(registry_uri).history() == [champion, followers[0]]


def damage(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {"truncated": content[:middle], "bit-flipped": flipped, "empty": b""}[how]


@pytest.mark.parametrize("how", ["truncated", "bit-flipped", "empty"])
@pytest.mark.parametrize("name", ["model/weights.safetensors", "index/index.faiss", "items.parquet", "decision.json"])
def test_damaged_file_is_refused_by_name(registry_uri: str, tmp_path: Path, name: str, how: str) -> None:
    champion = promote_new(Registry.open(registry_uri), tmp_path, "a")
    store, key = open_store(registry_uri), f"versions/{champion.version}/{name}"
    store.write(key, damage(store.read(key).content, how))
    with pytest.raises(CorruptArtifactError, match=name):
        Registry.open(registry_uri).download(champion.version, tmp_path / "down")
    state = fetch_champion(registry_uri, tmp_path / "fetched")
    assert state.status == "corrupt"
    assert name in state.reason


def test_files_of_two_bundles_mixed_up_are_refused_by_name(registry_uri: str, tmp_path: Path) -> None:
    registry, store = Registry.open(registry_uri), open_store(registry_uri)
    first, second = (promote_new(registry, tmp_path, name) for name in "ab")
    foreign = store.read(f"versions/{first.version}/index/index.faiss").content
    store.write(f"versions/{second.version}/index/index.faiss", foreign)
    with pytest.raises(CorruptArtifactError, match=r"index/index\.faiss"):
        registry.download(second.version, tmp_path / "down")


def test_index_of_another_model_is_refused_even_under_a_fitting_manifest(tmp_path: Path) -> None:
    from conversion_retrieval.contracts import write_manifest

    bundle_dir, _ = make_bundle(tmp_path / "a", "a")
    other_dir, _ = make_bundle(tmp_path / "b", "b")
    manifest = bundles.open_bundle(bundle_dir).manifest
    for path in (other_dir / "index").iterdir():
        (bundle_dir / "index" / path.name).write_bytes(path.read_bytes())
    write_manifest(bundle_dir, kind="bundle", inputs=manifest.inputs, metadata=manifest.metadata)
    with pytest.raises(CorruptArtifactError, match="two bundles are mixed up"):
        bundles.open_bundle(bundle_dir)


def edit_manifest(registry_uri: str, champion: Champion, **changes: object) -> None:
    store, key = open_store(registry_uri), f"versions/{champion.version}/manifest.json"
    store.write(key, json.dumps(json.loads(store.read(key).content) | changes).encode())


@pytest.mark.parametrize("schema", [0, 2, 99])
def test_other_schema_versions_are_refused_by_number(registry_uri: str, tmp_path: Path, schema: int) -> None:
    champion = promote_new(Registry.open(registry_uri), tmp_path, "a")
    edit_manifest(registry_uri, champion, schema_version=schema)
    with pytest.raises(CorruptArtifactError, match=f"expected bundle schema version 1, found {schema}"):
        Registry.open(registry_uri).download(champion.version, tmp_path / "down")


def test_index_file_of_a_newer_faiss_is_refused_by_version(registry_uri: str, tmp_path: Path) -> None:
    champion = promote_new(Registry.open(registry_uri), tmp_path, "a")
    metadata = {"faiss_version": "99.0.0", "decided_time": "2026-01-01T00:00:00+00:00"}
    edit_manifest(registry_uri, champion, metadata=metadata)
    with pytest.raises(CorruptArtifactError, match=r"found 99\.0\.0.*upgrade"):
        Registry.open(registry_uri).champion()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"version": "v"}', b"\xff\xfe", b'{"version": 1, "digest": "d"}']
)
def test_unreadable_pointer_is_corrupt_never_absent_and_rollback_by_name_repairs_it(
    registry_uri: str, tmp_path: Path, content: bytes
) -> None:
    registry = Registry.open(registry_uri)
    first, second = (promote_new(registry, tmp_path, name) for name in "ab")
    open_store(registry_uri).write("champion.json", content)
    with pytest.raises(CorruptArtifactError, match=r"champion\.json"):
        registry.champion()
    with pytest.raises(CorruptArtifactError):
        registry.promote(*make_bundle(tmp_path / "c", "c"))
    assert fetch_champion(registry_uri, tmp_path / "fetched").status == "corrupt"
    assert registry.rollback(first.version).version == first.version
    assert [entry.version for entry in registry.history()] == [first.version, second.version, first.version]


def test_pointer_to_a_missing_version_is_corrupt_and_names_what_is_kept(registry_uri: str, tmp_path: Path) -> None:
    registry = Registry.open(registry_uri)
    first, second = (promote_new(registry, tmp_path, name) for name in "ab")
    open_store(registry_uri).delete_prefix(f"versions/{second.version}")
    with pytest.raises(CorruptArtifactError, match=f"kept versions: {first.version}"):
        registry.champion()


def test_prune_keeps_the_newest_the_champion_and_its_predecessor(registry: Registry, tmp_path: Path) -> None:
    names = [promote_new(registry, tmp_path, f"{n}").version for n in range(4)]
    registry.rollback(names[0])
    deleted = registry.prune(0)
    assert sorted(deleted) == sorted(names[1:3])
    assert registry.versions() == sorted([names[0], names[3]])
    assert registry.champion().version == names[0]
    assert registry.rollback().version == names[3]


def test_prune_of_more_than_there_are_deletes_nothing(registry: Registry, tmp_path: Path) -> None:
    versions = {promote_new(registry, tmp_path, f"{n}").version for n in range(3)}
    assert registry.prune(10) == []
    assert set(registry.versions()) == versions


def test_prune_leaves_the_records_of_runs(registry_uri: str, tmp_path: Path) -> None:
    registry, store = Registry.open(registry_uri), open_store(registry_uri)
    for name in "abc":
        store.write(f"runs/{promote_new(registry, tmp_path, name).version}.json", b"{}")
    runs = store.list("runs")
    assert registry.prune(0)
    assert len(runs) == 3
    assert store.list("runs") == runs


def test_pruned_version_is_never_served_again(registry: Registry, tmp_path: Path) -> None:
    first, *_ = (promote_new(registry, tmp_path, name) for name in "abc")
    assert registry.prune(0) == [first.version]
    with pytest.raises(UserError, match="was pruned"):
        registry.rollback(first.version)


def test_prune_removes_uploads_that_never_finished_once_they_are_old(registry_uri: str, tmp_path: Path) -> None:
    champion = promote_new(Registry.open(registry_uri), tmp_path, "a")
    candidate = make_bundle(tmp_path / "b", "b", state_of(champion))
    with pytest.raises(Crash):
        Registry(CrashingStore(registry_uri, 3, after=False)).promote(*candidate)
    store, name = open_store(registry_uri), bundles.open_bundle(candidate[0]).version
    assert store.list(f"versions/{name}")

    def pruned(hours: float) -> list[str]:
        return Registry(store, now=lambda: time.time() + hours * 3600).prune(10, partial_hours=24)

    assert pruned(hours=23) == []
    assert pruned(hours=25) == [name]
    assert store.list(f"versions/{name}") == []
    assert Registry.open(registry_uri).champion() == champion
    with pytest.raises(UserError, match="was pruned"):  # a promoter that was merely slow never points at nothing
        Registry.open(registry_uri).promote(*candidate)


def test_retried_upload_is_young_again(registry_uri: str, tmp_path: Path) -> None:
    champion = promote_new(Registry.open(registry_uri), tmp_path, "a")
    candidate = make_bundle(tmp_path / "b", "b", state_of(champion))
    with pytest.raises(Crash):
        Registry(CrashingStore(registry_uri, 3, after=False)).promote(*candidate)
    before = open_store(registry_uri).newest_write(f"versions/{bundles.open_bundle(candidate[0]).version}")
    promoted = Registry.open(registry_uri).promote(*candidate)
    assert open_store(registry_uri).newest_write(f"versions/{promoted.version}") >= before
    assert Registry.open(registry_uri).prune(10, partial_hours=0) == []


class Interrupting:
    """A store that lets someone else act once, just before a key of some prefix is written."""

    def __init__(self, uri: str, action: Callable[[], object], *, before: str = "champion.json") -> None:
        self._store, self._actions, self._before = open_store(uri), [action], before

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def write(self, key: str, content: bytes, *, if_generation: int | None = None) -> int:
        if key.startswith(self._before) and self._actions:
            self._actions.pop()()
        return self._store.write(key, content, if_generation=if_generation)


def test_rollback_to_a_version_that_is_being_pruned_never_serves_what_was_deleted(
    registry_uri: str, tmp_path: Path
) -> None:
    registry = Registry.open(registry_uri)
    first, _, third = (promote_new(registry, tmp_path, name) for name in "abc")
    racing = Registry(Interrupting(registry_uri, lambda: registry.prune(0)))
    with pytest.raises(UserError, match="was pruned"):
        racing.rollback(first.version)
    assert registry.champion() == third


def test_prune_spares_a_version_that_is_rolled_back_to_meanwhile(registry_uri: str, tmp_path: Path) -> None:
    registry = Registry.open(registry_uri)
    first, second, third = (promote_new(registry, tmp_path, name) for name in "abc")
    racing = Registry(Interrupting(registry_uri, lambda: registry.rollback(first.version), before="pruned"))
    assert racing.prune(0) == [second.version]
    assert registry.champion().version == first.version
    assert registry.rollback().version == third.version
    assert registry.rollback(first.version).version == first.version


def test_show_tells_metrics_configuration_and_reason(registry: Registry, tmp_path: Path) -> None:
    champion = promote_new(registry, tmp_path, "a")
    shown = registry.show(champion.version)
    assert shown.metrics[0]["name"] == "conversion/recall@100"
    assert shown.config["name"] == "a"
    assert shown.decision.reason == "made by hand"


def test_show_refuses_a_file_that_was_altered(registry_uri: str, tmp_path: Path) -> None:
    champion = promote_new(Registry.open(registry_uri), tmp_path, "a")
    open_store(registry_uri).write(f"versions/{champion.version}/evaluation/metrics.json", b"[]")
    with pytest.raises(CorruptArtifactError, match=r"metrics\.json"):
        Registry.open(registry_uri).show(champion.version)


def test_difference_of_two_versions_names_files_and_settings(registry: Registry, tmp_path: Path) -> None:
    first, second = (registry.show(promote_new(registry, tmp_path, name).version) for name in "ab")
    found = {f"{d.kind} {d.name}": (d.before, d.after) for d in compare(first, second)}
    assert found["config name"] == ('"a"', '"b"')
    assert "file model/weights.safetensors" in found
    assert "file items.parquet" not in found
    assert compare(first, first) == []
