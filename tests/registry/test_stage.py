"""The gate and promote stages on files. Oracle: figures known from hand-made ranks; the bytes of the registry."""

import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.registry import stage
from conversion_retrieval.registry.decision import ChampionState, Decision, read_decision
from conversion_retrieval.registry.registry import LostRaceError, Registry
from conversion_retrieval.registry.stage import gate, promote
from tests.registry.artifacts import PIPELINE_CONFIG, gate_config, make_decision, make_run
from tests.registry.gate_worlds import recalled

DRAW_PAGE = stage._write_page


@pytest.fixture(autouse=True)
def page_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a second; one test does."""
    monkeypatch.setattr(stage, "_write_page", lambda *paths: None)


def run_gate(directories: dict[str, Path], root: Path, **options: object) -> tuple[str, Decision]:
    options = {"config": PIPELINE_CONFIG, "allow_first": True} | options
    verdict = gate(**directories, decision_dir=root / "decision", page_path=root / "page.html", **options)
    return verdict, read_decision(root / "decision")


def promotion(directories: dict[str, Path], root: Path) -> dict[str, object]:
    kept = {name: path for name, path in directories.items() if name != "report_dir"}
    return {**kept, "decision_dir": root / "decision", "registry_uri": str(root / "registry")}


def test_gate_reads_conversions_only_and_joins_ranks_by_conversion_not_by_row(tmp_path: Path) -> None:
    directories = make_run(tmp_path)
    verdict, decision = run_gate(directories, tmp_path)
    by_name = {check.name: check for check in decision.checks}
    assert verdict == decision.verdict == "promote"
    assert by_name["recall_floor"].value == pytest.approx(0.4)
    assert by_name["recall_floor"].n == 2000
    assert by_name["beats_popularity"].value == pytest.approx(0.3)


def test_gate_compares_with_the_champion_overall_and_by_slice(tmp_path: Path) -> None:
    champion = ChampionState(status="present", version="v7", digest="d")
    directories = make_run(tmp_path, champion=champion, champion_ranks=recalled(0.6))
    verdict, decision = run_gate(directories, tmp_path)
    by_name = {check.name: check for check in decision.checks}
    assert verdict == "reject"
    assert by_name["not_worse_than_champion"].value == pytest.approx(-0.2)
    assert by_name["slice surface=search"].value == pytest.approx(-0.2)
    assert by_name["slice advertiser_size_decile=3"].passed is False
    assert decision.champion == champion


def test_gate_writes_a_page_for_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_write_page", DRAW_PAGE)
    run_gate(make_run(tmp_path), tmp_path)
    assert "recall floor" in (tmp_path / "page.html").read_text()


def test_recall_is_that_of_the_index_rather_than_of_exact_search(tmp_path: Path) -> None:
    directories = make_run(tmp_path, candidate=recalled(0.4))
    other = make_run(tmp_path / "other", candidate=recalled(0.2))
    index_dir = tmp_path / "index"
    shutil.copyfile(other["index_dir"] / "ranks.parquet", index_dir / "ranks.parquet")
    _, decision = reseal(index_dir, "index", lambda: run_gate(directories, tmp_path))
    assert next(c.value for c in decision.checks if c.name == "recall_floor") == pytest.approx(0.2)


def test_conversions_that_the_index_did_not_rank_are_never_counted_as_measured(tmp_path: Path) -> None:
    directories = make_run(tmp_path)
    shorter = make_run(tmp_path / "other", candidate=recalled(0.9, 1000))
    shutil.copyfile(shorter["index_dir"] / "ranks.parquet", tmp_path / "index" / "ranks.parquet")
    verdict, _ = reseal(tmp_path / "index", "index", lambda: run_gate(directories, tmp_path))
    assert verdict == "insufficient_data"


def reseal(directory: Path, kind: str, then):
    """Write the manifest again after an edit, as if the artifact had been made this way."""
    from conversion_retrieval.contracts import read_manifest, write_manifest

    old = read_manifest(directory, kind=kind)
    write_manifest(directory, kind=kind, inputs=old.inputs, metadata=old.metadata)
    return then()


def test_index_of_another_model_is_rejected(tmp_path: Path) -> None:
    directories = make_run(tmp_path)
    other = make_run(tmp_path / "other", name="other")
    verdict, decision = run_gate({**directories, "index_dir": other["index_dir"]}, tmp_path)
    assert verdict == "reject"
    assert "index.model" in decision.reason


@pytest.mark.parametrize(("validation", "verdict"), [("invalid", "reject"), ("", "insufficient_data")])
def test_unproven_data_promotes_nothing(tmp_path: Path, validation: str, verdict: str) -> None:
    assert run_gate(make_run(tmp_path, validation=validation), tmp_path)[0] == verdict


def test_missing_index_recall_is_not_a_pass(tmp_path: Path) -> None:
    assert run_gate(make_run(tmp_path, index_recall=None), tmp_path)[0] == "insufficient_data"


@pytest.mark.parametrize("file", ["index/index.faiss", "evaluation/ranks.parquet", "model/weights.safetensors"])
def test_altered_file_stops_the_gate_with_its_name(tmp_path: Path, file: str) -> None:
    directories = make_run(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(CorruptArtifactError, match=Path(file).name):
        run_gate(directories, tmp_path)


def test_promotion_makes_a_judged_candidate_the_champion(tmp_path: Path) -> None:
    directories = make_run(tmp_path)
    run_gate(directories, tmp_path)
    version = promote(**promotion(directories, tmp_path))
    pointer = json.loads((tmp_path / "registry/champion.json").read_text())
    assert pointer["version"] == version
    weights = tmp_path / "registry/versions" / version / "model/weights.safetensors"
    assert weights.read_bytes() == (tmp_path / "model/weights.safetensors").read_bytes()


def test_promotion_again_finds_itself_done(tmp_path: Path) -> None:
    directories = make_run(tmp_path)
    run_gate(directories, tmp_path)
    versions = [promote(**promotion(directories, tmp_path)) for _ in range(3)]
    assert len(set(versions)) == 1
    assert len(Registry.open(tmp_path / "registry").history()) == 1


@pytest.mark.parametrize("verdict", ["reject", "insufficient_data"])
def test_other_verdicts_are_not_promoted(tmp_path: Path, verdict: str) -> None:
    directories = make_run(tmp_path)
    make_decision(tmp_path, verdict=verdict)
    with pytest.raises(UserError, match=f"found {verdict}"):
        promote(**promotion(directories, tmp_path))
    assert not (tmp_path / "registry").exists()


@pytest.mark.parametrize("part", ["model", "index", "evaluation", "features", "spec"])
def test_artifacts_other_than_the_judged_ones_are_not_promoted(tmp_path: Path, part: str) -> None:
    directories = make_run(tmp_path)
    run_gate(directories, tmp_path)
    (tmp_path / part / "extra.txt").write_text("made later")
    with pytest.raises(UserError, match=f"expected the {part} that the gate judged"):
        reseal(tmp_path / part, part, lambda: promote(**promotion(directories, tmp_path)))
    assert not (tmp_path / "registry").exists()


def test_candidate_judged_against_a_past_champion_is_told_so(tmp_path: Path) -> None:
    for name in ("first", "second"):
        run_gate(make_run(tmp_path / name, name=name, candidate=recalled(0.4)), tmp_path / name)
    registry_uri = str(tmp_path / "registry")
    first = {**promotion(make_paths(tmp_path / "first"), tmp_path / "first"), "registry_uri": registry_uri}
    second = {**promotion(make_paths(tmp_path / "second"), tmp_path / "second"), "registry_uri": registry_uri}
    winner = promote(**first)
    with pytest.raises(LostRaceError, match=f"found {winner}.* evaluate and gate the candidate again"):
        promote(**second)
    assert Registry.open(registry_uri).champion().version == winner


def make_paths(root: Path) -> dict[str, Path]:
    return {f"{kind}_dir": root / kind for kind in ("features", "spec", "model", "evaluation", "index")}


def test_thresholds_come_from_the_configuration(tmp_path: Path) -> None:
    directories = make_run(tmp_path)
    assert run_gate(directories, tmp_path, config=gate_config(min_recall=0.5))[0] == "reject"


def test_nan_ranks_are_never_a_pass(tmp_path: Path) -> None:
    candidate = recalled(0.4)
    candidate[11] = np.nan
    assert run_gate(make_run(tmp_path, candidate=candidate), tmp_path)[0] == "insufficient_data"


@pytest.mark.parametrize("left", [["engagement"], []])
def test_a_test_window_without_conversions_is_not_enough_to_decide(tmp_path: Path, left: list[str]) -> None:
    directories = make_run(tmp_path)
    for kind in ("evaluation", "index"):
        path = directories[f"{kind}_dir"] / "ranks.parquet"
        ranks = pd.read_parquet(path)
        ranks[(ranks["task"] == 1) & bool(left)].to_parquet(path)
    slices = directories["evaluation_dir"] / "slices.parquet"
    pd.read_parquet(slices).head(0).to_parquet(slices)

    reseal(directories["evaluation_dir"], "evaluation", lambda: None)
    reseal(directories["index_dir"], "index", lambda: None)
    verdict, decision = run_gate(directories, tmp_path)
    assert verdict == "insufficient_data"
    checks = {c.name: c for c in decision.checks}
    assert checks["enough_conversions"].n == 0
    assert {c.detail for name, c in checks.items() if name.startswith("beats_")} == {"no conversions to compare on"}


def test_conversions_without_their_slices_stop_the_gate_rather_than_pass_its_guardrails(tmp_path: Path) -> None:
    directories = make_run(tmp_path)
    path = directories["evaluation_dir"] / "slices.parquet"
    pd.read_parquet(path).assign(item="known").to_parquet(path)
    with pytest.raises(
        CorruptArtifactError, match=r"a row for each conversion at .*slices\.parquet, found none for 2000"
    ):
        reseal(directories["evaluation_dir"], "evaluation", lambda: run_gate(directories, tmp_path))


def test_gate_needs_neither_network_nor_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_write_page", DRAW_PAGE)
    monkeypatch.setattr(socket, "socket", None)  # opening one would fail
    for name in [name for name in os.environ if name.startswith(("GOOGLE_", "STORAGE_", "CLOUDSDK_"))]:
        monkeypatch.delenv(name)
    champion = ChampionState(status="present", version="v7", digest="d")
    directories = make_run(tmp_path, champion=champion, champion_ranks=recalled(0.3))
    assert run_gate(directories, tmp_path)[0] == "promote"
