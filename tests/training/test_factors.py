"""What fills the memory; oracle: NumPy's dense SVD and ridge regression of matrices written down event by event."""

import numpy as np
import pyarrow.parquet as pq
import pytest

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


WORLDS = {
    "plain ids": {},
    "hashed ids": {"features": {"item_id_buckets": 60}},
    "windows": {"split": {"training_queries": "window", "training_window_days": 4, "training_stride_days": 2}},
}


@pytest.fixture(scope="module", params=WORLDS)
def world(request, tmp_path_factory):
    """A data set and the split options that it was built with."""
    directory, options = tmp_path_factory.mktemp("world"), WORLDS[request.param]
    data = tiny_world(directory / "data")
    tables = [pq.read_table(next(data.glob(f"{name}*"))) for name in ("events", "items", "users")]
    split = {"validation_days": 6, "test_days": 6, **options.get("split", {})}
    config = small_config(split=split, features={"history_length": 16, **options.get("features", {})})
    dirs = {"features_dir": directory / "features", "spec_dir": directory / "spec"}
    build_features(snapshot_dir=write_snapshot(directory / "snapshot", *tables), config=config, **dirs)
    return FeatureDataset.open(dirs["features_dir"], FeatureSpec.load(dirs["spec_dir"])), split


def _filled(world, task_weights=None, *, names=("train",), before="validation", **model):
    dataset, split = world
    config = small_config(model={"memory_dim": DIM, "normalize": False, **model}, split=split)
    weights = task_weights or config.losses.task_weights
    parts = [Examples.of(dataset.split(name), dataset.item_advertiser, weights) for name in names]
    memory = Memory(dataset.spec.item_ids.rows, config.model)
    memory.factors.fill_(9.0)  # nothing of an earlier fit stays
    fill_memory(memory, dataset, parts, config, before=before)
    return memory


def _entries(counts):
    entries = np.log1p(counts)
    return entries / np.maximum(np.linalg.norm(entries, axis=1, keepdims=True), 1e-12)


def _count(counts, dataset, position, time, half_life_days):
    """Add one event; items by id code, those without one left out."""
    item = dataset.events.item[position]
    if item >= 0 and (code := dataset.items.id_code[item]):
        age_days = (time - dataset.events.time[position]) / MICROSECONDS_A_DAY
        counts[code - 1] += 2 ** (-age_days / half_life_days)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_factors_span_the_leading_directions_of_what_was_known_before_a_window(world, name):
    memory, dataset = _filled(world, memory_fit="svd", before=name), world[0]
    before, events = int(dataset.split(name).time.min()), dataset.events
    counts = np.zeros((dataset.num_users, dataset.spec.item_ids.rows - 1))
    for user in range(dataset.num_users):
        for position in range(events.offsets[user], events.offsets[user + 1]):
            if events.available[position] < before:
                _count(counts[user], dataset, position, before, memory.half_life_days)
    matrix = _entries(counts)
    kept = np.linalg.norm(matrix @ memory.factors[1:].numpy())
    best = np.sqrt((np.linalg.svd(matrix, compute_uv=False)[:DIM] ** 2).sum())
    assert 0.99 * best < kept < 1.001 * best
    assert memory.factors[0].abs().max() == 0


def _histories(dataset, split, rows, half_life_days):
    """As the model sees them: the last ``history_length`` events before each query."""
    counts = np.zeros((len(rows), dataset.spec.item_ids.rows - 1))
    for at, row in enumerate(rows):
        first, end = dataset.events.offsets[split.user[row]], split.history_end[row]
        for position in range(max(first, end - dataset.spec.history_length), end):
            _count(counts[at], dataset, position, split.time[row], half_life_days)
    return _entries(counts)


