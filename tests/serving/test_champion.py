"""Which champion is served. Oracle: the registry's pointer; an index that is made to answer nothing."""

import asyncio
import json
import socket
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import REGISTRY

from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.index.search import ItemIndex
from conversion_retrieval.registry.decision import ChampionState
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.serving import champion, commands, server
from conversion_retrieval.serving.batching import Batcher
from conversion_retrieval.serving.bundle_cache import BundleCache
from conversion_retrieval.serving.champion import ChampionLoader
from conversion_retrieval.serving.commands import retrieve_user
from conversion_retrieval.serving.retriever import Retriever
from tests.serving.conftest import Run


@pytest.fixture
def loader(registry: Registry, tmp_path: Path) -> ChampionLoader:
    return ChampionLoader(registry, BundleCache(tmp_path / "cache"))


@pytest.fixture
def silent_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every search finds nothing from now on."""

    def nothing(self: ItemIndex, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(vectors), k), -np.inf, np.float32), np.full((len(vectors), k), -1)

    monkeypatch.setattr(ItemIndex, "search", nothing)


def promote_second(registry: Registry, run: Run, path: Path) -> str:
    served = registry.champion()
    state = ChampionState(status="present", version=served.version, digest=served.digest)
    return registry.promote(*run.bundle(path, state)).version


def test_the_champion_is_loaded_and_followed(
    registry: Registry, run: Run, loader: ChampionLoader, tmp_path: Path
) -> None:
    model = server.ChampionModel(loader.load())
    assert model.version == registry.champion().version
    assert not server.follow_champion(model, loader)
    second = promote_second(registry, run, tmp_path / "second")
    assert server.follow_champion(model, loader)
    assert model.version == second


def test_a_champion_that_was_replaced_leaves_the_memory(
    registry: Registry, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the one that the service began with. Oracle: weak references to all that were loaded."""
    loaded: list[weakref.ref[Retriever]] = []
    answer_a_query = champion.answer_a_query
    monkeypatch.setattr(
        champion, "answer_a_query", lambda retriever: loaded.append(weakref.ref(retriever)) or answer_a_query(retriever)
    )

    def replace_champion(model: server.ChampionModel, loader: ChampionLoader) -> None:
        promote_second(registry, run, tmp_path / "second")
        assert server.follow_champion(model, loader)
        assert [reference() is not None for reference in loaded] == [False, True]

    def started(model: server.ChampionModel, loader: ChampionLoader, **_: object) -> SimpleNamespace:
        return SimpleNamespace(start=lambda _: replace_champion(model, loader))

    monkeypatch.setattr(server, "ChampionServer", started)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server.serve(registry.uri, port=port)
    assert len(loaded) == 2


def test_a_champion_that_was_altered_is_refused_with_the_way_back(
    registry: Registry, run: Run, loader: ChampionLoader, tmp_path: Path
) -> None:
    first = registry.champion().version
    second = promote_second(registry, run, tmp_path / "second")
    (Path(registry.uri) / "versions" / second / "items.parquet").write_bytes(b"x")
    with pytest.raises(CorruptArtifactError, match=rf"items\.parquet.*registry rollback --registry {registry.uri}$"):
        loader.load()
    registry.rollback()
    assert loader.load().version == first


@pytest.mark.parametrize("read", [server.serve, lambda uri: retrieve_user(uri, "data", "u")])
def test_a_mistyped_registry_is_no_registry_without_champion(
    read: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "read_tables", lambda _: None)
    with pytest.raises(UserError, match=r"expected a registry at .*/regstry, found no such directory"):
        read(str(tmp_path / "regstry"))


@pytest.mark.usefixtures("silent_index")
def test_nothing_listens_before_a_real_query_was_answered(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ChampionServer", None)  # a call would fail otherwise
    with pytest.raises(UserError, match="the index answers nothing"):
        server.serve(registry.uri)


def test_a_new_champion_that_answers_nothing_does_not_take_over(
    registry: Registry, run: Run, loader: ChampionLoader, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = server.ChampionModel(loader.load())
    first = model.version
    promote_second(registry, run, tmp_path / "second")
    request.getfixturevalue("silent_index")
    with pytest.raises(UserError, match="the index answers nothing"):
        server.follow_champion(model, loader)
    assert model.version == first
    assert model.ready


def test_a_champion_that_cannot_be_read_is_downloaded_ever_less_often_until_it_is_repaired(
    registry: Registry, run: Run, loader: ChampionLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loader.load().version
    second = promote_second(registry, run, tmp_path / "second")
    damaged = next((tmp_path / "registry" / "versions" / second).rglob("*.faiss"))
    whole, downloads = damaged.read_bytes(), []
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    download = Registry.download
    monkeypatch.setattr(Registry, "download", lambda *given: downloads.append(given) or download(*given))

    def polled(times: int) -> int:
        """How many downloads so many failing polls took."""
        before = len(downloads)
        for _ in range(times):
            with pytest.raises(CorruptArtifactError, match=second) as refusal:
                loader.load_if_changed(first)
            depths.append(len(refusal.traceback))
        return len(downloads) - before

    depths: list[int] = []
    assert [polled(1), polled(8)] == [1, 3]  # at once, then after 2, 4 and 8 more
    # What is raised again holds neither the frames of earlier polls nor what those had loaded.
    assert depths[5:8] == [2, 2, 2]
    damaged.write_bytes(whole)
    assert polled(7) == 0
    repaired = loader.load_if_changed(first)
    assert repaired is not None
    assert repaired.version == second


def test_without_a_champion_nothing_is_served(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a champion"):
        server.serve(str(tmp_path))


def test_a_call_beyond_those_that_may_wait_is_answered_with_503(loader: ChampionLoader) -> None:
    from kserve import InferInput, InferRequest  # after the server's module, which keeps them off our arguments
    from kserve.errors import ServerNotReady, server_not_ready_handler

    model = server.ChampionModel(loader.load())
    model._batcher = Batcher(model._answer, max_calls=1, max_waiting=0)
    tensor = InferInput("requests", [1], "BYTES", [json.dumps({"user_id": "u"})])
    timed = REGISTRY.get_sample_value("conversion_retrieval_request_seconds_count")
    with pytest.raises(ServerNotReady, match="ask again later") as refusal:
        asyncio.run(model.predict(InferRequest(server.MODEL_NAME, [tensor])))
    answer = asyncio.run(server_not_ready_handler(None, refusal.value))
    assert answer.status_code == 503
    # A call that was turned away at once is no fast answer.
    assert REGISTRY.get_sample_value("conversion_retrieval_request_seconds_count") == timed
