"""The stored truth against what happened, and the oracle's ranking against slow versions."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conversion_retrieval.datasets import truth
from conversion_retrieval.datasets.policy import LoggingPolicy
from conversion_retrieval.datasets.truth import TrueWorld, TruthQueries, best_reachable_recall, oracle_ranks
from conversion_retrieval.datasets.world import DAY_US
from conversion_retrieval.errors import UserError
from tests.worlds import TINY, tiny_world


@pytest.fixture(scope="module")
def world_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world") / "data")


@pytest.fixture(scope="module")
def world(world_dir: Path) -> TrueWorld:
    return TrueWorld.open(world_dir)


@pytest.fixture(scope="module")
def impressions(world_dir: Path) -> pd.DataFrame:
    """Every impression with its true probabilities, its item's row, and whether it led to a reported conversion."""
    events = pd.read_parquet(world_dir / "events")
    frame = events.merge(pd.read_parquet(world_dir / "truth" / "impressions"), on="event_id")
    conversions = pd.read_parquet(world_dir / "truth" / "conversions")
    caused = conversions.loc[~conversions["wrong_item"], "impression_event_id"].dropna()
    frame["converted"] = frame["event_id"].isin(caused)
    frame["item"] = frame["item_id"].str[1:].astype(int)
    return frame


def queries_of(events: pd.DataFrame) -> TruthQueries:
    none = np.zeros(TINY.embedding_dim)
    context = events["context_item_id"]
    return TruthQueries(
        user_ids=events["user_id"].tolist(),
        times=events["event_time"].astype("datetime64[us, UTC]").astype("int64").to_numpy(),
        surfaces=events["surface"].tolist(),
        context_item_ids=context.astype(object).where(context.notna(), None).tolist(),
        context_embeddings=np.stack([none if value is None else value for value in events["context_embedding"]]),
    )


def test_impressions_convert_as_often_as_their_true_probability_says(impressions: pd.DataFrame) -> None:
    """Oracle: the normal approximation of a sum of independent draws, five standard deviations wide."""
    early = impressions[impressions["event_time"] < impressions["event_time"].max() - pd.Timedelta(days=10)]
    for _, group in early.groupby(pd.qcut(early["conversion_probability"], 4), observed=True):
        probability = group["conversion_probability"]
        spread = np.sqrt((probability * (1 - probability)).sum())
        assert abs(group["converted"].sum() - probability.sum()) < 5 * spread


def test_conversion_rate_rises_with_the_true_probability(impressions: pd.DataFrame) -> None:
    rates = impressions.groupby(pd.qcut(impressions["conversion_probability"], 4), observed=True)["converted"].mean()
    assert rates.is_monotonic_increasing
    assert rates.iloc[-1] > 10 * max(rates.iloc[0], 1e-3)


def test_truth_recomputed_from_the_events_equals_the_truth_stored_beside_them(
    world: TrueWorld, impressions: pd.DataFrame
) -> None:
    """Oracle: what the generator itself used; the search intent comes back from its float32 embedding."""
    # An impression's time is its request's plus its slot's: the first slot's is the request's.
    some = impressions.groupby(["user_id", "event_time"]).head(1).sample(300, random_state=0)
    found = world.conversion_probabilities(queries_of(some))[np.arange(300), some["item"]]
    np.testing.assert_allclose(found, some["conversion_probability"], rtol=1e-3)


def test_probability_of_being_shown_is_how_often_the_policy_shows_it(world: TrueWorld) -> None:
    """Oracle: 20,000 simulated requests of one query."""
    policy = LoggingPolicy(world.world, TINY)
    time = np.array([TINY.start_us + 20 * DAY_US])
    user, home = np.array([3]), np.array([0])
    factors = world.world.query_factors(TINY, user, time, home, np.zeros((1, TINY.taste_dim)))
    expected = policy.shown_probabilities(factors, time)[0]
    repeats = 20_000
    rng = np.random.default_rng(0)
    shown = policy.sample(rng, np.repeat(factors, repeats, 0), np.repeat(time, repeats), TINY.slots_per_request)
    counts = np.zeros(TINY.num_items)
    for items in shown:
        counts[np.unique(items)] += 1
    assert np.abs(counts / repeats - expected).max() < 5 * np.sqrt(0.25 / repeats)


def test_slot_probabilities_sum_to_one(world: TrueWorld) -> None:
    policy = LoggingPolicy(world.world, TINY)
    times = np.array([TINY.start_us, TINY.start_us + 13 * DAY_US, TINY.end_us + DAY_US])
    users = np.array([0, 1, 2])
    factors = world.world.query_factors(TINY, users, times, users, np.ones((3, TINY.taste_dim)))
    np.testing.assert_allclose(policy.probabilities(factors, times).sum(axis=1), 1.0)


