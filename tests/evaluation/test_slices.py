"""Oracle: counted by hand."""

from types import SimpleNamespace

import numpy as np

from conversion_retrieval.evaluation.config import SLICES
from conversion_retrieval.evaluation.slices import (
    conversions_before,
    history_bins,
    known_before,
    mass_deciles,
    slice_columns,
)
from tests.evaluation.test_baselines import CLICK, days, log_of


def test_each_decile_holds_about_a_tenth_of_the_conversions_not_of_the_items():
    counts = np.random.default_rng(0).lognormal(0, 1.5, 5_000)
    deciles = mass_deciles(counts)
    shares = [counts[deciles == f"{decile:02d}"].sum() / counts.sum() for decile in range(1, 11)]
    np.testing.assert_allclose(shares, 0.1, atol=0.01)
    assert counts[deciles == "10"].min() > counts[deciles == "09"].max()
    assert (deciles == "01").sum() > 20 * (deciles == "10").sum()


def test_deciles_of_equal_sizes_by_hand():
    deciles = mass_deciles(np.array([1.0, 1, 1, 1, 0, 6]))
    # The four ones hold the first 40 %, their middle at 20 %; the six the rest, its middle at 70 %.
    assert deciles.tolist() == ["03", "03", "03", "03", "none", "08"]


def test_nothing_converted_is_no_decile():
    assert mass_deciles(np.zeros(3)).tolist() == ["none"] * 3


def test_history_bins_start_where_they_say():
    lengths = np.array([0, 1, 4, 5, 19, 20, 49, 50, 199, 200, 10_000])
    expected = ["0", *["001-004"] * 2, *["005-019"] * 2, *["020-049"] * 2, *["050-199"] * 2, *["200+"] * 2]
    assert history_bins(lengths).tolist() == expected


def test_item_statistics_stop_at_the_window():
    log = log_of([(0, 1, 1), (0, 1, 2), (0, 2, 3, CLICK), (1, 3, 9), (1, 0, 1.0, CLICK, 9.0)], 2, 5)
    assert conversions_before(log, int(days(5))).tolist() == [0, 2, 0, 0, 0]
    assert known_before(log, int(days(5))).tolist() == [False, True, True, False, False]


def test_every_positive_is_sliced_by_what_was_known_when_the_window_began():
    # Users 0 and 1 bought items 0 and 1 before day 5; user 2 and items 2 and 3 were never seen.
    log = log_of([(0, 0, 1), (0, 1, 2), (1, 0, 3), (2, 2, 9)], 3, 4)
    dataset = SimpleNamespace(
        item_advertiser=np.array([0, 0, 1, 1], np.int32), spec=SimpleNamespace(surfaces=("home", "search"))
    )
    positives = SimpleNamespace(
        item=np.array([0, 2, 3, 1], np.int32),
        query=np.array([0, 0, 1, 2]),
        new_to_user=np.array([False, True, True, True]),
    )
    user = np.array([0, 2, 1])
    split = SimpleNamespace(
        positives=positives, user=user, surface=np.array([2, 0, 1]), known_end=log.offsets[user] + [2, 0, 1]
    )
    found = slice_columns(dataset, split, log, int(days(5)))
    assert tuple(found) == SLICES
    assert {name: values.tolist() for name, values in found.items()} == {
        "surface": ["search", "search", "unknown", "home"],
        "advertiser_size_decile": ["06", "none", "none", "06"],
        "item_popularity_decile": ["07", "none", "none", "02"],  # item 1 is the first third of three, item 0 the rest
        "item_status": ["known", "cold", "cold", "known"],
        "user_status": ["known", "known", "cold", "known"],
        "history_length": ["001-004", "001-004", "0", "001-004"],
        "new_to_user": ["false", "true", "true", "true"],
    }
