"""Oracle: the rule of choice applied by hand to points written down; exact search for recall."""

import numpy as np
import pytest

from conversion_retrieval.errors import UserError
from conversion_retrieval.index import tune
from conversion_retrieval.index.config import IndexConfig
from conversion_retrieval.index.tune import Point, choose, search_recall, tune_index
from tests.index.test_build import clustered


def point(recall, qps, *, p99_ms=1.0, memory_mb=1.0):
    return Point(
        kind="ivf",
        factory="",
        setting="",
        recall=recall,
        p50_ms=0.5,
        p99_ms=p99_ms,
        queries_per_second=qps,
        memory_mb=memory_mb,
    )


def test_the_fastest_setting_that_reaches_the_target_is_chosen():
    fast, good, better = point(0.9, 1000), point(0.98, 500), point(1.0, 100)
    for points in ([fast, better, good], [good, better, fast]):
        assert choose(points, IndexConfig(target_recall=0.98)) is good


def test_a_setting_over_the_memory_budget_is_not_chosen_however_good():
    within, beyond = point(0.7, 10), point(1.0, 5000, memory_mb=9000.0)
    assert choose([within, beyond], IndexConfig(max_memory_mb=4096)) is within


def test_latency_gives_way_before_recall_does():
    quick, slow, slower = point(0.97, 5000), point(0.98, 10, p99_ms=30), point(1.0, 20, p99_ms=40)
    assert choose([quick, slower, slow], IndexConfig(max_latency_ms=20)) is slow
    assert slow.met(IndexConfig(max_latency_ms=20)) == {"recall": True, "latency": False, "memory": True}


def test_without_a_setting_within_the_budget_the_most_accurate_is_chosen():
    worse, better = point(0.7, 10, p99_ms=99), point(0.8, 5, p99_ms=99)
    assert choose([worse, better], IndexConfig(max_latency_ms=20)) is better


def test_recall_counts_shared_items_and_never_missing_ones():
    truth, found = np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([[4, 3, -1, -1], [9, 10, 11, 5]])
    vectors, queries = np.eye(12, dtype=np.float32), np.zeros((2, 12), np.float32)
    np.put_along_axis(queries, truth, 1, axis=1)
    np.testing.assert_allclose(search_recall(found, truth, queries, vectors), [0.5, 0.25])


def test_of_equally_scored_items_any_counts_as_often_as_the_list_has_room_for_it():
    # Two better items, and five equal ones for the two places that are left.
    vectors, queries = np.array([[3], [2], [1], [1], [1], [1], [1], [0]], np.float32), np.ones((1, 1), np.float32)
    lists = {(0, 1, 5, 6): 1.0, (0, 1, 5, 7): 0.75, (0, 5, 6, -1): 0.75, (3, 4, 5, 6): 0.5, (7, -1, -1, -1): 0.0}
    for found, recall in lists.items():
        assert search_recall(np.array([found]), np.array([[0, 1, 2, 3]]), queries, vectors) == recall


@pytest.mark.parametrize("copies", [200, 600])
def test_an_exact_index_finds_all_of_exact_search_where_items_are_the_same(copies):
    items, queries = clustered(600, 16), clustered(20, 16, seed=1)
    items[-copies:] = items[-1]
    tuned = tune_index(items, queries, IndexConfig(max_latency_ms=1e6))
    assert (tuned.chosen.recall, all(tuned.met.values())) == (1.0, True)


def test_a_small_catalogue_is_searched_exactly():
    items, queries = clustered(500, 16), clustered(20, 16, seed=1)
    tuned = tune_index(items, queries, IndexConfig(max_latency_ms=1e6))
    assert (tuned.chosen.kind, tuned.chosen.recall, all(tuned.met.values())) == ("exact", 1.0, True)


