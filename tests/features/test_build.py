"""The stage as a whole: the same bytes however the work is cut, counts, splits, and what it refuses."""

import json
import random
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conversion_retrieval.config import parse_config
from conversion_retrieval.errors import UserError
from conversion_retrieval.features import merge
from conversion_retrieval.features.grouped import count_before, mixed_hash
from conversion_retrieval.features.label_statistics import delay_curve, label_variance, weight_statistics
from conversion_retrieval.features.windows import DAY, SplitWindows, Window
from conversion_retrieval.schema import ITEMS
from tests.features.tables import event, items_table, random_rows
from tests.features.worlds import build_world, short_config


def numbered(rows):
    """Rows with fixed event ids, so that shuffling them changes nothing but their order."""
    return [{"event_id": f"e{number:05d}", **row} for number, row in enumerate(rows)]


@pytest.fixture(scope="module")
def rows():
    return numbered(random_rows(5, users=12, count=500))


@pytest.fixture(scope="module")
def digests(rows, tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("whole"), rows).digests


@pytest.mark.parametrize("partitions", [2, 5, 100])
def test_the_number_of_partitions_changes_no_byte(partitions, rows, digests, tmp_path):
    config = short_config(features={"aggregate_windows_days": [1, 5], "num_partitions": partitions})
    assert build_world(tmp_path, rows, config=config, parts=partitions % 7, row_group_size=37).digests == digests


def test_shuffled_input_changes_no_byte(rows, digests, tmp_path):
    shuffled = random.Random(1).sample(rows, len(rows))
    assert build_world(tmp_path, shuffled, parts=3).digests == digests


def test_group_borders_of_the_output_change_no_content(rows, tmp_path, monkeypatch):
    whole = build_world(tmp_path / "whole", rows)
    monkeypatch.setattr("conversion_retrieval.features.merge.QUERIES_PER_GROUP", 7)
    pieces = build_world(tmp_path / "pieces", rows, config=short_config(features={**WINDOWS, "num_partitions": 4}))
    for name in ("train", "validation", "test", "recent"):
        assert pieces.queries(name) == whole.queries(name)
        assert pieces.positives(name) == whole.positives(name)