def _regressed_on(split, chosen, options):
    """The queries with ``chosen`` positives; of overlapping windows those of the newest, and every window before."""
    rows = np.unique(split.positives.query[chosen])
    if options.get("training_queries") != "window":
        return rows
    last, stride = split.time[rows].max(), options["training_stride_days"] * MICROSECONDS_A_DAY
    windows_back = (last - split.time[rows]) // stride
    return rows[windows_back % (options["training_window_days"] // options["training_stride_days"]) == 0]


def _followed(dataset, split, rows, chosen, width):
    followed, codes = np.zeros((len(rows), width)), dataset.items.id_code
    kept = chosen & np.isin(split.positives.query, rows)
    followed[np.searchsorted(rows, split.positives.query[kept]), codes[split.positives.item[kept]] - 1] = 1
    return followed


def _assert_regression(memory, histories, followed, ridge):
    weights = np.maximum(followed.sum(axis=0), 1) ** -POPULARITY_POWER
    targets = followed * weights * followed.sum() / (followed * weights).sum()
    penalised = histories.T @ histories + ridge * np.eye(followed.shape[1])
    expected = np.linalg.solve(penalised, histories.T @ targets)
    found = memory.history_factors[1:] @ memory.factors[1:].T
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())
    assert memory.factors[0].abs().max() == memory.history_factors[0].abs().max() == 0


@pytest.mark.parametrize(
    ("task_weights", "task", "ridge"),
    [({"conversion": 1.0, "engagement": 1.0}, 0, 2.0), ({"engagement": 1.0}, 1, 0.7)],
)
def test_the_map_is_the_regression_of_what_followed_on_histories(world, task_weights, task, ridge):
    dataset, options = world
    # Of full rank: what a lower one keeps is tested with the regression itself.
    width = dataset.spec.item_ids.rows - 1
    memory = _filled(world, task_weights, memory_dim=width, memory_ridge=ridge, memory_half_life_days=5.0)
    split = dataset.split("train")
    chosen = (split.positives.task == task) & (dataset.items.id_code[split.positives.item] > 0)
    rows = _regressed_on(split, chosen, options)
    histories = _histories(dataset, split, rows, 5.0)
    _assert_regression(memory, histories, _followed(dataset, split, rows, chosen, width), ridge)


@pytest.mark.parametrize("world", ["plain ids", "hashed ids"], indirect=True)
def test_queries_of_several_splits_are_regressed_together(world):
    dataset, width = world[0], world[0].spec.item_ids.rows - 1
    memory = _filled(world, names=("train", "recent"), memory_dim=width, memory_ridge=2.0, memory_half_life_days=5.0)
    histories, followed, later = [], [], set()
    for name in ("recent", "train"):
        split = dataset.split(name)
        chosen = (split.positives.task == 0) & (dataset.items.id_code[split.positives.item] > 0)
        # A query that is in both, with more labels in the later, counts once.
        keys = list(zip(split.user, split.time, split.surface, split.context_item, strict=True))
        repeated = np.array([key in later for key in keys])
        assert repeated.any() == (name == "train")
        chosen &= ~repeated[split.positives.query]
        later.update(keys)
        rows = np.unique(split.positives.query[chosen])
        assert len(rows)
        histories.append(_histories(dataset, split, rows, 5.0))
        followed.append(_followed(dataset, split, rows, chosen, width))
    _assert_regression(memory, np.concatenate(histories), np.concatenate(followed), 2.0)


def test_queries_of_overlapping_windows_are_taken_once():
    time = np.array([10, 10, 12, 14, 14, 15, 18, 18])
    every = np.arange(8)
    # Back from 18: the next moment at least 4 earlier is 14, then 10.
    assert newest_apart(time, every, apart=4, count=10).tolist() == [0, 1, 3, 4, 6, 7]
    assert newest_apart(time, every, apart=0, count=3).tolist() == [5, 6, 7]
    assert newest_apart(time, np.array([0, 2, 5]), apart=3, count=10).tolist() == [2, 5]


def test_of_the_last_moment_with_room_any_query_may_be_taken():
    time = np.repeat([10, 20], [50, 5])
    taken = [newest_apart(time, np.arange(55), apart=0, count=15, seed=seed) for seed in range(5)]
    assert all(len(rows) == 15 and set(range(50, 55)) <= set(rows.tolist()) for rows in taken)
    assert len(set(np.concatenate(taken).tolist()) & set(range(50))) > 25
