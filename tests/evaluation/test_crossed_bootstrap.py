"""Intervals over users and seeds, against cases whose answer is known."""

import numpy as np
import pytest

from conversion_retrieval.evaluation.crossed_bootstrap import crossed_recalls, percentile_interval


def test_identical_users_and_seeds_leave_no_uncertainty():
    recalls = crossed_recalls(np.full((3, 50), 2.0), np.full(50, 4.0), num_resamples=100, seed=0)
    np.testing.assert_allclose(recalls, 0.5)


def test_one_seed_gives_the_spread_of_a_bootstrap_over_users():
    # Oracle: a mean of U independent Bernoulli(p) values has the standard error sqrt(p (1 - p) / U).
    generator = np.random.default_rng(3)
    hits = (generator.random((1, 2000)) < 0.3).astype(float)
    recalls = crossed_recalls(hits, np.ones(2000), num_resamples=2000, seed=1)
    expected = np.sqrt(hits.mean() * (1 - hits.mean()) / 2000)
    assert recalls.std() == pytest.approx(expected, rel=0.08)
    assert recalls.mean() == pytest.approx(hits.mean(), abs=4 * expected / np.sqrt(2000))


def test_disagreeing_seeds_widen_the_interval():
    # Two seeds, one finds everything and one nothing: resampling two of two gives 0, 1/2 or 1 with odds 1:2:1.
    hits = np.stack([np.ones(100), np.zeros(100)])
    recalls = crossed_recalls(hits, np.ones(100), num_resamples=4000, seed=2)
    shares = [np.mean(np.isclose(recalls, value)) for value in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.03)


def test_the_same_seed_makes_differences_paired():
    generator = np.random.default_rng(5)
    hits = (generator.random((2, 500)) < 0.5).astype(float)
    first, second = (crossed_recalls(h, np.ones(500), num_resamples=300, seed=7) for h in (hits, hits))
    np.testing.assert_array_equal(first, second)


def test_the_interval_is_the_central_share():
    interval = percentile_interval(50.0, np.arange(101.0), confidence_level=0.9)
    assert (interval.low, interval.high) == pytest.approx((5.0, 95.0))
