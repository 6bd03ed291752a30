"""One small trained bundle, made by the real stages from the synthetic world."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conversion_retrieval.config import PipelineConfig, parse_config
from conversion_retrieval.contracts import new_artifact, read_manifest
from conversion_retrieval.registry.bundle import assemble_bundle
from conversion_retrieval.registry.decision import ChampionState, Decision, read_decision, write_decision
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.serving.bundle_cache import CACHE_VARIABLE
from conversion_retrieval.serving.retriever import Retriever
from tests.worlds import tiny_world

KINDS = ("features", "spec", "model", "evaluation", "index")
CONFIG = parse_config(
    {
        "features": {"history_length": 16},
        "model": {"embedding_dim": 16, "feature_dim": 4},
        "training": {"max_steps": 4, "batch_size": 64, "max_epochs": 1},
    }
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's directories."""

    root: Path
    data_dir: Path
    config: PipelineConfig

    def directory(self, kind: str) -> Path:
        return self.root / kind

    def bundle(self, path: Path, champion: ChampionState) -> tuple[Path, Decision]:
        """A bundle whose decision was made against ``champion``: every call gives another version."""
        digests = {kind: read_manifest(self.directory(kind), kind=kind).digest for kind in KINDS}
        decision = Decision(verdict="promote", reason=str(path), checks=(), champion=champion, candidate=digests)
        with new_artifact(path / "decision", kind="decision") as working_dir:
            write_decision(working_dir, decision)
        directories = {f"{kind}_dir": self.directory(kind) for kind in KINDS}
        assemble_bundle(path / "bundle", decision_dir=path / "decision", **directories)
        return path / "bundle", read_decision(path / "decision")


@pytest.fixture(scope="session", autouse=True)
def bundle_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Copies of bundles go into a directory of the tests, those of processes that they start too."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("cache")
        patch.setenv(CACHE_VARIABLE, str(path))
        yield path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from conversion_retrieval.features.build import build_features
    from conversion_retrieval.index.stage import build_index
    from conversion_retrieval.training.stage import train

    root = tmp_path_factory.mktemp("run")
    data_dir = tiny_world(root / "data")
    make_snapshot(data_dir, root / "snapshot")
    directories = {"features_dir": root / "features", "spec_dir": root / "spec"}
    build_features(snapshot_dir=root / "snapshot", **directories, config=CONFIG)
    train(**directories, model_dir=root / "model", config=CONFIG)
    build_index(**directories, model_dir=root / "model", index_dir=root / "index", config=CONFIG)
    with new_artifact(root / "evaluation", kind="evaluation") as working_dir:
        (working_dir / "metrics.json").write_text("[]")
    return Run(root=root, data_dir=data_dir, config=CONFIG)


@pytest.fixture(scope="session")
def retriever(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    bundle_dir, _ = run.bundle(tmp_path_factory.mktemp("bundle"), ChampionState(status="absent"))
    return Retriever.open(bundle_dir)


@pytest.fixture
def registry(run: Run, tmp_path: Path) -> Registry:
    """A local registry whose champion is the run's bundle."""
    registry = Registry.open(tmp_path / "registry")
    registry.promote(*run.bundle(tmp_path / "first", ChampionState(status="absent")))
    return registry


def make_snapshot(data_dir: Path, snapshot_dir: Path) -> None:
    """The world's tables in the snapshot's layout; they need no cleaning."""
    from conversion_retrieval.tables import read_tables

    tables = read_tables(data_dir)
    keys = [(name, "ascending") for name in ("user_id", "event_time", "event_id")]
    with new_artifact(snapshot_dir, kind="snapshot") as working_dir:
        (working_dir / "events").mkdir()
        pq.write_table(tables.events.read().sort_by(keys), working_dir / "events" / "part-00000.parquet")
        write_sorted(tables.items.read(), "item_id", working_dir / "items.parquet")
        if tables.users:
            write_sorted(tables.users.read(), "user_id", working_dir / "users.parquet")


def write_sorted(table: pa.Table, key: str, path: Path) -> None:
    pq.write_table(table.sort_by(key), path)
