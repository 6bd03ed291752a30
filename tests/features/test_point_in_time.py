"""Labels and features against a brute-force reading of the contract, on random logs with many ties in time."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from conversion_retrieval.schema import CONVERSIONS
from tests.features import brute_force as slow
from tests.features.tables import event, events_table, items_table, random_rows
from tests.features.worlds import build_world, short_config

ADVERTISER = {f"i{row}": f"a{row % 3}" for row in range(6)}
# A seed does not get simpler by shrinking, so a failure is reported as found.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
EXAMPLES = settings(max_examples=8, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck))
SPLITS = ("train", "validation", "test", "recent")


def built(seed, **sections):
    rows = random_rows(seed)
    config = short_config(**sections)
    with tempfile.TemporaryDirectory() as directory:
        world = build_world(Path(directory), rows, config=config)
        yield world, slow.as_events(events_table(rows)), config


@EXAMPLES
@given(
    seed=st.integers(0, 10**6),
    level=st.sampled_from(["item", "advertiser"]),
    keep=st.booleans(),
    session=st.sampled_from([30, 720]),
)
def test_queries_and_positives_equal_attribution_by_hand(seed, level, keep, session):
    labels = {"attribution_level": level, "keep_unattributed": keep, "session_minutes": session, **LABELS}
    for world, events, config in built(seed, labels=labels):
        for name in ("train", "recent"):
            if name == "recent":
                windows = world.window("train"), world.window("recent")
                expected = slow.recent_positives(events, ADVERTISER, config.labels, *windows)
            else:
                window = world.window(name), world.known_at(name)
                expected = slow.request_positives(events, ADVERTISER, config.labels, *window)
            queries = world.queries(name)
            assert sorted(set(queries), key=str) == sorted({(e["user_id"], *k) for e, k, _ in expected}, key=str)
            assert len(set(queries)) == len(queries), "requests with one key share one query"
            found = [(*queries[q], item, kind, attributed) for q, item, kind, attributed, *_ in world.positives(name)]
            wanted = [(e["user_id"], *k, e["item_id"], e["event_type"], a) for e, k, a in expected]
            assert sorted(found, key=str) == sorted(wanted, key=str)


LABELS = {"click_window_days": 6, "view_window_days": 3}


@EXAMPLES
@given(seed=st.integers(0, 10**6))
def test_evaluation_positives_are_distinct_and_use_all_that_was_reported(seed):
    for world, events, config in built(seed):
        for name in ("validation", "test"):
            expected = slow.request_positives(
                events, ADVERTISER, config.labels, world.window(name), world.known_at(name)
            )
            queries = world.queries(name)
            found = [(*queries[q], item, kind in CONVERSIONS) for q, item, kind, *_ in world.positives(name)]
            wanted = {(e["user_id"], *k, e["item_id"], e["event_type"] in CONVERSIONS) for e, k, _ in expected}
            assert sorted(found, key=str) == sorted(wanted, key=str)


@EXAMPLES
@given(seed=st.integers(0, 10**6), stride=st.sampled_from([1.0, 2.5, 7.0]))
def test_window_queries_ask_at_anchors_for_what_follows(seed, stride):
    width = 4
    split = {
        "evaluation_queries": "window_start",
        "training_queries": "window",
        "training_window_days": width,
        "training_stride_days": stride,
        "validation_days": 5,
        "test_days": 5,
    }
    for world, events, config in built(seed, split=split):
        for name in SPLITS:
            start, end = world.window(name)
            anchors, span = [start], end - start
            if name in ("train", "recent"):
                span = width * slow.DAY
                count = int((end - span - world.window("train")[0]) // (stride * slow.DAY)) + 1
                anchors = [end - span - round(k * stride * slow.DAY) for k in range(count)]
            if name == "recent":  # what a window holds must not all be known to the training window
                anchors = [anchor for anchor in anchors if anchor + span > start]
            expected = slow.window_positives(
                events,
                ADVERTISER,
                config.labels,
                anchors,
                span,
                world.known_at(name),
                config.features.history_events,
            )
            queries = world.queries(name)
            found = [(*queries[q], item, kind in CONVERSIONS) for q, item, kind, *_ in world.positives(name)]
            wanted = {(e["user_id"], *k, e["item_id"], e["event_type"] in CONVERSIONS) for e, k, _ in expected}
            assert sorted(found, key=str) == sorted(wanted, key=str)


@EXAMPLES
@given(seed=st.integers(0, 10**6))
def test_histories_hold_exactly_what_was_known_strictly_before_the_query(seed):
    for world, events, config in built(seed):
        for name in SPLITS:
            split, data = world.dataset.split(name), world.dataset
            arrays = data.query_arrays(split, np.arange(len(split)), 5)
            items, surfaces = data.item_ids.to_pylist(), [None, *data.spec.surfaces]
            for q, (user, time, *_) in enumerate(world.queries(name)):
                expected = slow.history(events, user, time, config.features.history_events)[-5:]
                real = arrays.history_action[q] > 0
                assert list(real) == [False] * (5 - len(expected)) + [True] * len(expected)
                assert [items[i] for i in arrays.history_item[q][real]] == [e["item_id"] for e in expected]
                assert [surfaces[s] for s in arrays.history_surface[q][real]] == [e["surface"] for e in expected]
                ages = [(time - e["time"]) / slow.DAY for e in expected]
                np.testing.assert_allclose(arrays.history_age_days[q][real], ages, rtol=1e-6)


@EXAMPLES
@given(seed=st.integers(0, 10**6))
def test_new_to_user_means_no_earlier_known_event_on_the_item(seed):
    for world, events, config in built(seed):
        for name in SPLITS:
            queries = world.queries(name)
            for q, item, _, _, new, _ in world.positives(name):
                past = slow.history(events, queries[q][0], queries[q][1], config.features.history_events)
                assert new == all(e["item_id"] != item for e in past)


@EXAMPLES
@given(seed=st.integers(0, 10**6))
def test_user_aggregates_count_what_was_known_strictly_before_the_query(seed):
    for world, events, config in built(seed):
        names = world.dataset.metadata["user_aggregates"]
        for name in SPLITS:
            split = world.dataset.split(name)
            for q, (user, time, *_) in enumerate(world.queries(name)):
                windows = config.features.aggregate_windows_days
                expected = slow.aggregates(events, user, time, ADVERTISER, windows)
                np.testing.assert_allclose(split.user_aggregates[q], [expected[n] for n in names], rtol=1e-6)


def dense_performance(data, snapshot):
    """Raw performance of all items at a snapshot, by item and column name."""
    stored, names = data.stored_performance, data.metadata["item_performance"]
    rows = slice(stored.offsets[snapshot], stored.offsets[snapshot + 1])
    dense = np.zeros((data.num_items, len(names)), np.float32)
    dense[stored.items[rows]] = stored.values[rows]
    return [dict(zip(names, row.tolist(), strict=True)) for row in dense]


@EXAMPLES
@given(seed=st.integers(0, 10**6), period=st.sampled_from([0.0, 0.4, 3.0]))
def test_item_performance_counts_what_was_known_strictly_before_the_snapshot(seed, period):
    features = {"aggregate_windows_days": [1, 5], "performance_period_days": period}
    for world, events, _ in built(seed, features=features):
        data = world.dataset
        for snapshot in range(0, data.num_snapshots, 5):
            time = int(data.stored_performance.times[snapshot])
            for item, found in zip(data.item_ids.to_pylist(), dense_performance(data, snapshot), strict=True):
                for name in (n for n in found if "_count_" in n):
                    kind, days = name.rsplit("_count_", 1)
                    expected = slow.performance_counts(events, item, time, kind, float(days.removesuffix("d")))
                    assert found[name] == expected, (name, snapshot)


@EXAMPLES
@given(seed=st.integers(0, 10**6))
def test_decayed_counts_ages_and_rates_follow_their_formulas(seed):
    features = {"aggregate_windows_days": [1, 5], "new_buyer_half_lives_days": [2.5], "rate_prior_strength": 3}
    half_lives = {f"{days:g}d": days for days in (2.5, 3, 7, 14, 30, 90)}
    for world, events, _ in built(seed, features=features):
        data = world.dataset
        names, priors = data.metadata["item_performance"], expected_priors(world, events)
        assert data.metadata["performance_priors"] == pytest.approx(priors)
        for snapshot in (0, 9, data.num_snapshots - 1):
            time = int(data.stored_performance.times[snapshot])
            for item, found in zip(data.item_ids.to_pylist(), dense_performance(data, snapshot), strict=True):
                expected = slow.performance(events, item, time, names, half_lives, priors, 3)
                assert {n: found[n] for n in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_rates_and_columns_leave_out_what_came_before_a_training_window_that_begins_within_a_day(tmp_path):
    """Oracle: the window begins at 12:00 of a day; its one click of two impressions is that of the afternoon."""
    rows = [event("u0", "i0", "impression", day) for day in (5.1, 5.4, 5.6, 6)]
    rows += [event("u0", "i0", kind, day) for kind, day in (("click", 5.2), ("save", 5.3), ("click", 5.7))]
    rows += [event("u0", "i0", "click", 1), event("u0", "i0", "click", 30.5)]
    config = short_config(split={"validation_days": 5, "test_days": 5, "train_days": 15.5})
    world = build_world(tmp_path, rows, config=config)
    assert world.window("train")[0] == world.window("train")[1] - 15.5 * slow.DAY
    assert world.dataset.metadata["performance_priors"] == {"click_rate": 1 / 2}
    assert "save_count_1d" not in world.dataset.metadata["item_performance"]
    assert world.window("train")[0] in world.dataset.stored_performance.times


def expected_priors(world, events):
    """Each rate over the events that became known in the training window."""
    start, end = world.window("train")
    start -= start % slow.DAY  # the window begins with the first event, the bins with that day
    kinds = [e["event_type"] for e in events if start <= e["known"] < end]
    counted = {kind: kinds.count(kind) for kind in (*CONVERSIONS, "click", "impression")}
    trials = {"click_rate": ("impression", ["click"]), "checkout_rate": ("impression", ["checkout"])}
    trials["conversion_rate"] = ("click", CONVERSIONS)
    rates = {name: sum(counted[k] for k in done) / max(counted[tried], 1) for name, (tried, done) in trials.items()}
    return {name: rate for name, rate in rates.items() if rate > 0}


@EXAMPLES
@given(seed=st.integers(0, 10**6))
def test_a_query_sees_the_last_snapshot_that_is_not_later(seed):
    for world, *_ in built(seed):
        times = world.dataset.stored_performance.times
        for name in SPLITS:
            split = world.dataset.split(name)
            for time, snapshot in zip(split.time, split.snapshot, strict=True):
                assert times[snapshot] <= time
                assert snapshot + 1 == len(times) or times[snapshot + 1] > time


@EXAMPLES
@given(seed=st.integers(0, 10**6))
def test_hard_negatives_are_the_safe_impressions_at_their_nearest_query(seed):
    labels = {"click_window_days": 3, "view_window_days": 2, "max_hard_negatives_per_query": 1000}
    for world, events, config in built(seed, labels=labels):
        for name in ("train", "recent"):
            keyed = [(row, *query) for row, query in enumerate(world.queries(name))]
            positive = {(q, item) for q, item, *_ in world.positives(name)}
            expected = set()
            window = world.window(name)
            if name == "recent":  # and what could still be converted on when the training window ended
                train = world.window("train")
                window = max(train[0], train[1] - 2 * slow.DAY), window[1]
            for impression in slow.safe_negatives(events, window, config.labels):
                query = slow.nearest_query(keyed, impression)
                if query is not None and (query, impression["item_id"]) not in positive:
                    expected.add((query, impression["item_id"]))
            found, items = world.dataset.split(name).hard_negatives, world.dataset.item_ids.to_pylist()
            assert [(int(q), items[i]) for q, i in zip(found.query, found.item, strict=True)] == sorted(expected)


def test_an_impression_that_is_converted_on_at_the_far_end_of_its_view_window_is_no_negative(tmp_path):
    """Oracle: the conversion is credited to it, and comes at the moment when the training window ends."""
    rows = [
        event("u0", "i1", "click", 17),
        event("u0", "i0", "impression", 18),
        event("u0", "i2", "impression", 18 - 1 / 24),
        event("u0", "i0", "checkout", 21, surface=None),
        event("u0", "i1", "click", 30.5),
    ]
    world = build_world(tmp_path, rows)
    assert world.window("train")[1] == world.window("test")[1] - 10 * slow.DAY
    assert ("i0", "checkout", True) in [positive[1:4] for positive in world.positives("recent")]
    found, items = world.dataset.split("train").hard_negatives, world.dataset.item_ids.to_pylist()
    assert [items[i] for i in found.item] == ["i2"]


def test_an_impression_is_a_negative_of_its_own_request_among_several_of_one_moment(tmp_path):
    """Oracle: four requests at midnight, as in a log of whole days, and what each showed beside what was clicked."""
    contexts = [
        {"surface": "search", "context_embedding": [1.0, 0.0]},
        {"surface": "search", "context_embedding": [0.0, 1.0]},
        {"surface": "search", "context_item_id": "i0"},
        {"surface": "search", "context_item_id": "i0", "context_embedding": [0.0, 1.0]},
    ]
    rows = [event("u0", "i5", "click", 30.5)]
    for number, context in enumerate(contexts):
        rows.append(event("u0", f"i{number}", "impression", 5, **context))
        rows.append(event("u0", f"i{6 + number}", "click", 5, **context))
    world = build_world(tmp_path, rows, items=items_table(10))
    queries, items = world.queries("train"), world.dataset.item_ids.to_pylist()
    vectors = [tuple(c["context_embedding"]) if "context_embedding" in c else None for c in contexts]
    expected = {(c.get("context_item_id"), v, f"i{n}") for n, (c, v) in enumerate(zip(contexts, vectors, strict=True))}
    found = world.dataset.split("train").hard_negatives
    assert {(*queries[q][3:], items[i]) for q, i in zip(found.query, found.item, strict=True)} == expected


@EXAMPLES
@given(seed=st.integers(0, 10**6))
def test_weights_follow_the_duration_formula(seed):
    labels = {**LABELS, "click_duration_cap_seconds": 40, "event_weights": WEIGHTS}
    for world, events, config in built(seed, labels=labels):
        expected = slow.request_positives(
            events, ADVERTISER, config.labels, world.window("train"), world.known_at("train")
        )
        wanted = sorted(slow.weight_of(e, config.labels, 40) for e, *_ in expected)
        np.testing.assert_allclose(sorted(p[-1] for p in world.positives("train")), wanted, rtol=1e-6)


WEIGHTS = {"click": 1.0, "save": 2.0, "add_to_cart": 3.0, "checkout": 5.0}


@pytest.mark.parametrize("seed", range(3))
def test_caps_keep_a_seeded_subset_of_the_hard_negatives(seed):
    loose = {**LABELS, "max_hard_negatives_per_query": 1000, "max_hard_negatives_per_user": 1000}
    tight = {**LABELS, "max_hard_negatives_per_query": 1, "max_hard_negatives_per_user": 2}
    pairs = []
    for labels in (loose, tight, tight):
        for world, *_ in built(seed, labels=labels):
            split = world.dataset.split("train")
            pairs.append(
                list(zip(split.hard_negatives.query.tolist(), split.hard_negatives.item.tolist(), strict=True))
            )
            users = split.user[split.hard_negatives.query]
    assert set(pairs[1]) <= set(pairs[0])
    assert pairs[1] == pairs[2]
    assert len({q for q, _ in pairs[1]}) == len(pairs[1])
    assert max(np.bincount(users), default=0) <= 2
