"""Oracle: dense matrices by the definitions; hand-made logs with known answers."""

import numpy as np
import pytest
from scipy import sparse

from conversion_retrieval.evaluation import config as names
from conversion_retrieval.evaluation.baselines import BASELINES, QuerySet, fit_baseline
from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.evaluation.events import (
    MICROSECONDS_A_DAY,
    EventLog,
    Windows,
    affinities,
    recency_affinities,
    seen_items,
)
from conversion_retrieval.evaluation.item_knn import fit_item_knn, nearest_neighbors
from conversion_retrieval.evaluation.overlap import engagements_only, moved
from conversion_retrieval.evaluation.own_history import fit_own_history
from conversion_retrieval.evaluation.popularity import fit_popularity, fit_recent_popularity
from conversion_retrieval.evaluation.pure_svd import fit_pure_svd
from conversion_retrieval.evaluation.ranking import ItemLists, score_ranks
from conversion_retrieval.schema import EVENT_TYPES

CHECKOUT, CLICK = EVENT_TYPES.index("checkout") + 1, EVENT_TYPES.index("click") + 1
CONFIG = EvaluationConfig(pure_svd_factors=(2, 3), item_knn_neighbors=(2, 3), engagement_weights=(0.5,))


def log_of(rows, num_users, num_items):
    """A log from (user, item, day, action, available day) rows."""
    rows = sorted((row + (CHECKOUT,) * (4 - len(row)) for row in rows), key=lambda row: (row[0], row[-1], row[2]))
    rows = [row if len(row) == 5 else (*row, row[2]) for row in rows]
    rows.sort(key=lambda row: (row[0], row[4], row[2]))
    user, item, day, action, available = (np.array(column) for column in zip(*rows, strict=True))
    return EventLog(
        item=item.astype(np.int32),
        action=action.astype(np.int8),
        time=days(day),
        available=days(available),
        offsets=np.searchsorted(user, np.arange(num_users + 1)),
        num_items=num_items,
    )


def days(values):
    return (np.asarray(values, float) * MICROSECONDS_A_DAY).astype(np.int64)


def random_log(seed, num_users=30, num_items=25, count=400, actions=(CHECKOUT, CLICK)):
    rng = np.random.default_rng(seed)
    rows = [
        (int(u), int(i), float(d), int(a))
        for u, i, d, a in zip(
            rng.integers(num_users, size=count),
            rng.integers(num_items, size=count),
            rng.uniform(0, 50, count),
            rng.choice(actions, count),
            strict=True,
        )
    ]
    return log_of(rows, num_users, num_items)


def all_scores(ranker, windows):
    return ranker.score_block(windows)(np.arange(len(windows)))


def order(scores):
    return np.argsort(-scores, axis=1, kind="stable")


def test_popularity_counts_users_not_purchases():
    log = log_of([(0, 1, 1), (0, 1, 2), (0, 1, 3), (0, 2, 1), (1, 2, 1), (2, 0, 1)], 3, 4)
    (ranker,) = fit_popularity(log, int(days(10)), CONFIG)
    assert order(all_scores(ranker, log.users_before(int(days(10)))))[0].tolist() == [2, 0, 1, 3]


def test_recent_popularity_halves_a_user_each_half_life():
    # Two users on item 0 two half-lives ago (0.5 together) lose against one user on item 1 half a half-life ago (0.71).
    log = log_of([(0, 0, 0), (1, 0, 0), (2, 1, 10.5)], 3, 2)
    now, config = int(days(14)), EvaluationConfig(popularity_half_lives_days=(7.0, 700.0))
    fast, slow = fit_recent_popularity(log, now, config)
    assert order(all_scores(fast, log.users_before(now)))[0].tolist() == [1, 0]
    assert order(all_scores(slow, log.users_before(now)))[0].tolist() == [0, 1]


@pytest.mark.parametrize("name", list(BASELINES))
def test_no_event_known_from_the_window_on_reaches_item_statistics(name):
    log, now = random_log(3), int(days(25))
    rows = [
        (u, int(i), t / MICROSECONDS_A_DAY, int(a))
        for u in range(log.num_users)
        for i, a, t in zip(
            *(column[log.offsets[u] : log.offsets[u + 1]] for column in (log.item, log.action, log.time)), strict=True
        )
        if t < now
    ]
    past = log_of(rows, log.num_users, log.num_items)
    for with_future, without in zip(BASELINES[name](log, now, CONFIG), BASELINES[name](past, now, CONFIG), strict=True):
        ahead, behind = all_scores(with_future, log.users_before(now)), all_scores(without, past.users_before(now))
        np.testing.assert_allclose(ahead, behind, atol=1e-4)


def test_an_event_counts_from_when_it_became_known_not_from_when_it_happened():
    log = log_of([(0, 1, 1.0, CHECKOUT, 9.0), (1, 0, 2.0, CHECKOUT, 2.0)], 2, 2)
    assert affinities(log, log.users_before(int(days(5)))).toarray().tolist() == [[0, 0], [1, 0]]
    assert affinities(log, log.users_before(int(days(10)))).toarray().tolist() == [[0, 1], [1, 0]]