def test_context_vectors_are_written_a_group_at_a_time(tmp_path, monkeypatch):
    """Oracle: the vectors' own size, of which no more than some groups may be held, and NumPy's file of them."""
    queries, dim = 40_000, 256
    vectors = np.random.default_rng(0).random((queries, dim), np.float32)
    number = np.arange(queries)
    columns = {"user": number.astype(np.int32), "time": number, "history_end": number, "context_rows": number}
    columns |= dict.fromkeys(("surface", "context_item"), np.zeros(queries, np.int32))
    columns |= {"user_aggregates": np.zeros((queries, 1), np.float32), "score": number.astype(np.uint64)}
    labels = {name: np.zeros(0, kind.to_pandas_dtype()) for name, kind in merge.POSITIVE_COLUMNS.items()}
    for kind, arrays in {
        "queries": columns | {"context_embeddings": vectors},
        "positives": labels | {"query": number[:0]},
        "hard_negatives": {"query": number[:0], "item": np.zeros(0, np.int32)},
    }.items():
        (tmp_path / "part" / "train" / kind).mkdir(parents=True)
        for name, values in arrays.items():
            np.save(tmp_path / "part" / "train" / kind / f"{name}.npy", values)
    (tmp_path / "part" / "history").mkdir()
    np.save(tmp_path / "part" / "history" / "lengths.npy", np.ones(queries, np.int64))
    np.save(tmp_path / "whole.npy", vectors)
    monkeypatch.setattr(merge, "QUERIES_PER_GROUP", 2_000)
    files = merge.SplitFiles(directory=tmp_path / "train", snapshot_times=number[:1], num_aggregates=1)
    order = merge.order_queries([tmp_path / "part"], "train")
    tracemalloc.start()
    files.write(order)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < vectors.nbytes / 2
    assert (tmp_path / "train" / "context_embeddings.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


WINDOWS = {"aggregate_windows_days": [1, 5]}


def test_a_sample_of_evaluation_queries_is_seeded_and_a_subset(rows, tmp_path):
    whole = build_world(tmp_path / "whole", rows)
    split = {"validation_days": 5, "test_days": 5, "max_evaluation_queries": 9}
    few = build_world(tmp_path / "few", rows, config=short_config(split=split))
    other = build_world(tmp_path / "other", rows, config=short_config(split={**split, "seed": 1}))
    assert len(few.queries("test")) == 9
    assert set(few.queries("test")) < set(whole.queries("test"))
    assert few.queries("test") != other.queries("test")
    for name in ("train", "recent"):
        assert few.queries(name) == whole.queries(name)


def test_a_basket_is_one_query_with_several_positives(tmp_path):
    rows = [event("u0", f"i{item}", "checkout", 2, surface=None) for item in range(3)]
    world = build_world(tmp_path, [*rows, event("u0", "i0", "click", 20)])
    assert len(world.queries("train")) == 1
    assert [item for _, item, *_ in world.positives("train")] == ["i0", "i1", "i2"]


def test_a_report_after_the_training_window_is_no_training_label(tmp_path):
    early = event("u0", "i0", "checkout", 2, surface=None, reported=3)
    late = event("u0", "i1", "checkout", 2, surface=None, reported=19)
    world = build_world(tmp_path, [early, late, event("u0", "i0", "click", 25)])
    assert [item for _, item, *_ in world.positives("train")] == ["i0"]


def test_recent_repeats_of_the_training_window_the_queries_alone_that_got_a_label_since(tmp_path):
    """Oracle: of the three queries of one moment only the basket without surface got one, and brings all its labels."""
    rows = [
        event("u0", "i0", "click", 5),
        event("u0", "i1", "click", 5, surface="search", context_embedding=[1.0]),
        event("u0", "i2", "checkout", 5, surface=None),
        event("u0", "i3", "checkout", 5, surface=None, reported=22),
        event("u0", "i0", "click", 30.5),
    ]
    world = build_world(tmp_path, rows)
    assert [item for _, item, *_ in world.positives("train")] == ["i2", "i0", "i1"]
    assert [item for _, item, *_ in world.positives("recent")] == ["i2", "i3"]


def test_a_log_of_conversions_alone_has_queries_and_positives(tmp_path):
    world = build_world(tmp_path, [event("u0", f"i{item}", "checkout", day) for item, day in enumerate((1, 4, 25))])
    assert [item for _, item, *_ in world.positives("train")] == ["i0", "i1"]
    assert [item for _, item, *_ in world.positives("test")] == ["i2"]


def test_a_log_of_one_moment_has_training_queries_and_says_that_it_evaluates_none(tmp_path, capsys):
    """As with ``request``, the default: its windows of validation and test are empty."""
    rows = [event("u0", f"i{item}", "checkout", 1) for item in range(3)]
    for queries in ("request", "window_start"):
        config = parse_config({"split": {"evaluation_queries": queries}})
        world = build_world(tmp_path / queries, rows, config=config)
        found = [len(world.positives(name)) for name in ("train", "validation", "test", "recent")]
        assert found == [3, 0, 0, 0]
        assert capsys.readouterr().err.count("window holds no positives") == 2


def test_one_event_of_a_wrong_clock_changes_no_window_no_snapshot_and_hardly_a_statistic(tmp_path):
    """Oracle: the same log without that event, one in 2,000; of six items, one looks older for it."""
    rows = numbered(random_rows(5, users=12, count=2000))
    stray = event("u0", "i0", "impression", -20_000) | {"event_id": "stray"}
    found, expected = (build_world(tmp_path / n, r) for n, r in (("with", [*rows, stray]), ("without", rows)))
    np.testing.assert_array_equal(found.dataset.stored_performance.times, expected.dataset.stored_performance.times)
    np.testing.assert_array_equal(
        found.dataset.split("train").snapshot[-5:], expected.dataset.split("train").snapshot[-5:]
    )
    for one, other in zip(found.dataset.spec.item_performance, expected.dataset.spec.item_performance, strict=True):
        assert one.name == other.name
        assert (one.mean, one.std) == pytest.approx((other.mean, other.std), rel=0.1, abs=0.02)


def test_what_came_after_as_of_makes_no_event_before_it_a_stray(tmp_path):
    """Oracle: the log that ends there. Of the whole one its five events are less than a thousandth."""
    early = numbered([event("u0", f"i{day}", "click", day) for day in range(5)])
    late = [event("u1", "i0", "impression", 50 + n / 1e4) | {"event_id": f"late{n}"} for n in range(6000)]
    config = short_config(split={"validation_days": 1, "test_days": 1, "as_of": "2026-01-06"})
    found, expected = (build_world(tmp_path / n, r, config=config) for n, r in (("all", early + late), ("then", early)))
    assert found.dataset.metadata["windows"] == expected.dataset.metadata["windows"]
    assert found.positives("train") == expected.positives("train")
    assert [item for _, item, *_ in found.positives("train")] == ["i0", "i1", "i2"]


def test_a_conversion_before_its_click_is_not_credited_to_it(tmp_path):
    rows = [
        event("u0", "i0", "checkout", 2, surface=None),
        event("u0", "i0", "click", 3),
        event("u0", "i0", "click", 25),
    ]
    world = build_world(tmp_path, rows)
    assert (
        world.dataset.metadata["labels"]["attribution"] | {"unattributed": 1, "click": 0}
        == (world.dataset.metadata["labels"]["attribution"])
    )


def test_events_outside_the_catalogue_stay_in_histories_but_are_no_labels(tmp_path):
    rows = [event("u0", "gone", "click", 1), event("u0", "i0", "click", 2), event("u0", "i0", "click", 25)]
    world = build_world(tmp_path, rows)
    assert [item for _, item, *_ in world.positives("train")] == ["i0"]
    arrays = world.dataset.query_arrays(world.dataset.split("train"), np.array([0]), 3)
    assert arrays.history_item.tolist() == [[-1, -1, -1]]
    assert arrays.history_action.tolist() == [[0, 0, 2]]


def test_vocabularies_and_statistics_come_from_items_of_the_training_window(tmp_path):
    items = items_table(4, category=["seen", "seen", "late", "late"], price=[1.0, 3.0, 1000.0, 1000.0])
    rows = [event("u0", "i0", "click", 1), event("u0", "i1", "click", 2), event("u0", "i2", "click", 25)]
    world = build_world(tmp_path, rows, items=items)
    spec = world.dataset.spec
    assert spec.vocabularies["items.category"].values.to_pylist() == ["seen"]
    assert spec.vocabularies["item_id"].values.to_pylist() == ["i0", "i1"]
    price = next(column for column in spec.items.numeric if column.name == "price")
    assert (price.mean, price.std) == (2.0, 1.0)
    assert world.dataset.items.id_code.tolist() == [1, 2, 0, 0]
    assert world.dataset.metadata["counts"]["cold_items"] == 2


def test_the_duration_that_counts_as_a_full_click_is_a_percentile_of_the_training_window(tmp_path):
    training = [event("u0", "i0", "click", 1 + n / 10, click_duration_seconds=float(n)) for n in range(21)]
    later = [event("u0", "i0", "click", day, click_duration_seconds=1e6) for day in (22, 27)]
    unknown = [event("u1", "i0", "click", 5)]
    metadata = build_world(tmp_path, [*training, *later, *unknown]).dataset.metadata
    assert metadata["click_duration_cap_seconds"] == np.percentile(np.arange(21), 95) == 19


def test_user_aggregates_are_normalised_by_training_queries_only(tmp_path):
    rows = [event("u0", "i0", "click", 1 + n / 10) for n in range(8)]
    rows += [event("u1", "i1", "click", 26 + n / 1000) for n in range(50)]
    data = build_world(tmp_path, rows).dataset
    column = data.metadata["user_aggregates"].index("click_count_total")
    raw = np.log1p(data.split("train").user_aggregates[:, column])
    assert len(raw) == 8
    statistic = data.spec.user_aggregates[column]
    assert (statistic.mean, statistic.std) == (pytest.approx(raw.mean()), pytest.approx(raw.std()))


def test_cold_items_and_users_are_those_without_an_event_in_the_training_window(tmp_path):
    users = pa.table({"user_id": ["u0", "u5"]})
    rows = [
        event("u0", "i0", "click", 1),
        event("u0", "i1", "click", 25),
        event("u9", "i0", "click", 26),
        event("u9", "i1", "checkout", 27, surface=None),
    ]
    counts = build_world(tmp_path, rows, items=items_table(3), users=users).dataset.metadata["counts"]
    assert (counts["items"], counts["cold_items"]) == (3, 2)
    assert (counts["users"], counts["cold_users"]) == (3, 2)
    found = [counts["test"][name] for name in ("positives_on_cold_items", "queries_of_cold_users", "queries")]
    assert found == [2, 2, 3]
    assert counts["train"]["positives_on_cold_items"] == counts["train"]["queries_of_cold_users"] == 0


def test_users_without_events_and_events_without_user_rows_both_have_a_row(tmp_path):
    users = pa.table({"user_id": ["u9", "u0"], "age": ["old", "young"]})
    world = build_world(tmp_path, [event("u5", "i0", "click", 1), event("u0", "i0", "click", 25)], users=users)
    table = pq.read_table(world.features_dir / "users.parquet")
    assert table.to_pydict() == {"user_id": ["u0", "u5", "u9"], "age": ["young", None, "old"]}
    assert np.diff(world.dataset.events.offsets).tolist() == [1, 1, 0]


def test_nothing_to_train_on_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="expected events before") as refused:
        build_world(tmp_path / "short", [event("u0", "i0", "click", 1)])
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="expected engagements or conversions"):
        build_world(tmp_path / "none", [event("u0", "i0", "impression", 1), event("u0", "i0", "click", 25)])
    assert not (tmp_path / "none" / "features").exists()
    assert [p.name for p in (tmp_path / "none").iterdir()] == ["snapshot"]


