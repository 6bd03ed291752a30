"""What fills the memory; oracle: NumPy's dense SVD and ridge regression of matrices written down event by event."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from conversion_retrieval.features.build import build_features
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.model.memory import Memory
from conversion_retrieval.training.examples import Examples
from conversion_retrieval.training.factors import POPULARITY_POWER, fill_memory, newest_apart
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


def _filled(dataset, task_weights=None, **model):
    config = small_config(model={"memory_dim": DIM, "normalize": False, **model})
    examples = Examples.of(dataset.split("train"), dataset.item_advertiser, task_weights or config.losses.task_weights)
    memory = Memory(dataset.spec.item_ids.rows, config.model)
    fill_memory(memory, dataset, examples, config)
    return memory


def _entries(counts):
    entries = np.log1p(counts)
    return entries / np.maximum(np.linalg.norm(entries, axis=1, keepdims=True), 1e-12)


def _matrix(dataset, before, half_life_days):
    events = dataset.events
    counts = np.zeros((dataset.num_users, dataset.num_items))
    for user in range(dataset.num_users):
        for position in range(events.offsets[user], events.offsets[user + 1]):
            item = events.item[position]
            if events.available[position] < before and item >= 0:
                counts[user, item] += 2 ** (-(before - events.time[position]) / MICROSECONDS_A_DAY / half_life_days)
    return _entries(counts)


def test_factors_span_the_leading_directions_of_what_was_known_before_validation(dataset):
    memory = _filled(dataset, memory_fit="svd")
    before = int(dataset.split("validation").time.min())
    matrix = _matrix(dataset, before, memory.half_life_days)
    known = dataset.items.id_code > 0
    found = memory.items(torch.from_numpy(dataset.items.id_code)).numpy()
    kept = np.linalg.norm(matrix[:, known] @ found[known])
    best = np.sqrt((np.linalg.svd(matrix, compute_uv=False)[:DIM] ** 2).sum())
    # Cold items lose their factors, so a little less than the best rank-8 subspace is kept.
    assert 0.97 * best < kept < 1.001 * best
    assert np.abs(memory.factors[0].numpy()).max() == 0


def _histories(dataset, split, rows, half_life_days):
    """As the model sees them: the last ``history_length`` events before each query."""
    counts = np.zeros((len(rows), dataset.num_items))
    for at, row in enumerate(rows):
        first, end = dataset.events.offsets[split.user[row]], split.history_end[row]
        for position in range(max(first, end - dataset.spec.history_length), end):
            if (item := dataset.events.item[position]) >= 0:
                age_days = (split.time[row] - dataset.events.time[position]) / MICROSECONDS_A_DAY
                counts[at, item] += 2 ** (-age_days / half_life_days)
    return _entries(counts)


@pytest.mark.parametrize(
    ("task_weights", "task"), [({"conversion": 1.0, "engagement": 1.0}, 0), ({"engagement": 1.0}, 1)]
)
def test_the_map_is_the_regression_of_what_followed_on_histories(dataset, task_weights, task):
    # Of full rank: what a lower one keeps is tested with the regression itself.
    memory = _filled(dataset, task_weights, memory_dim=dataset.num_items, memory_ridge=2.0, memory_half_life_days=5.0)
    split = dataset.split("train")
    chosen = split.positives.task == task
    rows = np.unique(split.positives.query[chosen])
    followed = np.zeros((len(rows), dataset.num_items))
    followed[np.searchsorted(rows, split.positives.query[chosen]), split.positives.item[chosen]] = 1
    histories = _histories(dataset, split, rows, 5.0)
    weights = np.maximum(followed.sum(axis=0), 1) ** -POPULARITY_POWER
    targets = followed * weights * followed.sum() / (followed * weights).sum()
    gram = histories.T @ histories + 2.0 * np.eye(dataset.num_items)
    expected = np.linalg.solve(gram, histories.T @ targets)
    codes = torch.from_numpy(dataset.items.id_code)
    found = memory.history_factors[codes] @ memory.factors[codes].T
    known = dataset.items.id_code > 0
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found[known][:, known], expected[known][:, known], atol=0.03 * scale)
    assert memory.factors[0].abs().max() == memory.history_factors[0].abs().max() == 0


def test_queries_of_overlapping_windows_are_taken_once():
    time = np.array([10, 10, 12, 14, 14, 15, 18, 18])
    every = np.arange(8)
    # Back from 18: the next moment at least 4 earlier is 14, then 10.
    assert newest_apart(time, every, apart=4, count=10).tolist() == [0, 1, 3, 4, 6, 7]
    assert newest_apart(time, every, apart=0, count=3).tolist() == [5, 6, 7]
    assert newest_apart(time, np.array([0, 2, 5]), apart=3, count=10).tolist() == [2, 5]
