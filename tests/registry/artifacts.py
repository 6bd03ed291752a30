"""The artifacts of a run with hand-made ranks: complete and consistent, small enough to make in a millisecond."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.contracts import new_artifact, read_manifest
from conversion_retrieval.registry.bundle import assemble_bundle
from conversion_retrieval.registry.config import GateConfig
from conversion_retrieval.registry.decision import ChampionState, Decision, read_decision, write_decision
from tests.registry.gate_worlds import CONFIG, HIT, NUM_CONVERSIONS, ranks, recalled

PIPELINE_CONFIG = PipelineConfig(gate=CONFIG)
INDEX_FACTS = {
    "kind": "exact",
    "parameters": {"factory": "Flat", "setting": ""},
    "num_items": 1000,
    "dim": 8,
    "latency_ms": {"p50": 0.1, "p99": 0.2},
    "queries_per_second": 1000.0,
    "memory_mb": 0.1,
    "trade_off": [],
}
KINDS = ("report", "features", "spec", "model", "evaluation", "index")


def make_run(
    root: Path,
    *,
    name: str = "run",
    champion: ChampionState | None = None,
    candidate: np.ndarray | None = None,
    champion_ranks: np.ndarray | None = None,
    validation: str = "valid",
    index_recall: float | None = 0.99,
    profile: bytes = b"",
) -> dict[str, Path]:
    """Directories of a run's artifacts by stage argument; ``name`` goes into the weights, so it tells models apart.

    ``profile`` is the features' data profile, if not empty.
    """
    directories = {f"{kind}_dir": root / kind for kind in KINDS}
    candidate = recalled(0.4) if candidate is None else candidate
    with new_artifact(root / "report", kind="report") as path:
        _json(path / "validation.json", {"verdict": validation, "expectations": []})
    with new_artifact(root / "features", kind="features") as path:
        pd.DataFrame({"item_id": ["a", "b"], "advertiser": [0, 1]}).to_parquet(path / "items.parquet")
        _json(path / "features.json", {})
        if profile:
            (path / "profile.json").write_bytes(profile)
    with new_artifact(root / "spec", kind="spec") as path:
        (path / "feature_spec.yaml").write_text("schema_version: 1\n")
    with new_artifact(root / "model", kind="model", inputs=digests(root, "features", "spec")) as path:
        (path / "weights.safetensors").write_bytes(name.encode() * 50)
        _json(path / "config.json", {"model": {"embedding_dim": 64}, "name": name})
        _json(path / "metrics.json", {})
        curve = {"step": [1], "epoch": [0], "split": ["train"], "metric": ["loss"], "value": [1.0]}
        pd.DataFrame(curve).to_parquet(path / "training_curve.parquet")
    inputs = digests(root, "features", "model")
    state = dataclasses.asdict(champion or ChampionState(status="absent"))
    with new_artifact(root / "evaluation", kind="evaluation", inputs=inputs, metadata={"champion": state}) as path:
        _write_evaluation(path, candidate, champion_ranks)
    with new_artifact(root / "index", kind="index", inputs=inputs) as path:
        (path / "index.faiss").write_bytes(b"index of " + name.encode() * 20)
        recall = {"k": 100, "value": index_recall, "low": index_recall, "high": index_recall, "n": 1000}
        _json(path / "index.json", INDEX_FACTS | {"recall": recall})
        _rank_table("candidate", candidate).to_parquet(path / "ranks.parquet")
    return directories


def make_decision(root: Path, *, champion: ChampionState | None = None, verdict: str = "promote") -> Path:
    """A decision about the artifacts below ``root``, as the gate would write it."""
    kinds = [kind for kind in KINDS if kind != "report"]
    candidate = digests(root, *kinds)
    state = champion or ChampionState(status="absent")
    decision = Decision(verdict=verdict, reason="made by hand", checks=(), champion=state, candidate=candidate)
    with new_artifact(root / "decision", kind="decision", inputs=candidate) as path:
        write_decision(path, decision)
    return root / "decision"


def make_bundle(
    root: Path, name: str, champion: ChampionState | None = None, *, profile: bytes = b""
) -> tuple[Path, Decision]:
    """A promotable bundle, decided against ``champion``."""
    directories = make_run(root, name=name, champion=champion, candidate=np.full(4, HIT), profile=profile)
    del directories["report_dir"]
    decision_dir = make_decision(root, champion=champion)
    assemble_bundle(root / "bundle", decision_dir=decision_dir, **directories)
    return root / "bundle", read_decision(decision_dir)


def digests(root: Path, *kinds: str) -> dict[str, str]:
    """The digests of artifacts by kind."""
    return {kind: read_manifest(root / kind, kind=kind).digest for kind in kinds}


def gate_config(**changes: Any) -> PipelineConfig:
    """The tests' configuration with other thresholds."""
    return PipelineConfig(gate=GateConfig(**{**dataclasses.asdict(CONFIG), **changes}))


def _write_evaluation(path: Path, candidate: np.ndarray, champion_ranks: np.ndarray | None) -> None:
    world = ranks(candidate)
    row = {"name": "conversion/recall@100", "model": "candidate", "slice": "all", "value": 0.4}
    _json(path / "metrics.json", [row | {"low": 0.3, "high": 0.5, "n_queries": 1000, "n_positives": NUM_CONVERSIONS}])
    tables = {"candidate": candidate, "popularity": world.compared["popularity"]}
    if champion_ranks is not None:
        tables["champion"] = champion_ranks
    pd.concat([_rank_table(model, values) for model, values in tables.items()]).to_parquet(path / "ranks.parquet")
    table = _rank_table("candidate", candidate)
    keys = table.loc[table["task"] == 0, ["query", "item", "event_type"]].iloc[::-1]
    keys.assign(**world.slices).sample(frac=1, random_state=0).to_parquet(path / "slices.parquet")


def _rank_table(model: str, values: np.ndarray) -> pd.DataFrame:
    """Conversions with the given ranks, in reverse order, and as many engagements that must not count."""
    rows = np.arange(len(values))
    conversions = pd.DataFrame(
        {
            "model": model,
            "query": rows // 2,
            "user": (rows // 2).astype(np.int32),
            "item": (rows % 2).astype(np.int32),
            "event_type": np.int8(4),
            "task": np.int8(0),
            "new_to_user": True,
            "advertiser": np.int32(0),
            "rank": values,
        }
    )
    engagements = conversions.assign(task=np.int8(1), event_type=np.int8(1), rank=0)
    return pd.concat([conversions[::-1], engagements], ignore_index=True)


def _json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values))