def test_items_that_are_not_launched_score_zero(world: TrueWorld) -> None:
    times = np.array([TINY.start_us])
    scores = world.conversion_scores(["u00000001"], times, ["home_feed"], [None], np.zeros((1, TINY.embedding_dim)))
    later = world.world.item_launch > TINY.start_us
    assert later.any()
    assert (scores[0, later] == 0).all()
    assert (scores[0, ~later] > 0).all()


def test_best_reachable_recall_is_far_above_popularity(world: TrueWorld, impressions: pd.DataFrame) -> None:
    positives = impressions[impressions["converted"]]
    items = positives["item"].to_numpy()
    offsets = np.arange(len(items) + 1)
    oracle = best_reachable_recall(world, queries_of(positives), offsets, items, ks=(10,))[10]
    # Popularity may even know the future.
    popular = positives["item"].value_counts().index[:10]
    assert oracle > 1.6 * positives["item"].isin(popular).mean()


def test_ranking_by_the_truth_beats_ranking_by_clicks(world: TrueWorld, impressions: pd.DataFrame) -> None:
    """Conversion preference differs from click preference: the right clicks are not the best answer."""
    positives = impressions[impressions["converted"]]
    queries, items = queries_of(positives), positives["item"].to_numpy()
    factors = world._factors(queries, queries.times)
    clicks = world._policy.shown_probabilities(factors, queries.times) * world.world.click_probabilities(factors)
    own = clicks[np.arange(len(items)), items]
    by_clicks = ((clicks > own[:, None]).sum(axis=1) < 10).mean()
    best = best_reachable_recall(world, queries, np.arange(len(items) + 1), items, ks=(10,))[10]
    assert best > 1.15 * by_clicks


def test_oracle_ranks_equal_a_slow_sort_across_block_borders(
    world: TrueWorld, impressions: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth, "BLOCK_SIZE", 3)
    queries = queries_of(impressions.head(8))
    counts = np.array([1, 0, 2, 3, 0, 0, 1, 2])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    items = np.random.default_rng(0).integers(TINY.num_items, size=offsets[-1])
    scores = world.scores(queries)
    slow = [
        sorted(range(TINY.num_items), key=lambda item: (-scores[query, item], item)).index(items[row])
        for query in range(8)
        for row in range(offsets[query], offsets[query + 1])
    ]
    assert oracle_ranks(world, queries, offsets, items).tolist() == slow


def test_recall_is_the_mean_over_queries_of_the_share_found(
    world: TrueWorld, impressions: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: query 0 finds 1 of 2, query 1 has none, query 2 finds 1 of 1: (0.5 + 1) / 2."""
    monkeypatch.setattr(truth, "oracle_ranks", lambda *_: np.array([3, 50, 9]))
    queries = queries_of(impressions.head(3))
    recall = best_reachable_recall(world, queries, np.array([0, 2, 2, 3]), np.array([0, 1, 2]), ks=(10,))
    assert recall == {10: 0.75}


def test_an_unknown_surface_is_taken_as_the_home_feed(world: TrueWorld) -> None:
    times, none = np.array([TINY.start_us + DAY_US] * 2), np.zeros((2, TINY.embedding_dim))
    scores = world.conversion_scores(["u00000001"] * 2, times, [None, "home_feed"], [None, None], none)
    np.testing.assert_array_equal(scores[0], scores[1])


def test_taste_turns_by_the_users_drift_over_the_whole_time(world: TrueWorld) -> None:
    times = np.array([TINY.start_us, TINY.end_us])
    users, home = np.array([5, 5]), np.array([0, 0])
    factors = world.world.query_factors(TINY, users, times, home, np.zeros((2, TINY.taste_dim)))
    start, end = factors[:, : TINY.taste_dim]
    assert start @ end == pytest.approx(np.cos(world.world.user_drift[5]))


def test_recorded_share_counts_the_cart_or_else_the_checkout(world: TrueWorld) -> None:
    """By hand: half of the carts are reported; of the others half go on to a checkout, of which half are reported."""
    half = np.full(1, 0.5)
    changed = dataclasses.replace(
        world.world, item_reporting_rate=half, item_wrong_rate=np.zeros(1), item_checkout_rate=half
    )
    assert changed.recorded_share().tolist() == [0.5 + 0.5 * 0.5 * 0.5]


def test_users_of_another_world_are_refused_by_name(world: TrueWorld) -> None:
    with pytest.raises(UserError, match="found stranger in query 1"):
        world.conversion_scores(
            ["u00000001", "stranger"], np.zeros(2, np.int64), [None] * 2, [None] * 2, np.zeros((2, TINY.embedding_dim))
        )


def test_data_without_truth_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the truth of a generated world"):
        TrueWorld.open(tmp_path)
