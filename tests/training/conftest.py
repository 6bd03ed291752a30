from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conversion_retrieval.features.build import build_features
from tests.features.tables import write_snapshot
from tests.training.runs import built_config
from tests.worlds import tiny_world


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Features and spec of a small synthetic world, as ``built_config`` asks for them."""
    directory = tmp_path_factory.mktemp("world")
    data = tiny_world(directory / "data")
    tables = {name: pq.read_table(next(data.glob(f"{name}*"))) for name in ("events", "items", "users")}
    snapshot_dir = write_snapshot(directory / "snapshot", tables["events"], tables["items"], tables["users"])
    dirs = {"features_dir": directory / "features", "spec_dir": directory / "spec"}
    build_features(snapshot_dir=snapshot_dir, config=built_config(), **dirs)
    return dirs
