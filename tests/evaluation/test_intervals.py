"""Oracle: ``scipy.stats.bootstrap`` with the same statistic; exact values where resampling cannot vary."""

import numpy as np
import pytest
from scipy import stats

from conversion_retrieval.evaluation import intervals
from conversion_retrieval.evaluation.intervals import UserBootstrap, sum_by_user


def example(num_users=80):
    rng = np.random.default_rng(5)
    denominators = rng.integers(1, 30, num_users).astype(float)
    return rng.binomial(denominators.astype(int), rng.beta(2, 5, num_users)).astype(float), denominators


def test_intervals_agree_with_scipys_percentile_bootstrap():
    hits, counts = example()
    found = UserBootstrap(num_users=len(hits), num_resamples=8000).intervals(hits[:, None], counts[:, None])
    expected = stats.bootstrap(
        (hits, counts),
        lambda h, c, axis: h.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=8000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = expected.high - expected.low
    assert found.value[0] == hits.sum() / counts.sum()
    assert found.low[0] == pytest.approx(expected.low, abs=0.06 * width)
    assert found.high[0] == pytest.approx(expected.high, abs=0.06 * width)


def test_a_users_rows_are_resampled_together():
    # One user in two has only hits: resampling rows would give an interval far narrower than resampling users.
    hits, counts = np.tile([[50.0], [0.0]], (10, 1)), np.full((20, 1), 50.0)
    found = UserBootstrap(num_users=20, num_resamples=2000).intervals(hits, counts)
    assert found.high[0] - found.low[0] == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 20), rel=0.15)


def test_an_outcome_that_never_varies_has_a_point_for_an_interval():
    found = UserBootstrap(num_users=9, num_resamples=50).intervals(np.full((9, 1), 2.0), np.full((9, 1), 4.0))
    assert (found.value[0], found.low[0], found.high[0]) == (0.5, 0.5, 0.5)


def test_one_user_alone_has_a_value_and_no_interval():
    """Oracle: two users have one; resamples of one user are all that user and would bound it by itself."""
    hits, counts = np.array([[2.0, 2.0], [0.0, 1.0]]), np.array([[4.0, 4.0], [0.0, 4.0]])
    found = UserBootstrap(num_users=2, num_resamples=100).intervals(hits, counts)
    np.testing.assert_allclose(found.value, [0.5, 0.375])
    assert np.isnan([found.low[0], found.high[0]]).all()
    assert (found.low[1], found.high[1]) == (0.25, 0.5)


def test_nothing_measured_is_nan_and_does_not_disturb_its_neighbours():
    hits, counts = example()
    alone = UserBootstrap(num_users=80, num_resamples=100).intervals(hits[:, None], counts[:, None])
    beside = UserBootstrap(num_users=80, num_resamples=100).intervals(
        np.stack([hits, np.zeros(80)], 1), np.stack([counts, np.zeros(80)], 1)
    )
    assert np.isnan([beside.value[1], beside.low[1], beside.high[1]]).all()
    assert (alone.low[0], alone.high[0]) == (beside.low[0], beside.high[0])


def test_drawing_in_blocks_changes_nothing(monkeypatch):
    hits, counts = example()
    bootstrap = UserBootstrap(num_users=80, num_resamples=37)
    whole = bootstrap.replicates(hits[:, None], counts[:, None])
    monkeypatch.setattr(intervals, "BLOCK_CELLS", 80 * 5)
    np.testing.assert_allclose(bootstrap.replicates(hits[:, None], counts[:, None]), whole)


def means(values, users, bootstrap):
    """Intervals of the mean over rows."""
    sums = (sum_by_user(v, users, bootstrap.num_users) for v in (values, np.ones_like(values)))
    return bootstrap.intervals(*sums)


def test_models_that_always_agree_differ_by_exactly_nothing():
    users = np.arange(200) % 30
    found = means(np.zeros((200, 2)), users, UserBootstrap(num_users=30, num_resamples=100))
    assert (found.low == 0).all()
    assert (found.high == 0).all()


def test_pairing_narrows_the_interval_of_a_difference():
    rng = np.random.default_rng(1)
    users = np.arange(400) % 40
    second = rng.integers(0, 2, (400, 1)).astype(float)
    first = np.maximum(second, rng.random((400, 1)) < 0.1)  # the same hits and a few more
    bootstrap = UserBootstrap(num_users=40, num_resamples=1000)
    paired, alone = means(first - second, users, bootstrap), means(first, users, bootstrap)
    assert paired.low[0] > 0
    assert paired.high[0] - paired.low[0] < 0.6 * (alone.high[0] - alone.low[0])
