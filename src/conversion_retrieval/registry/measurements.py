"""Reading what the gate judges from the artifacts of a run."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conversion_retrieval.contracts import Manifest, open_artifact
from conversion_retrieval.errors import CorruptArtifactError
from conversion_retrieval.registry.decision import ChampionState
from conversion_retrieval.registry.gate_inputs import (
    CANDIDATE,
    ConversionRanks,
    DigestPair,
    GateInputs,
    IndexRecall,
)

CONVERSION_TASK: Final = 0
KEY: Final = ["query", "item", "event_type"]
# Which artifact recorded the digest of which input.
RECORDED: Final = (
    ("model", "features"),
    ("model", "spec"),
    ("evaluation", "model"),
    ("evaluation", "features"),
    ("index", "model"),
    ("index", "features"),
)


def read_gate_inputs(
    *,
    report_dir: Path,
    features_dir: Path,
    spec_dir: Path,
    model_dir: Path,
    evaluation_dir: Path,
    index_dir: Path,
    allow_first: bool,
) -> GateInputs:
    """Open and verify all artifacts and collect the measurements; ``CorruptArtifactError`` names a bad file."""
    directories = {"features": features_dir, "spec": spec_dir, "model": model_dir}
    directories |= {"evaluation": evaluation_dir, "index": index_dir}
    manifests = {kind: open_artifact(directory, kind=kind) for kind, directory in directories.items()}
    index = _read_json(index_dir / "index.json")
    return GateInputs(
        ranks=_conversion_ranks(evaluation_dir, index_dir),
        index_recall=_index_recall(index),
        num_items=index.get("num_items"),
        champion=ChampionState(**manifests["evaluation"].metadata["champion"]),
        validation=_validation(report_dir),
        digests=_digest_pairs(manifests),
        candidate_digests={kind: manifest.digest for kind, manifest in manifests.items()},
        allow_first=allow_first,
    )


def _conversion_ranks(evaluation_dir: Path, index_dir: Path) -> ConversionRanks:
    evaluated = _read_conversions(evaluation_dir / "ranks.parquet")
    indexed = _read_conversions(index_dir / "ranks.parquet").set_index(KEY)["rank"]
    by_model = {str(model): rows.set_index(KEY) for model, rows in evaluated.groupby("model")}
    if by_model and CANDIDATE not in by_model:
        raise CorruptArtifactError(f"expected ranks of the candidate, found none at {evaluation_dir / 'ranks.parquet'}")
    base = by_model.pop(CANDIDATE, evaluated.set_index(KEY))  # a test window may hold no conversions at all
    return ConversionRanks(
        users=base["user"].to_numpy(np.int64),
        queries=base.index.get_level_values("query").to_numpy(np.int64),
        candidate=_aligned(indexed, base.index),
        compared={model: _aligned(rows["rank"], base.index) for model, rows in by_model.items()},
        slices=_slices(evaluation_dir / "slices.parquet", base.index),
    )


def _read_conversions(path: Path) -> pd.DataFrame:
    try:
        ranks = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(f"expected ranks at {path}, found: {error}") from None
    return ranks[ranks["task"] == CONVERSION_TASK].drop_duplicates(["model", *KEY])


def _aligned(ranks: "pd.Series[Any]", index: pd.Index) -> NDArray[np.float64]:
    """Ranks in the order of ``index``; a conversion that was not ranked is NaN, so it can never count as a pass."""
    return ranks.reindex(index).to_numpy(np.float64)


def _slices(path: Path, index: pd.Index) -> dict[str, NDArray[np.str_]]:
    rows = pd.read_parquet(path).drop_duplicates(KEY).set_index(KEY)
    if missing := len(index.difference(rows.index)):
        raise CorruptArtifactError(f"expected a row for each conversion at {path}, found none for {missing} of them")
    rows = rows.reindex(index)
    return {str(name): rows[name].astype(str).to_numpy(np.str_) for name in rows.columns}


def _index_recall(values: dict[str, Any]) -> IndexRecall:
    recall = values.get("recall") or {}
    return IndexRecall(value=recall.get("value"), low=recall.get("low"), high=recall.get("high"), n=recall.get("n"))


def _validation(report_dir: Path) -> str:
    open_artifact(report_dir, kind="report")
    return str(_read_json(report_dir / "validation.json").get("verdict", ""))


def _digest_pairs(manifests: dict[str, Manifest]) -> tuple[DigestPair, ...]:
    return tuple(
        DigestPair(
            name=f"{holder}.{name}", expected=manifests[name].digest, found=manifests[holder].inputs.get(name, "")
        )
        for holder, name in RECORDED
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(f"expected JSON at {path}, found: {error}") from None
    if not isinstance(values, dict):
        raise CorruptArtifactError(f"expected a JSON object at {path}, found {type(values).__name__}")
    return values