def test_context_vectors_of_two_lengths_are_refused(tmp_path):
    rows = [
        event("u0", "i0", "click", 1, context_embedding=[1.0]),
        event("u1", "i0", "click", 1, context_embedding=[1.0, 2.0]),
    ]
    with pytest.raises(UserError, match=r"vectors of (one )?length"):
        build_world(tmp_path, [*rows, event("u0", "i0", "click", 25)])


def test_more_surfaces_than_16_bits_can_number_are_refused(tmp_path):
    """Oracle: the names that codes stand for, up to the last that there is a code for."""
    names = [f"s{number:05d}" for number in range(32_768)]
    rows = [event("u0", "i0", "click", 1 + number % 26, surface=name) for number, name in enumerate(names)]
    world = build_world(tmp_path / "most", rows[:-1])
    codes = np.load(world.features_dir / "events" / "surface.npy")
    found = sorted(world.dataset.metadata["surfaces"][code - 1] for code in codes.tolist())
    assert found == names[:-1]
    with pytest.raises(UserError, match=r"expected at most 32767 surfaces in column surface of the events, found more"):
        build_world(tmp_path / "more", rows)


def test_what_is_added_to_the_items_is_what_no_column_of_theirs_may_be_called(tmp_path, rows):
    world = build_world(tmp_path, rows, items=items_table(6))
    added = set(pq.read_schema(world.features_dir / "items.parquet").names) - set(items_table(6).column_names)
    assert added == set(ITEMS.reserved_columns)


