"""A small synthetic world, its features and a briefly trained model, made once."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conversion_retrieval.config import PipelineConfig, load_config
from conversion_retrieval.datasets.config import SyntheticConfig
from conversion_retrieval.datasets.synthetic import generate
from conversion_retrieval.features.build import build_features
from conversion_retrieval.training.stage import train
from tests.features.tables import write_snapshot

SETTINGS = (
    "training.max_epochs=1",
    "training.batch_size=256",
    "model.embedding_dim=16",
    "model.feature_dim=4",
    "model.query_tower.hidden_sizes=[32, 16, 16]",
    "model.item_tower.hidden_sizes=[32, 16, 16]",
    "features.history_length=16",
    "evaluation.num_resamples=200",
    "evaluation.pure_svd_factors=[8, 16]",
    "evaluation.item_knn_neighbors=[10, 20]",
    "evaluation.ks=[5, 10, 50, 1000]",
    "gate.k=20",
    "index.tuning_queries=100",
    "index.max_latency_ms=100000",
)


@dataclass(frozen=True)
class World:
    """The artifacts of a run up to the model."""

    snapshot_dir: Path
    features_dir: Path
    spec_dir: Path
    model_dir: Path
    config: PipelineConfig

    @property
    def inputs(self):
        """The arguments that evaluation and indexing share."""
        return {
            "features_dir": self.features_dir,
            "spec_dir": self.spec_dir,
            "model_dir": self.model_dir,
            "config": self.config,
        }


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    directory = tmp_path_factory.mktemp("world")
    config = load_config(None, SETTINGS)
    generate(directory / "data", SyntheticConfig(num_users=150, num_items=200, num_days=40, seed=3))
    tables = {name: pq.read_table(directory / "data" / name) for name in ("events", "items.parquet", "users.parquet")}
    snapshot_dir = directory / "snapshot"
    write_snapshot(snapshot_dir, *tables.values())
    made = World(snapshot_dir, directory / "features", directory / "spec", directory / "model", config)
    build_features(snapshot_dir=snapshot_dir, features_dir=made.features_dir, spec_dir=made.spec_dir, config=config)
    train(features_dir=made.features_dir, spec_dir=made.spec_dir, model_dir=made.model_dir, config=config)
    return made
