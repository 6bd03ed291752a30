"""What fills the memory; oracle: NumPy's dense SVD of the matrix written down event by event."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from conversion_retrieval.features.build import build_features
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.model.config import ModelConfig
from conversion_retrieval.model.memory import Memory
from conversion_retrieval.training.factors import fill_memory
from tests.features.tables import write_snapshot
from tests.training.runs import small_config
from tests.worlds import tiny_world

DIM = 8
MICROSECONDS_A_DAY = 86_400_000_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    data = tiny_world(directory / "data")
    tables = [pq.read_table(next(data.glob(f"{name}*"))) for name in ("events", "items", "users")]
    config = small_config(split={"validation_days": 6, "test_days": 6}, features={"history_length": 16})
    dirs = {"features_dir": directory / "features", "spec_dir": directory / "spec"}
    build_features(snapshot_dir=write_snapshot(directory / "snapshot", *tables), config=config, **dirs)
    return FeatureDataset.open(dirs["features_dir"], FeatureSpec.load(dirs["spec_dir"]))


def _matrix(dataset, before, half_life_days):
    events = dataset.events
    counts = np.zeros((dataset.num_users, dataset.num_items))
    for user in range(dataset.num_users):
        for position in range(events.offsets[user], events.offsets[user + 1]):
            item = events.item[position]
            if events.available[position] < before and item >= 0:
                counts[user, item] += 2 ** (-(before - events.time[position]) / MICROSECONDS_A_DAY / half_life_days)
    entries = np.log1p(counts)
    return entries / np.maximum(np.linalg.norm(entries, axis=1, keepdims=True), 1e-12)


def test_factors_span_the_leading_directions_of_what_was_known_before_validation(dataset):
    memory = Memory(dataset.spec.item_ids.rows, ModelConfig(normalize=False, memory_dim=DIM))
    fill_memory(memory, dataset, seed=0)
    before = int(dataset.split("validation").time.min())
    matrix = _matrix(dataset, before, memory.half_life_days)
    known = dataset.items.id_code > 0
    found = memory.items(torch.from_numpy(dataset.items.id_code)).numpy()
    kept = np.linalg.norm(matrix[:, known] @ found[known])
    best = np.sqrt((np.linalg.svd(matrix, compute_uv=False)[:DIM] ** 2).sum())
    # Cold items lose their factors, so a little less than the best rank-8 subspace is kept.
    assert 0.97 * best < kept < 1.001 * best
    assert np.abs(memory.factors[0].numpy()).max() == 0