def test_an_explicit_as_of_hides_all_that_was_reported_later(tmp_path, rows):
    split = {"validation_days": 5, "test_days": 5, "as_of": "2026-01-25"}
    world = build_world(tmp_path, rows, config=short_config(split=split))
    as_of = world.window("test")[1]
    assert world.dataset.metadata["windows"]["as_of"].startswith("2026-01-25")
    assert world.dataset.events.available.max() < as_of


def test_gap_and_maturity_move_the_windows(tmp_path, rows):
    split = {"validation_days": 5, "test_days": 5, "gap_days": 1, "maturity_days": 2, "train_days": 10}
    world = build_world(tmp_path, rows, config=short_config(split=split))
    spans = {name: world.window(name) for name in ("train", "validation", "test", "recent")}
    end = spans["test"][1] + 2 * DAY
    relative = {name: [(t - end) / DAY for t in span] for name, span in spans.items()}
    assert relative == {"train": [-24, -14], "validation": [-13, -8], "test": [-7, -2], "recent": [-14, -8]}


def test_features_json_is_strict_json(tmp_path, rows):
    world = build_world(tmp_path, rows)
    text = (world.features_dir / "features.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"found {name}"))


def test_effective_sample_size_of_equal_weights_is_their_number():
    weights = np.array([1, 1, 1, 1, 2, 0], np.float32)
    result = weight_statistics(weights, np.array([0, 0, 0, 0, 1, 1], np.int8))
    assert result["conversion"]["effective_sample_size"] == 4
    assert result["engagement"]["effective_sample_size"] == 1
    assert sum(result["engagement"]["histogram"]["counts"]) == 2


def windows_of_100_days(test_start):
    return SplitWindows(
        train=Window(start=0, end=80 * DAY),
        validation=Window(start=80 * DAY, end=90 * DAY),
        test=Window(start=test_start, end=100 * DAY),
        as_of=100 * DAY,
        known_until=100 * DAY,
    )


def test_expected_missing_share_corrects_for_reports_still_to_come():
    """Half of all conversions arrive at once, half after ten days: of the fresh ones half are missing."""
    windows = windows_of_100_days(test_start=95 * DAY)
    time = np.concatenate([np.repeat(np.arange(60), 2), np.full(10, 96)]) * DAY
    delay = np.concatenate([np.tile([0, 10], 60), np.zeros(10, int)]) * DAY
    curve = delay_curve(time, time + delay, windows)
    assert dict(zip(curve["days"], curve["share_reported"], strict=True))[7.0] == 0.5
    assert curve["expected_missing_share"]["test"] == pytest.approx(0.5)


def test_a_report_at_the_very_moment_that_labels_are_cut_is_expected_to_be_missing():
    """Oracle: a log of whole days; half of all conversions is reported a day later, of the last day's none of those."""
    windows = windows_of_100_days(test_start=90 * DAY)
    time, delay = np.repeat(np.arange(100), 2) * DAY, np.tile([0, 1], 100) * DAY
    known = time + delay < windows.known_until
    missing = delay_curve(time[known], (time + delay)[known], windows)["expected_missing_share"]
    assert missing == pytest.approx({"train": 1 / 160, "validation": 0, "test": 1 / 20, "recent": 1 / 20})


def test_pooling_by_advertiser_lowers_the_label_variance():
    counts = np.zeros((2, 5), np.int64)
    counts[:, 0], counts[:, 4] = 10, 1  # ten impressions and one checkout each
    result = label_variance(counts, np.array([0, 0], np.int32))
    assert result["item"]["relative_variance"] == 1.0
    assert result["advertiser"]["relative_variance"] == 0.5
    assert result["item"]["rate_variance"] == pytest.approx(0.1 * 0.9 / 10)
    assert result["advertiser"]["rate_variance"] == pytest.approx(0.1 * 0.9 / 20)


def test_count_before_agrees_with_searchsorted_in_every_span():
    values = np.array([1, 1, 4, 0, 2, 2, 9])
    starts, ends = np.array([0, 0, 3, 3, 7]), np.array([3, 3, 7, 7, 7])
    limits = np.array([1, 2, 2, 10, 5])
    expected = [s + np.searchsorted(values[s:e], x) for s, e, x in zip(starts, ends, limits, strict=True)]
    assert count_before(values, starts, ends, limits).tolist() == expected


def test_mixed_hash_depends_on_seed_and_order_of_columns():
    a, b = np.array([1, 2]), np.array([2, 1])
    assert mixed_hash(0, a, b)[0] != mixed_hash(0, a, b)[1]
    assert mixed_hash(0, a, b)[0] == mixed_hash(0, b, a)[1]
    assert mixed_hash(0, a)[0] != mixed_hash(1, a)[0]
