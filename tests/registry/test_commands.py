"""What the command line says about a registry. Oracle: the versions promoted here, and what the commands promise."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.registry import commands
from conversion_retrieval.registry.decision import ChampionState
from conversion_retrieval.registry.registry import Registry
from tests.registry.artifacts import make_bundle


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "registry")


@pytest.fixture
def versions(uri: str, tmp_path: Path) -> list[str]:
    """Three promotions, oldest first."""
    names = []
    for name in "abc":
        champion = Registry.open(uri).champion()
        state = ChampionState(status="absent")
        if champion:
            state = ChampionState(status="present", version=champion.version, digest=champion.digest)
        names.append(Registry.open(uri).promote(*make_bundle(tmp_path / name, name, state)).version)
    return names


def test_show_tells_the_champions_role_reason_and_metrics(
    uri: str, versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    commands.show(uri)
    told = capsys.readouterr().out
    assert f"{versions[2]} (champion of {uri})" in told
    assert "made by hand" in told
    assert "conversion/recall" in told
    commands.show(uri, versions[0])
    assert f"{versions[0]} (kept version of {uri})" in capsys.readouterr().out


def test_a_version_to_roll_back_to_is_shown_while_the_champion_cannot_be_read(
    uri: str, versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(uri) / "champion.json").write_text("{")
    commands.show(uri, versions[1])
    told = capsys.readouterr().out
    assert f"{versions[1]} (kept version of {uri}, whose champion is not known: expected a champion pointer" in told
    assert "made by hand" in told
    with pytest.raises(CorruptArtifactError, match="expected a champion pointer"):
        commands.show(uri)


def test_a_log_is_wide_enough_for_the_intervals_of_all_cut_offs(
    uri: str, versions: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the longest name there is, at the default cut-offs, each interval in one piece."""
    cuts = EvaluationConfig().ks
    intervals = {cut: (0.1111 + place / 100, 0.2222 + place / 100) for place, cut in enumerate(cuts)}
    row = {"model": "candidate", "slice": "all", "value": 0.15}
    metrics = [
        row | {"name": f"add_to_cart/recall@{cut}", "low": low, "high": high} for cut, (low, high) in intervals.items()
    ] + [row | {"name": "conversion/mrr", "low": 0.3333, "high": 0.4444}]
    shown = dataclasses.replace(Registry.open(uri).show(versions[2]), metrics=metrics)
    monkeypatch.setattr(Registry, "show", lambda *_: shown)
    commands.show(uri)
    told = capsys.readouterr().out
    for low, high in (*intervals.values(), (0.3333, 0.4444)):
        assert f"{low:.3f}–{high:.3f}" in told


@pytest.mark.parametrize("command", [commands.show, commands.rollback])
def test_an_empty_name_is_no_version_and_not_the_default(uri: str, versions: list[str], command: Callable) -> None:
    """As of a shell's variable that is not set."""
    with pytest.raises(UserError, match=f"{uri}, found ''"):
        command(uri, "")
    assert Registry.open(uri).champion().version == versions[2]


def test_history_lists_every_swap_in_order(uri: str, versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    commands.rollback(uri, versions[0])
    assert f"champion is now {versions[0]} (before: {versions[2]})" in capsys.readouterr().out
    commands.history(uri)
    told = capsys.readouterr().out
    swaps = [line for line in told.splitlines() if "promote" in line or "rollback" in line]
    assert [next(v for v in versions if v in line) for line in swaps] == [*versions, versions[0]]
    assert f"champion: {versions[0]}, before: {versions[2]}" in told


def test_diff_names_settings_inputs_and_files(
    uri: str, versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    commands.diff(uri, versions[0], versions[1])
    told = capsys.readouterr().out
    assert f"first:  {versions[0]}\nsecond: {versions[1]}" in told
    assert "config name" in told
    assert "model/weights.safetensors" in told
    commands.diff(uri, versions[0], versions[0])
    assert "no file differs" in capsys.readouterr().out


def test_prune_names_what_it_deletes_and_spares_champion_and_predecessor(
    uri: str, versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    commands.prune(uri, keep=0)  # which of one second is the newest is chance
    told = capsys.readouterr().out
    assert told.splitlines()[0] == f"deleted {versions[0]}"
    assert f"1 deleted, 2 versions kept in {uri}" in told
    assert sorted(Registry.open(uri).versions()) == sorted(versions[1:])


def test_a_registry_without_promotions_says_so(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (commands.history, commands.show, commands.rollback):
        with pytest.raises(UserError, match=r"expected a registry at .*, found no such directory"):
            command(uri)
    Path(uri).mkdir()
    commands.history(uri)
    assert "nothing was ever promoted" in capsys.readouterr().out
    with pytest.raises(UserError, match="found none: promote a first one"):
        commands.show(uri)
