"""What a run decides and does for every champion, candidate and condition of the registry.

The champion is looked up in a registry on a real storage server whose answers are normal, missing, or late (every
request for an object times out twice before it is answered). Oracle: the tables below, written by hand from
docs/gate.md.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from google.auth.transport.requests import AuthorizedSession

from conversion_retrieval.cloud_storage import CloudStore
from conversion_retrieval.registry.decision import ChampionState
from conversion_retrieval.registry.gate import decide
from conversion_retrieval.registry.lookup import fetch_champion
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.storage import StorageUnavailableError, open_store
from tests.registry.artifacts import make_bundle
from tests.registry.gate_worlds import CONFIG, QUALITIES, inputs_of, ranks, recalled

CHAMPIONS = ("absent", "present", "corrupt")
CONDITIONS = ("reachable", "unreachable", "slow")
TOO_LITTLE = "insufficient_data"
ANSWERED = {
    "absent": dict(zip(QUALITIES, ("promote", "promote", "promote", TOO_LITTLE, TOO_LITTLE), strict=True)),
    "present": dict(zip(QUALITIES, ("promote", "promote", "reject", TOO_LITTLE, TOO_LITTLE), strict=True)),
    "corrupt": dict.fromkeys(QUALITIES, "reject"),
}
EXPECTED = {
    **{(c, q, s): ANSWERED[c][q] for c in CHAMPIONS for q in QUALITIES for s in ("reachable", "slow")},
    **{(c, q, "unreachable"): TOO_LITTLE for c in CHAMPIONS for q in QUALITIES},
}


@pytest.fixture
def registry_of(gcs_bucket: str, tmp_path: Path) -> Callable[[str], str]:
    """Makes a registry with a champion in some state; returns its URI."""

    def make(champion: str) -> str:
        if champion != "absent":
            promoted = Registry.open(gcs_bucket).promote(*make_bundle(tmp_path / "old", "old"))
        if champion == "corrupt":
            open_store(gcs_bucket).write(f"versions/{promoted.version}/model/weights.safetensors", b"damaged")
        return gcs_bucket

    return make


@pytest.fixture
def condition(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts the network into a condition; pauses between retries are a hundredth of a second."""
    genuine_init, genuine_request = CloudStore.__init__, AuthorizedSession.request

    def quick(self: CloudStore, bucket: str, prefix: str = "") -> None:
        genuine_init(self, bucket, prefix, retry_seconds=patience[0], pause_seconds=0.001)

    def late(self: AuthorizedSession, method: str, url: str, *args: object, **kwargs: object) -> requests.Response:
        about_objects = re.search(r"/o([/?]|$)", url)  # the client looks at the bucket now and then by itself
        attempts[url] = attempts.get(url, 0) + 1
        if about_objects and attempts[url] % 3:
            raise requests.ReadTimeout(f"no answer in time from {url}")
        return genuine_request(self, method, url, *args, **kwargs)

    def never(self: AuthorizedSession, method: str, url: str, *args: object, **kwargs: object) -> requests.Response:
        raise requests.ConnectionError(f"no route to {url}")

    attempts: dict[str, int] = {}
    patience = [60.0]
    monkeypatch.setattr(CloudStore, "__init__", quick)

    def become(name: str) -> None:
        patience[0] = 0.05 if name == "unreachable" else 60.0
        request = {"reachable": genuine_request, "slow": late, "unreachable": never}[name]
        monkeypatch.setattr(AuthorizedSession, "request", request)

    return become


@pytest.mark.parametrize(("champion", "quality", "registry"), EXPECTED)
def test_verdict_for_champion_candidate_and_registry(
    registry_of: Callable[[str], str],
    condition: Callable[[str], None],
    tmp_path: Path,
    champion: str,
    quality: str,
    registry: str,
) -> None:
    uri = registry_of(champion)
    condition(registry)
    state = fetch_champion(uri, tmp_path / "fetched")
    decision = decide(judged(quality, state), CONFIG)
    assert decision.verdict == EXPECTED[champion, quality, registry], decision.reason
    assert state.status == ("unreachable" if registry == "unreachable" else champion)
    assert decision.champion == state


def judged(quality: str, state: ChampionState):
    """The candidate compared with a champion that recalls 30%, where there is one to compare with."""
    inputs = inputs_of(quality, state.status, champion=state)
    if state.status == "present":
        candidate = inputs.ranks.candidate
        inputs = dataclasses.replace(inputs, ranks=ranks(candidate, recalled(0.3, len(candidate))))
    return inputs


@pytest.mark.parametrize("registry", CONDITIONS)
@pytest.mark.parametrize("champion", ["absent", "present"])
def test_promotion_through_an_unreliable_network_completes_or_changes_nothing(
    registry_of: Callable[[str], str], condition: Callable[[str], None], tmp_path: Path, champion: str, registry: str
) -> None:
    uri = registry_of(champion)
    old = Registry.open(uri).champion()
    state = ChampionState(status="absent")
    if old:
        state = ChampionState(status="present", version=old.version, digest=old.digest)
    bundle = make_bundle(tmp_path / "new", "new", state)
    condition(registry)
    if registry == "unreachable":
        with pytest.raises(StorageUnavailableError, match=r"champion\.json"):
            Registry.open(uri).promote(*bundle)
        condition("reachable")
        assert Registry.open(uri).champion() == old
    else:
        promoted = Registry.open(uri).promote(*bundle)
        condition("reachable")
        assert Registry.open(uri).champion() == promoted
        assert len(Registry.open(uri).history()) == (2 if old else 1)