def test_affinities_sum_decayed_weighted_events():
    log = log_of([(0, 1, 0), (0, 1, 7), (0, 2, 14, CLICK)], 1, 3)
    windows = log.users_before(int(days(14)) + 1)
    found = affinities(log, windows, half_life_days=7.0, engagement_weight=0.1).toarray()
    np.testing.assert_allclose(found, [[0, 0.25 + 0.5, 0.1]], rtol=1e-5)


def test_recency_affinities_take_the_newest_conversion_only():
    log = log_of([(0, 1, 0), (0, 1, 7), (0, 2, 14, CLICK)], 1, 3)
    found = recency_affinities(log, log.users_before(int(days(14)) + 1), half_life_days=7.0).toarray()
    np.testing.assert_allclose(found, [[0, 0.5, 0]], rtol=1e-5)


def test_own_history_comes_first_and_popular_items_follow():
    log = log_of([(0, 3, 1), (0, 3, 2), (0, 0, 9), (1, 2, 1), (2, 2, 2), (2, 1, 1)], 3, 5)
    config = EvaluationConfig(own_history_half_lives_days=(1e6,))
    (ranker,) = fit_own_history(log, int(days(10)), config)
    ranked = order(all_scores(ranker, log.users_before(int(days(10)))))
    # User 0: item 3 twice, item 0 once, then the others by popularity: 2 (two users), 1 (one), 4 (none).
    assert ranked[0].tolist() == [3, 0, 2, 1, 4]
    empty = Windows(starts=np.array([0]), ends=np.array([0]), times=np.array([int(days(10))]))
    assert order(all_scores(ranker, empty))[0].tolist()[0] == 2


def test_neighbours_are_the_items_of_highest_cosine():
    dense = np.random.default_rng(0).integers(0, 2, (20, 12)).astype(np.float32)
    dense[:, 5] = 0
    norms = np.maximum(np.linalg.norm(dense, axis=0), 1e-12)
    cosine = dense.T @ dense / np.outer(norms, norms)
    found = nearest_neighbors(sparse.csr_array(dense), 4).toarray()
    for item in range(12):
        kept = np.sort(found[item][found[item] > 0])
        expected = np.sort(cosine[item][cosine[item] > 0])[-4:]
        np.testing.assert_allclose(kept, expected, rtol=1e-5)
        np.testing.assert_allclose(found[item][found[item] > 0], cosine[item][found[item] > 0], rtol=1e-5)


def test_item_knn_adds_up_the_similarities_to_the_users_items():
    log, now = random_log(1), int(days(60))
    config = EvaluationConfig(item_knn_neighbors=(25,), own_history_half_lives_days=(1e9,))
    (ranker,) = fit_item_knn(log, now, config)
    windows = log.users_before(now)
    counts = affinities(log, windows).toarray()
    seen = (counts > 0).astype(float)
    norms = np.maximum(np.linalg.norm(seen, axis=0), 1e-12)
    expected = counts @ (seen.T @ seen / np.outer(norms, norms))
    found = all_scores(ranker, windows)
    np.testing.assert_allclose(np.where(found > 0, found, 0), expected, rtol=1e-4)


def test_pure_svd_scores_are_the_history_projected_on_the_factors():
    log, now = random_log(4), int(days(60))
    windows = log.users_before(now)
    seen = (affinities(log, windows).toarray() > 0).astype(float)
    for ranker in fit_pure_svd(log, now, CONFIG):
        basis = np.linalg.svd(seen)[2][: int(ranker.parameters["factors"])]
        np.testing.assert_allclose(all_scores(ranker, windows), seen @ basis.T @ basis, atol=2e-2)


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_user_without_history_gets_popular_items(name):
    log, now = random_log(5), int(days(60))
    empty = Windows(starts=np.array([0]), ends=np.array([0]), times=np.array([now]))
    for ranker in BASELINES[name](log, now, CONFIG):
        scores = all_scores(ranker, empty)
        assert np.isfinite(scores).all()
        assert len(np.unique(scores)) == log.num_items


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_user_of_items_alone_that_came_after_the_fit_gets_popular_items(name):
    """Oracle: popularity, after the user's own item where a baseline lists that. By rows it would be 0, 1, 2, 3."""
    log, now = log_of([(0, 2, 1), (1, 2, 2), (2, 2, 3), (2, 1, 3), (3, 3, 30)], 4, 4), int(days(20))
    windows = log.users_before(int(days(40))).rows(np.array([3]))
    expected = [3, 2, 1, 0] if name == "own_history" else [2, 1, 0, 3]
    for ranker in BASELINES[name](log, now, CONFIG):
        assert order(all_scores(ranker, windows))[0].tolist() == expected


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_fits_an_empty_log(name):
    nothing = EventLog(
        item=np.empty(0, np.int32),
        action=np.empty(0, np.int8),
        time=np.empty(0, np.int64),
        available=np.empty(0, np.int64),
        offsets=np.zeros(4, np.int64),
        num_items=10,
    )
    for ranker in BASELINES[name](nothing, 5, CONFIG):
        assert np.isfinite(all_scores(ranker, nothing.users_before(5))).all()