@pytest.mark.parametrize("count", [1, 2, 15, 16])
def test_a_catalogue_too_small_for_quantisers_gets_the_other_kinds(count):
    items, queries = clustered(count, 8), clustered(20, 8, seed=1)
    tuned = tune_index(items, queries, IndexConfig(max_exact_items=0, max_latency_ms=1e6))
    assert (tuned.chosen.recall, all(tuned.met.values())) == (1.0, True)
    assert {p.kind for p in tuned.trade_off} >= {"exact", "ivf", "hnsw"}
    if count < 16:
        with pytest.raises(UserError, match=f"expected 16 items or more for index.kind=ivf_pq, found {count}: set"):
            tune_index(items, queries, IndexConfig(kind="ivf_pq"))


def test_a_large_catalogue_is_tuned_to_the_target_and_the_parameters_are_left_set():
    items, queries = clustered(6_000, 16), clustered(100, 16, seed=1)
    config = IndexConfig(max_exact_items=1_000, target_recall=0.95, recall_k=20, max_latency_ms=1e6)
    tuned = tune_index(items, queries, config)
    assert {p.kind for p in tuned.trade_off} == {"exact", "ivf", "hnsw", "ivf_pq"}
    assert all(tuned.met.values())
    assert tuned.chosen.recall >= 0.95
    _, found = tuned.index.search(queries, 20)
    truth = np.argsort(-(queries @ items.T), axis=1)[:, :20]
    assert search_recall(found, truth, queries, items).mean() == pytest.approx(tuned.chosen.recall, abs=0.002)


def test_a_kind_is_left_after_two_settings_that_are_slower_than_what_keeps_all_targets(monkeypatch):
    """Exact search comes first and takes a second here, every other search two; one of 0.5 s starts the count anew."""
    searched, seconds = tune._processor_seconds, iter([1.0, 2.0, 0.5, 2.0, 2.0, *[2.0] * 4])

    def timed(search, queries, k):
        own, found = searched(search, queries, k)
        return (own if len(queries) == 1 else next(seconds)), found

    monkeypatch.setattr(tune, "_processor_seconds", timed)
    # Directions without any structure, so that no setting but the last ones reaches the target.
    items, queries = (
        np.random.default_rng(seed).standard_normal((n, 64), np.float32) for seed, n in ((0, 8_000), (1, 40))
    )
    tuned = tune_index(items, queries, IndexConfig(max_exact_items=1_000, target_recall=1.0, max_latency_ms=1e6))
    assert [point.kind for point in tuned.trade_off] == ["exact", *["ivf_pq"] * 4, *["ivf"] * 2, *["hnsw"] * 2]
    assert tuned.chosen.kind == "exact"


def test_a_budget_out_of_reach_is_reported_as_missed():
    items, queries = clustered(3_000, 16), clustered(30, 16, seed=1)
    tuned = tune_index(items, queries, IndexConfig(kind="ivf", target_recall=1.0, max_latency_ms=1e-9))
    assert tuned.met == {"recall": True, "latency": False, "memory": True}


def test_a_target_of_everything_is_reached_where_nearly_all_approximations_lose_something():
    # Directions without any structure: cells and graphs have nothing to go by.
    items, queries = (
        np.random.default_rng(seed).standard_normal((n, 64), np.float32) for seed, n in ((0, 8_000), (1, 40))
    )
    tuned = tune_index(items, queries, IndexConfig(max_exact_items=1_000, target_recall=1.0, max_latency_ms=1e-9))
    assert tuned.chosen.recall == 1.0
    assert tuned.met == {"recall": True, "latency": False, "memory": True}
    assert [point.recall for point in tuned.trade_off if point.kind == "exact"] == [1.0]
    assert sum(point.recall < 1 for point in tuned.trade_off) > len(tuned.trade_off) / 2


def test_kinds_over_the_memory_budget_are_not_built():
    items, queries = clustered(3_000, 64), clustered(30, 64, seed=1)
    config = IndexConfig(max_exact_items=100, max_memory_mb=0.5, recall_k=10, max_latency_ms=1e6)
    assert {p.kind for p in tune_index(items, queries, config).trade_off} == {"ivf_pq"}
