"""Bootstrap of ratios. Oracle: the binomial standard error, and a plain loop that draws users with replacement."""

import numpy as np
import pytest

from conversion_retrieval.registry.resampling import bootstrap_ratios


def test_independent_conversions_have_the_binomial_standard_error() -> None:
    hits = np.zeros((4000, 1))
    hits[:1200] = 1
    estimates = bootstrap_ratios(hits, np.ones_like(hits), np.arange(4000), num_resamples=2000, seed=0)
    assert estimates.values[0] == pytest.approx(0.3)
    assert estimates.replicates.std() == pytest.approx(np.sqrt(0.3 * 0.7 / 4000), rel=0.08)


def test_users_are_drawn_whole_as_in_a_plain_bootstrap_loop() -> None:
    rng = np.random.default_rng(0)
    users = rng.integers(0, 300, 3000)
    hits = (rng.random(3000) < rng.random(300)[users]).astype(float)[:, None]
    estimates = bootstrap_ratios(hits, np.ones_like(hits), users, num_resamples=2000, seed=0)
    rows = [np.flatnonzero(users == user) for user in range(300)]
    loop = [hits[np.concatenate([rows[u] for u in rng.integers(0, 300, 300)])].mean() for _ in range(1000)]
    assert estimates.replicates.std() == pytest.approx(np.std(loop), rel=0.1)
    assert estimates.interval(0, 0.95) == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.006)


def test_identical_models_have_a_difference_of_exactly_zero() -> None:
    estimates = bootstrap_ratios(np.zeros((50, 1)), np.ones((50, 1)), np.arange(50), num_resamples=100, seed=0)
    assert estimates.interval(0, 0.95) == (0.0, 0.0)
    assert estimates.simultaneous([0], 0.95) == (np.zeros(1), np.zeros(1))


def test_simultaneous_bounds_cover_all_slices_at_the_stated_rate() -> None:
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        inside = np.eye(10)[np.arange(2000) % 10]
        hits = (rng.random(2000) < 0.4)[:, None] * inside
        estimates = bootstrap_ratios(hits, inside, np.arange(2000), num_resamples=300, seed=seed)
        low, high = estimates.simultaneous(list(range(10)), 0.9)
        covered += bool(np.all((low <= 0.4) & (high >= 0.4)))
    assert 0.8 <= covered / 60 <= 0.99


def test_one_missing_number_makes_its_own_column_unknown_and_no_other() -> None:
    numerators = np.ones((20, 2))
    numerators[3, 1] = np.nan
    estimates = bootstrap_ratios(numerators, np.ones((20, 2)), np.arange(20), num_resamples=50, seed=0)
    assert estimates.interval(0, 0.95) == (1.0, 1.0)
    assert np.isnan(estimates.interval(1, 0.95)).all()