def test_the_setting_that_does_best_on_validation_is_fitted_for_the_test():
    # Users buy again what they bought last: a short half-life is right.
    rows = [(u, i, 10.0 * repeat + u / 100) for u in range(20) for repeat, i in enumerate((u % 7, u % 7, 7 + u % 3))]
    log = log_of(rows, 20, 300)
    windows = log.users_before(int(days(25)))
    positives = ItemLists(offsets=np.arange(21), items=np.array([7 + u % 3 for u in range(20)], np.int32))
    validation = QuerySet(windows=windows, positives=positives, start=int(days(25)))
    config = EvaluationConfig(own_history_half_lives_days=(1e6, 2.0), tuning_k=1)
    assert fit_baseline("own_history", log, validation, int(days(30)), config).full.parameters["half_life_days"] == 2.0


def test_a_baseline_is_tuned_for_each_list_by_what_that_list_is_to_find():
    """All buy again what all had long ago; what is new to some is what few had of late, not what many had before."""
    old = [(user, 0, 1.0) for user in range(20)] + [(user, 2, 1.0) for user in range(10, 20)]
    log = log_of([*old, *((user, 1, 20.0) for user in range(20, 25))], 25, 3)
    again = [[0, 1] if user < 5 else [0] for user in range(10)]
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in again])])
    positives = ItemLists(offsets=offsets, items=np.concatenate(again).astype(np.int32))
    windows = log.users_before(int(days(25))).rows(np.arange(10))
    validation = QuerySet(windows=windows, positives=positives, start=int(days(25)))
    for half_lives in ((1e6, 2.0), (2.0, 1e6)):
        config = EvaluationConfig(popularity_half_lives_days=half_lives, tuning_k=1)
        found = fit_baseline("recent_popularity", log, validation, int(days(30)), config)
        assert (found.full.parameters, found.new.parameters) == ({"half_life_days": 1e6}, {"half_life_days": 2.0})


def test_the_histories_of_item_knn_fade_as_fast_as_does_best_on_validation():
    """Users come for what goes with their last item: 3 with 2. Counted alike, 1 with 0, had twice before, is nearer."""
    pairs = [(user, item, 1.0) for user in range(20, 40) for item in ((0, 1) if user < 30 else (2, 3))]
    log = log_of(pairs + [(user, *event) for user in range(20) for event in ((0, 1.0), (0, 2.0), (2, 20.0))], 40, 4)
    windows = log.users_before(int(days(25))).rows(np.arange(20))
    positives = ItemLists(offsets=np.arange(21), items=np.full(20, 3, np.int32))
    validation = QuerySet(windows=windows, positives=positives, start=int(days(25)))
    for half_lives in ((1e6, 2.0), (2.0, 1e6)):
        config = EvaluationConfig(own_history_half_lives_days=half_lives, item_knn_neighbors=(4,), tuning_k=3)
        found = fit_baseline("item_knn", log, validation, int(days(30)), config)
        assert found.full.parameters == {"neighbors": 4.0, "half_life_days": 2.0}


def test_a_configuration_knows_the_baselines_there_are():
    assert tuple(BASELINES) == names.BASELINES


def test_a_sample_of_queries_keeps_each_querys_positives():
    log = random_log(7)
    lists = seen_items(log, log.users_before(int(days(60))))
    whole = QuerySet(windows=log.users_before(int(days(60))), positives=lists, start=0)
    sample = whole.sample(8, seed=0)
    assert len(sample.windows) == len(sample.positives) == 8
    np.testing.assert_array_equal(seen_items(log, sample.windows).items, sample.positives.items)


def test_the_engagement_log_holds_no_conversion_and_its_windows_the_same_engagements():
    log, now = random_log(8), int(days(30))
    windows = log.users_before(now)
    clicks, kept_before = engagements_only(log)
    assert (clicks.action == CLICK).all()
    conversions_ignored = affinities(log, windows).toarray() - affinities(log, windows, engagement_weight=0).toarray()
    np.testing.assert_allclose(affinities(clicks, moved(windows, kept_before)).toarray(), conversions_ignored)


def test_seen_items_are_those_that_the_history_holds():
    log = log_of([(0, 3, 1), (0, 3, 2), (0, 1, 9), (1, 2, 1)], 2, 5)
    seen = seen_items(log, log.users_before(int(days(5))))
    assert [seen[0].tolist(), seen[1].tolist()] == [[3], [2]]


def test_ranks_of_a_baseline_equal_the_position_in_its_sorted_scores():
    log, now = random_log(9), int(days(30))
    windows = log.users_before(now)
    ranker = fit_own_history(log, now, CONFIG)[0]
    positives = seen_items(log, log.users_before(int(days(60))))
    found = score_ranks(ranker.score_block(windows), log.num_items, positives, block=7).full
    position = np.argsort(order(all_scores(ranker, windows)), axis=1)
    expected = np.concatenate([position[q][positives[q]] for q in range(len(positives))])
    np.testing.assert_array_equal(found, expected)
