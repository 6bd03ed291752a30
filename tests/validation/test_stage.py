"""Mutations of a clean world: each bad input has its count, its rule and its verdict."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conversion_retrieval.cloud_storage import CloudStore
from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.contracts import open_artifact, read_manifest
from conversion_retrieval.errors import UserError
from conversion_retrieval.features.build import build_features
from conversion_retrieval.features.config import SplitConfig
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.storage import PreconditionFailedError, open_store
from tests.registry.artifacts import make_bundle

TOLERANT = ("validation.max_invalid_rate=1", "validation.max_duplicate_rate=1", "validation.max_orphan_rate=1")


def test_clean_tables_are_valid_and_kept_whole(world: Any, validate: Callable) -> None:
    outcome = validate(world.write())
    assert outcome.verdict == "valid", outcome.report["reason"]
    assert len(outcome.events) == len(world.events)
    assert set(outcome.report["counts"]) == {"events.reordered"}
    open_artifact(outcome.snapshot_dir, kind="snapshot")
    open_artifact(outcome.report_dir, kind="report")


def test_snapshot_is_sorted_and_parts_end_where_users_end(world: Any, validate: Callable) -> None:
    outcome = validate(world.write(), "validation.rows_per_part=50")
    parts = sorted((outcome.snapshot_dir / "events").iterdir())
    users = [set(pq.read_table(part)["user_id"].to_pylist()) for part in parts]
    assert len(parts) > 2
    assert sum(map(len, users)) == len(set.union(*users))
    keys = outcome.events[["user_id", "event_time", "event_id"]]
    pd.testing.assert_frame_equal(keys, keys.sort_values(["user_id", "event_time", "event_id"], ignore_index=True))


def test_shuffled_rows_and_other_part_files_change_no_byte(world: Any, validate: Callable, tmp_path: Path) -> None:
    conflicts = world.events.iloc[3:60:3].assign(item_id="i9", value=7.0)
    world.events = pd.concat([world.events, conflicts, conflicts.iloc[:3]], ignore_index=True)
    world.items = pd.concat([world.items, world.items.assign(price=99.0).iloc[:2]])
    first = validate(world.write(), *TOLERANT, name="first")
    generator = np.random.default_rng(1)
    world.events = world.events.iloc[generator.permutation(len(world.events))]
    world.items = world.items.iloc[generator.permutation(len(world.items))]
    world.users = world.users.iloc[::-1]
    world.parts, world.directory = 5, tmp_path / "shuffled"
    second = validate(world.write(), *TOLERANT, name="second")
    assert first.snapshot_bytes == second.snapshot_bytes


def test_bucket_gives_the_same_snapshot_as_its_directory_without_a_copy(
    world: Any, validate: Callable, gcs_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = validate(world.write(), name="local")
    open_store(gcs_bucket).upload_directory(world.directory, "data")
    monkeypatch.setattr(CloudStore, "download_files", None)  # what is called fails
    remote = validate(f"{gcs_bucket}/data", name="remote")
    assert remote.verdict == "valid", remote.report["reason"]
    assert remote.snapshot_bytes == local.snapshot_bytes


def test_table_that_is_replaced_while_it_is_read_ends_the_run_and_not_as_invalid_data(
    world: Any, validate: Callable, gcs_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.parts, store, genuine = 1, open_store(gcs_bucket), CloudStore.read_range
    store.upload_directory(world.write(), "data")

    def read_range(self: CloudStore, info: Any, start: int, end: int) -> bytes:
        if start == 4:  # the first column chunk of a table: footers have been read
            store.write(f"data/{info.key}", genuine(self, info, 0, info.size))
        return genuine(self, info, start, end)

    monkeypatch.setattr(CloudStore, "read_range", read_range)
    with pytest.raises(PreconditionFailedError, match=r"items\.parquet .* written meanwhile") as caught:
        validate(f"{gcs_bucket}/data")
    assert "\n" not in str(caught.value)


def test_part_size_changes_files_but_no_row(world: Any, validate: Callable) -> None:
    small = validate(world.write(), "validation.rows_per_part=7", name="small")
    large = validate(world.directory, name="large")
    pd.testing.assert_frame_equal(small.events, large.events)


def add_conflict(world: Any) -> None:
    changed = world.events.iloc[[4]].assign(item_id="i9", user_id="u19")
    world.events = pd.concat([world.events, changed], ignore_index=True)


def duplicated(world: Any) -> None:
    world.events = pd.concat([world.events, world.events.iloc[:2]], ignore_index=True)


def conflicting(world: Any) -> None:
    add_conflict(world)
    world.events = pd.concat([world.events, world.events.iloc[[0]].assign(item_id="i8")], ignore_index=True)


def future(world: Any) -> None:
    world.events.loc[[3, 9], "event_time"] = datetime.now(UTC) + timedelta(days=30)


def orphaned(world: Any) -> None:
    world.events.loc[[0, 1], "item_id"] = "gone"


def unknown_type(world: Any) -> None:
    world.events.loc[[0, 3], "event_type"] = "hover"


def without_user(world: Any) -> None:
    world.events.loc[[0, 3], "user_id"] = None


def without_time(world: Any) -> None:
    world.events.loc[[0, 3], "event_time"] = pd.NaT


@pytest.mark.parametrize(
    ("mutate", "rule"),
    [
        (duplicated, "exact_duplicate"),
        (conflicting, "conflicting_duplicate"),
        (future, "future_dated"),
        (orphaned, "orphan_item"),
        (unknown_type, "unknown_event_type"),
        (without_user, "null_user_id"),
        (without_time, "null_event_time"),
    ],
)
def test_bad_rows_are_counted_dropped_and_beyond_the_limit_stop(
    world: Any, validate: Callable, mutate: Callable, rule: str
) -> None:
    mutate(world)
    tolerant = validate(world.write(), *TOLERANT, name="tolerant")
    check = tolerant.check(rule)
    assert (check["count"], check["rule"], tolerant.verdict) == (2, "drop", "valid")
    assert len(tolerant.events) == len(world.events) - 2
    assert check["observed"] == pytest.approx(2 / len(world.events))
    strict = validate(world.directory, *(setting.replace("=1", "=0.001") for setting in TOLERANT), name="strict")
    check = strict.check(rule)
    assert (strict.verdict, check["success"], check["severity"]) == ("invalid", False, "error")
    assert len(check["sample"]) >= 1
    assert re.fullmatch(r"part-\d\.parquet", check["sample"][0]["file"])
    assert not strict.snapshot_dir.exists()


def test_the_verdict_names_the_setting_and_what_the_future_is_measured_from(world: Any, validate: Callable) -> None:
    """Oracle: an ``as_of`` with all events of the world before it, and two that are put behind it."""
    last = world.events["event_time"].max()
    as_of = last.normalize() + timedelta(days=1)
    world.events.loc[[3, 9], "event_time"] = last + timedelta(days=30)
    world.events.loc[[5], "user_id"] = None
    outcome = validate(
        world.write(),
        f"split.as_of={as_of.tz_convert('Asia/Tokyo').isoformat()}",
        "validation.max_invalid_rate=0.001",
        "validation.max_future_days=2",
    )
    assert outcome.report["reason"] == (
        f"events null_user_id user_id: {1 / len(world.events):.4g}, the limit is 0.001 (validation.max_invalid_rate), "
        "1 row; and 1 more error"
    )
    assert outcome.check("future_dated")["meaning"] == (
        f"after {as_of + timedelta(days=2):%Y-%m-%d} 00:00 UTC, split.as_of plus validation.max_future_days=2"
    )


def test_sample_names_file_and_row_of_a_bad_row(world: Any, validate: Callable) -> None:
    orphaned(world)
    (first, second) = validate(world.write(), *TOLERANT).check("orphan_item")["sample"]
    assert (first["file"], first["row"], second["row"], first["item_id"]) == ("part-0.parquet", 0, 1, "gone")


def test_of_one_event_id_the_first_row_in_content_order_is_kept(world: Any, validate: Callable) -> None:
    add_conflict(world)
    event_id, user_id = world.events.iloc[4][["event_id", "user_id"]]
    kept = validate(world.write(), *TOLERANT).events.set_index("event_id").loc[event_id]
    assert kept["user_id"] == min(user_id, "u19")


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("click_duration_seconds", -1.0, "bad_click_duration"),
        ("click_duration_seconds", float("nan"), "bad_click_duration"),
        ("click_duration_seconds", float("inf"), "bad_click_duration"),
        ("value", -3.0, "bad_value"),
        ("reported_time", pd.Timestamp("2020-01-01", tz="UTC"), "reported_before_event"),
    ],
)
def test_bad_values_are_counted_and_set_to_null(
    world: Any, validate: Callable, column: str, value: Any, rule: str
) -> None:
    world.events.at[1, column] = value  # row 1 is a click
    event_id = world.events.at[1, "event_id"]
    outcome = validate(world.write(), *TOLERANT)
    assert outcome.check(rule)["count"] == 1
    assert pd.isna(outcome.events.set_index("event_id").at[event_id, column])
    assert len(outcome.events) == len(world.events)


def with_ticks(path: Path, column: str, ticks: dict[int, int]) -> None:
    """Put microseconds since 1970 into rows of a part: pandas and datetime know no such times."""
    table = pq.read_table(path)
    position, values = table.schema.get_field_index(column), table[column].cast(pa.int64()).to_pylist()
    times = [ticks.get(row, value) for row, value in enumerate(values)]
    new = pa.array(times, pa.int64()).cast(pa.timestamp("us", "UTC"))
    pq.write_table(table.set_column(position, column, new), path)


YEAR_1, YEAR_10000 = -62_135_596_800_000_000, 253_402_300_800_000_000


def test_reported_times_beyond_the_year_9999_are_counted_and_set_to_null(
    world: Any, validate: Callable, tmp_path: Path
) -> None:
    """Oracle: the seconds of the calendar's ends by ``date -u +%s``; features are built of what stays."""
    ticks = {2: YEAR_10000 - 2, 5: YEAR_10000 - 1, 8: YEAR_10000, 11: 2**63 - 1, 14: 2**62, 17: -(2**63)}
    with_ticks(world.write() / "events" / "part-0.parquet", "reported_time", ticks)
    outcome = validate(world.directory, *TOLERANT)
    check = outcome.check("unreadable_reported_time")
    assert (outcome.verdict, check["count"], check["rule"], check["severity"]) == ("valid", 5, "set to null", "error")
    assert [row["row"] for row in check["sample"]] == [5, 8, 11, 14, 17]
    assert outcome.check("reported_before_event")["count"] == 1
    snapshot = pq.read_table(outcome.snapshot_dir / "events")
    times = snapshot["reported_time"].cast(pa.int64()).to_pylist()
    reported = dict(zip(snapshot["event_id"].to_pylist(), times, strict=True))
    assert [reported[f"e{row:05d}"] for row in ticks] == [YEAR_10000 - 2, *[None] * 5]
    assert len(snapshot) == len(world.events)
    split = PipelineConfig(split=SplitConfig(validation_days=1, test_days=1))
    features_dir = tmp_path / "features"
    build_features(
        snapshot_dir=outcome.snapshot_dir, features_dir=features_dir, spec_dir=tmp_path / "spec", config=split
    )
    windows = json.loads((features_dir / "features.json").read_text())["windows"]
    assert windows["known_until"] == "9999-12-31T23:59:59.999999+00:00"
    strict = validate(world.directory, "validation.max_invalid_rate=0.01", name="strict")
    assert strict.report["reason"].startswith(
        "events unreadable_reported_time reported_time: 0.01667, the limit is 0.01"
    )
    assert "5 rows outside the years 1 to 9999" in strict.report["reason"]


def test_event_times_that_are_no_dates_are_counted_and_dropped(world: Any, validate: Callable) -> None:
    ticks = {1: YEAR_1 - 1, 4: -(2**63), 7: -(2**63) + 1, 10: YEAR_10000, 13: 2**63 - 1}
    with_ticks(world.write() / "events" / "part-0.parquet", "event_time", ticks)
    outcome = validate(world.directory, *TOLERANT)
    early, late = outcome.check("unreadable_event_time"), outcome.check("future_dated")
    assert (early["count"], early["rule"], late["count"], outcome.verdict) == (3, "drop", 2, "valid")
    assert [row["row"] for row in early["sample"] + late["sample"]] == [1, 4, 7, 10, 13]
    assert late["sample"][0]["event_time"].startswith("10000-01-01 00:00:00")
    assert len(outcome.events) == len(world.events) - 5


def test_click_duration_on_another_event_is_set_to_null(world: Any, validate: Callable) -> None:
    world.events.at[0, "click_duration_seconds"] = 5.0  # row 0 is an impression
    outcome = validate(world.write(), *TOLERANT)
    assert outcome.check("click_duration_elsewhere")["count"] == 1
    assert outcome.check("bad_click_duration")["count"] == 0
    durations = outcome.events.set_index("event_id")["click_duration_seconds"]
    assert durations.notna().sum() == 100
    assert validate(world.directory, "validation.max_invalid_rate=0.001", name="strict").verdict == "invalid"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_context_embedding_that_is_not_finite_is_set_to_null(world: Any, validate: Callable, bad: float | None) -> None:
    world.events["context_embedding"] = [[1.0, 0.0]] * len(world.events)
    world.events.at[7, "context_embedding"] = [bad, 1.0]
    outcome = validate(world.write(), *TOLERANT)
    assert outcome.check("bad_context_embedding")["count"] == 1
    kept = outcome.events.set_index("event_id")["context_embedding"]
    assert kept.isna().sum() == 1
    assert kept[world.events.at[7, "event_id"]] is None


def test_users_and_context_items_without_a_row_are_kept_and_counted(world: Any, validate: Callable) -> None:
    world.events["context_item_id"] = ["gone"] * 200 + [None] * 99 + ["i1"]
    world.users = world.users.iloc[:5]
    outcome = validate(world.write())
    context, user = outcome.check("orphan_context_item"), outcome.check("orphan_user")
    assert (context["count"], context["observed"], context["success"]) == (200, pytest.approx(2 / 3), False)
    assert (user["count"], user["observed"], user["success"]) == (225, pytest.approx(0.75), False)
    assert {context["severity"], user["severity"], context["rule"], user["rule"]} == {"warning", "keep"}
    assert (outcome.verdict, len(outcome.events)) == ("valid", 300)


def test_conversion_before_its_click_is_kept_and_counted(world: Any, validate: Callable) -> None:
    world.items.loc[10] = ["i10", "a0", 5.0]
    world.events.loc[1, ["item_id", "event_time"]] = ["i10", world.events.at[1, "event_time"] + timedelta(days=2)]
    world.events.loc[2, "item_id"] = "i10"
    outcome = validate(world.write())
    assert outcome.check("conversion_before_its_click")["count"] == 1
    assert outcome.check("unattributable_conversion")["count"] == 1
    assert len(outcome.events) == len(world.events)


def test_share_of_unattributable_conversions_has_a_limit(world: Any, validate: Callable) -> None:
    world.events = world.events[world.events["event_type"] == "checkout"]
    outcome = validate(world.write(), "validation.max_unattributable_rate=0.9")
    check = outcome.check("unattributable_conversion")
    assert (outcome.verdict, check["observed"], check["count"]) == ("invalid", 1.0, len(world.events))


def test_item_whose_advertiser_changes_is_counted_and_kept_once(world: Any, validate: Callable) -> None:
    world.items = pd.concat([world.items, world.items.iloc[[0]].assign(advertiser_id="a9")], ignore_index=True)
    outcome = validate(world.write(), *TOLERANT)
    assert outcome.check("advertiser_changes", "items")["count"] == 1
    assert outcome.check("conflicting_duplicate", "items")["count"] == 1
    items = pq.read_table(outcome.snapshot_dir / "items.parquet").to_pandas().set_index("item_id")
    assert items.at["i0", "advertiser_id"] == "a0"
    assert validate(world.directory, name="strict").verdict == "invalid"


def test_embeddings_of_two_lengths_stop_and_the_rare_length_is_located(world: Any, validate: Callable) -> None:
    world.items["visual_embedding"] = [[1.0, 2.0]] * 9 + [[1.0]]
    outcome = validate(world.write(), name="items")
    check = outcome.check("visual_embedding_lengths", "items")
    assert (outcome.verdict, check["observed"], check["success"], check["count"]) == ("invalid", 2, False, 1)
    assert check["sample"] == [{"file": "items.parquet", "row": 9, "item_id": "i9", "length": 1}]
    world.items = world.items.drop(columns="visual_embedding")
    world.events["context_embedding"] = [[1.0, 2.0]] * 299 + [[1.0, 2.0, 3.0]]
    check = validate(world.write(), name="events").check("context_embedding_lengths")
    assert (check["count"], check["sample"][0]["file"], check["sample"][0]["row"]) == (1, "part-2.parquet", 99)


def test_columns_may_have_the_names_that_the_checks_use(world: Any, validate: Callable) -> None:
    """Oracle: the same tables with other names; what is located is located by file and row all the same."""
    taken = [
        "file",
        "Row",
        "FILE_",
        "size",
        "length",
        "bin",
        "n",
        "key",
        "known",
        "incoming",
        "events",
        "kept",
        "user_id",
    ]
    taken += ["event_time", "event_type", "owner", "rowid", "items", "raw_items", "x"]
    usual = [f"c{number}" for number in range(len(taken))]
    found = []
    for names in (usual, taken):
        data = {name: [f"{name}{n}" for n in range(9)] + [None] for name in names[:-1]}
        items = world.items.assign(**data, **{names[-1]: [[1.0, 2.0]] * 10})
        twice = items.iloc[[3]].assign(advertiser_id="a9", **{names[0]: "other"})
        world.items = pd.concat([items, twice], ignore_index=True)
        world.users = world.users.assign(**{names[0]: "f", names[1]: 1.5})
        found.append(validate(world.write(), *TOLERANT, "labels.attribution_level=advertiser", name=names[0]))
        world.items, world.users = world.items.iloc[:10, :3], world.users.iloc[:, :2]
    plain, outcome = found
    assert outcome.verdict == "valid", outcome.report["reason"]
    for name in ("conflicting_duplicate", "advertiser_changes"):
        sample = [{"file": "items.parquet", "row": row, "item_id": "i3"} for row in (3, 10)]
        assert outcome.check(name, "items")["sample"] == plain.check(name, "items")["sample"] == sample
    read = [pq.read_table(o.snapshot_dir / "items.parquet").to_pydict() for o in found]
    assert set(read[1]) == {"item_id", "advertiser_id", "price", *taken}
    assert all(len(column) == 10 for column in read[1].values())
    assert read[1]["file"] == [f"file{n}" for n in range(9)] + [None]
    assert read[1]["x"] == read[0][usual[-1]]
    assert outcome.report["counts"] == plain.report["counts"]
    world.items["file"] = "f"
    world.items["visual_embedding"] = [[1.0, 2.0]] * 9 + [[1.0]]
    check = validate(world.write(), name="lengths").check("visual_embedding_lengths", "items")
    assert check["sample"] == [{"file": "items.parquet", "row": 9, "item_id": "i9", "length": 1}]


@pytest.mark.parametrize("name", ["Price", ""])
def test_names_that_the_database_cannot_tell_are_invalid_data(world: Any, validate: Callable, name: str) -> None:
    world.items[name] = 1.0
    outcome = validate(world.write())
    assert outcome.verdict == "invalid"
    assert str(world.directory / "items.parquet") in outcome.report["reason"]


def test_rows_out_of_the_order_of_time_are_kept_and_counted(world: Any, validate: Callable) -> None:
    world.parts = 1
    world.events = world.events.sort_values("event_time", kind="stable", ignore_index=True)
    ordered = validate(world.write(), name="ordered")
    assert ordered.check("reordered")["count"] == 0
    moved = [*range(1, 8), 0, *range(8, len(world.events))]  # the first event after the eighth
    world.events = world.events.iloc[moved].reset_index(drop=True)
    world.events.loc[100, "event_time"] = pd.NaT
    outcome = validate(world.write(), *TOLERANT, name="moved")
    check = outcome.check("reordered")
    assert (check["count"], check["rule"], check["severity"], outcome.verdict) == (1, "keep", "warning", "valid")
    assert [(row["file"], row["row"]) for row in check["sample"]] == [("part-0.parquet", 7)]
    world.events = world.events.sample(frac=1, random_state=3)
    by_hand = int((world.events["event_time"].dropna().diff() < pd.Timedelta(0)).sum())
    assert validate(world.write(), *TOLERANT, name="shuffled").check("reordered")["count"] == by_hand


def test_volume_null_rates_and_delays_are_in_the_report(world: Any, validate: Callable) -> None:
    world.items.loc[:2, "price"] = None
    facts = validate(world.write()).report["facts"]
    assert {row["day"]: 0 for row in facts["volume"]} == {f"2026-01-{day:02d}": 0 for day in range(5, 10)}
    assert sum(row["events"] for row in facts["volume"] if row["surface"] == "search") == 150
    assert facts["null_rates"]["value"] == pytest.approx(2 / 3)
    assert facts["entity_null_rates"] == {"items.advertiser_id": 0.0, "items.price": 0.3, "users.age": 0.0}
    assert facts["reporting_delay_seconds"] == [3600.0] * 5
    assert facts["click_to_conversion_seconds"] == [60.0] * 5


def test_empty_day_is_a_warning_that_names_the_day(world: Any, validate: Callable) -> None:
    world.events = world.events[world.events["event_time"].dt.day != 7]
    outcome = validate(world.write())
    check = outcome.check("days_below_min_events")
    assert (outcome.verdict, check["severity"], check["success"]) == ("valid", "warning", False)
    assert check["sample"] == [{"day": "2026-01-07", "events": 0}]


def test_surface_that_misses_a_day_is_a_warning(world: Any, validate: Callable) -> None:
    gone = (world.events["event_time"].dt.day == 8) & (world.events["surface"] == "search")
    world.events = world.events[~gone]
    check = validate(world.write()).check("surface_days_below_min_events")
    assert (check["severity"], check["success"]) == ("warning", False)
    assert check["sample"] == [{"day": "2026-01-08", "surface": "search", "events": 0}]
    assert validate(world.directory, "validation.min_events_per_surface_day=0", name="off").check(
        "surface_days_below_min_events"
    )["success"]


def test_null_rates_have_limits_where_asked_for(world: Any, validate: Callable) -> None:
    limits = "validation.max_null_rates={events.value: 0.5, items.price: 0.0, users.age: 0.1}"
    outcome = validate(world.write(), limits)
    value, price = outcome.check("null_rate", column="value"), outcome.check("null_rate", "items", "price")
    assert (value["observed"], value["count"], value["success"]) == (pytest.approx(2 / 3), 200, False)
    assert (price["observed"], price["success"], outcome.verdict) == (0.0, True, "valid")
    with pytest.raises(UserError, match=r"found 'events\.prise'"):
        validate(world.directory, "validation.max_null_rates={events.prise: 0.5}", name="misspelt")


def test_a_null_rate_counts_nan(world: Any, validate: Callable) -> None:
    world.items = world.items.assign(price=[float("nan")] * 4 + list(world.items["price"][4:]))
    check = validate(world.write(), "validation.max_null_rates={items.price: 0.05}").check(
        "null_rate", "items", "price"
    )
    assert (check["count"], check["success"]) == (4, False)


def test_conversions_that_are_reported_late_have_a_limit(world: Any, validate: Callable) -> None:
    rows = world.events.index[world.events["event_type"] == "checkout"][:10]
    world.events.loc[rows, "reported_time"] = world.events.loc[rows, "event_time"] + timedelta(days=40)
    check = validate(world.write(), "validation.max_late_report_rate=0.09").check("late_report")
    assert (check["count"], check["observed"], check["success"], check["severity"]) == (10, 0.1, False, "warning")
    assert validate(world.directory, "validation.max_report_delay_days=40", name="l").check("late_report")["success"]


def replace_part(world: Any, edit: Callable[[pa.Table], pa.Table]) -> Path:
    path = world.write() / "events" / "part-1.parquet"
    pq.write_table(edit(pq.read_table(path)), path)
    return path


def test_wrong_type_in_one_of_many_part_files_stops(world: Any, validate: Callable) -> None:
    def edit(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index("value")
        return table.set_column(position, "value", table["value"].cast(pa.string()))

    path = replace_part(world, edit)
    outcome = validate(world.directory)
    assert outcome.verdict == "invalid"
    assert outcome.report["reason"] == f"expected double in column value of {path}, found string"
    assert outcome.page_path.read_text().count(str(path)) >= 1


def test_every_bad_part_file_is_counted(world: Any, validate: Callable) -> None:
    world.parts = 5
    world.write()
    parts = [world.directory / "events" / f"part-{number}.parquet" for number in range(5)]
    for part in parts[1:4]:
        pq.write_table(pq.read_table(part).drop_columns("user_id"), part)
    check = validate(world.directory, name="columns").check("readable_with_the_canonical_columns", "all")
    assert (check["count"], check["rule"], check["severity"]) == (3, "stop", "error")
    assert f"found none in {parts[1]}" in check["observed"] or f"in {parts[1]}, found none" in check["observed"]
    assert "(2 more files with a fault)" in check["observed"]
    for part in (parts[0], parts[4]):
        part.write_bytes(part.read_bytes()[:-9])
    outcome = validate(world.directory, name="truncated")
    assert outcome.report["counts"] == {"all.readable_with_the_canonical_columns": 2}
    assert str(parts[0]) in outcome.report["reason"]


def test_times_without_zone_stop(world: Any, validate: Callable) -> None:
    def edit(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index("event_time")
        return table.set_column(position, "event_time", table["event_time"].cast(pa.timestamp("us")))

    replace_part(world, edit)
    outcome = validate(world.directory)
    assert "expected times with a time zone in column event_time" in outcome.report["reason"]


def test_truncated_part_file_stops(world: Any, validate: Callable) -> None:
    path = world.write() / "events" / "part-2.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    outcome = validate(world.directory)
    assert (outcome.verdict, "truncated" in outcome.report["reason"]) == ("invalid", True)
    assert str(path) in outcome.report["reason"]


def test_corrupted_pages_stop_without_a_snapshot(world: Any, validate: Callable) -> None:
    path = world.write() / "events" / "part-0.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(content)
    outcome = validate(world.directory)
    assert outcome.verdict == "invalid"
    assert str(path) in outcome.report["reason"]
    assert not outcome.snapshot_dir.exists()


def test_page_needs_nothing_from_elsewhere_and_escapes_values(world: Any, validate: Callable) -> None:
    world.events.loc[0, "item_id"] = "<script>alert(1)</script>"
    page = validate(world.write(), *TOLERANT).page_path.read_text()
    assert "<script" not in page
    assert not re.search(r"https?://|<link", page)
    assert page.index("The data are valid") < page.index("<h2>")


class TestOwnSuite:
    def suite(self, tmp_path: Path, text: str) -> str:
        (tmp_path / "suite.yaml").write_text(text)
        return f"validation.suite_path={tmp_path / 'suite.yaml'}"

    def test_error_stops_and_warning_is_reported(self, world: Any, validate: Callable, tmp_path: Path) -> None:
        text = (
            "items:\n- {{expectation: expect_column_values_to_be_between, column: price, max_value: 5, severity: {}}}\n"
        )
        warned = validate(world.write(), self.suite(tmp_path, text.format("warning")), name="warned")
        check = warned.check("expect_column_values_to_be_between", "items")
        assert (warned.verdict, check["success"], check["count"]) == ("valid", False, 5)
        assert validate(world.directory, self.suite(tmp_path, text.format("error")), name="e").verdict == "invalid"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "items:\n- {expectation: expect_column_value_to_be_unique, column: price}\n",
                "did you mean expect_column_values_to_be_unique",
            ),
            ("itms: []\nitems: 3\n", "expected a mapping from tables to lists"),
            ("itms:\n- {expectation: x}\n", "found 'itms'"),
            ("items:\n- {expectation: expect_column_values_to_be_unique, colum: price}\n", "valid arguments"),
            ("items:\n- {expectation: expect_column_values_to_be_unique, column: prise}\n", "did you mean price"),
            ("items: [!!python/object/apply:os.getcwd []]\n", "expected a YAML suite file"),
        ],
    )
    def test_mistake_in_the_file_is_one_line(
        self, world: Any, validate: Callable, tmp_path: Path, text: str, message: str
    ) -> None:
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            validate(world.write(), self.suite(tmp_path, text))
        assert "\n" not in str(caught.value)


class TestDrift:
    def champion(self, registry: Path, outcome: Any) -> str:
        (registry / "versions" / "v1").mkdir(parents=True)
        (registry / "champion.json").write_text(json.dumps({"version": "v1"}))
        (registry / "versions" / "v1" / "profile.json").write_bytes((outcome.report_dir / "profile.json").read_bytes())
        return str(registry)

    def test_same_data_have_none_and_another_surface_mix_is_a_warning(
        self, world: Any, validate: Callable, tmp_path: Path
    ) -> None:
        registry = self.champion(tmp_path / "registry", validate(world.write()))
        same = validate(world.directory, champion_uri=registry, name="same")
        assert same.report["champion"] == "v1"
        assert set(same.report["drift"].values()) == {0.0}
        world.events["surface"] = "search"
        moved = validate(world.write(), champion_uri=registry, name="moved")
        check = moved.check("drift", column="surface")
        assert (moved.verdict, check["severity"], check["success"]) == ("valid", "warning", False)
        strict = ("validation.drift_severity=error",)
        stopped = validate(world.directory, *strict, champion_uri=registry, name="stopped")
        assert (stopped.verdict, stopped.check("drift", column="surface")["rule"]) == ("invalid", "stop")

    def test_longer_embeddings_are_drift(self, world: Any, validate: Callable, tmp_path: Path) -> None:
        vectors = np.arange(1.0, 11.0)[:, None] * [[0.6, 0.8]]
        world.items["visual_embedding"] = list(vectors)
        registry = self.champion(tmp_path / "registry", validate(world.write()))
        world.items["visual_embedding"] = list(vectors * 10)
        moved = validate(world.write(), champion_uri=registry, name="moved")
        assert not moved.check("drift", "items", "visual_embedding.norm")["success"]
        world.items["visual_embedding"] = list(vectors[::-1, ::-1])
        same = validate(world.write(), champion_uri=registry, name="same")
        assert same.check("drift", "items", "visual_embedding.norm")["observed"] == 0

    @pytest.mark.parametrize("many", [False, True])
    def test_numbers_that_are_text_now_have_drifted_as_far_as_can_be(
        self, world: Any, validate: Callable, tmp_path: Path, many: bool
    ) -> None:
        """Oracle: the index of two columns with one value each, which differ; also where the text has no histogram."""
        registry = self.champion(tmp_path / "registry", validate(world.write()))
        world.items["price"] = ["", None, *(f"{n}" for n in range(8))]
        if many:
            more = pd.DataFrame({"item_id": [f"j{n}" for n in range(1100)], "advertiser_id": "a0"})
            world.items = pd.concat([world.items, more.assign(price=[f"p{n}" for n in range(1100)])])
        strict = "validation.drift_severity=error"
        outcome = validate(world.write(), strict, champion_uri=registry, name="text")
        by_hand = (1 - 1e-4) * math.log(1 / 1e-4) + (1e-4 - 1) * math.log(1e-4 / 1)
        check = outcome.check("drift", "items", "price")
        assert (outcome.verdict, check["observed"], check["success"]) == ("invalid", pytest.approx(by_hand), False)
        assert outcome.report["reason"].startswith(
            "items drift price: 18.42, the limit is 0.25 (validation.max_drift_psi)"
        )
        assert check["meaning"] == "now text, number in the champion's data"
        assert check["meaning"].replace("'", "&#39;") in outcome.page_path.read_text()
        back = self.champion(tmp_path / "back", outcome)
        world.items["price"] = [float(n) for n in range(len(world.items))]
        check = validate(world.write(), champion_uri=back, name="back").check("drift", "items", "price")
        assert (check["observed"], check["meaning"]) == (
            pytest.approx(by_hand),
            "now number, text in the champion's data",
        )

    def test_columns_that_are_gone_or_were_no_lists_have_drifted_as_far_as_can_be(
        self, world: Any, validate: Callable, tmp_path: Path
    ) -> None:
        """Oracle: the index of two columns with one value each, which differ; the others have not moved at all."""
        vectors = list(np.arange(1.0, 11.0)[:, None] * [[0.6, 0.8]])
        before = world.items.assign(size=1.0, colour="red", picture=vectors, words=vectors)
        after = world.items.assign(size=vectors, words=1.0, new="x")
        world.items = before
        registry = self.champion(tmp_path / "registry", validate(world.write()))
        world.items, world.users = after, None
        (world.directory / "users.parquet").unlink()
        outcome = validate(world.write(), champion_uri=registry, name="after")
        checks = {f"{c['table']}.{c['column']}": c for c in outcome.report["expectations"] if c["name"] == "drift"}
        far = {name: check["meaning"].removesuffix(" in the champion's data") for name, check in checks.items()}
        assert {name: meaning for name, meaning in far.items() if meaning} == {
            "items.size": "now list of floats, number",
            "items.words": "now number, list of floats",
            "items.colour": "now missing, text",
            "items.picture": "now missing, list of floats",
            "users.age": "now missing, number",
        }
        by_hand = (1 - 1e-4) * math.log(1 / 1e-4) + (1e-4 - 1) * math.log(1e-4 / 1)
        assert all(check["observed"] == pytest.approx(by_hand if far[name] else 0) for name, check in checks.items())
        assert {check["success"] for name, check in checks.items() if far[name]} == {False}

    def test_integers_of_any_size_have_a_bin(self, world: Any, validate: Callable) -> None:
        """Oracle: Python's logarithm. The smallest integer has no absolute value, and stands for no time in NumPy."""
        numbers = [-(2**63), 2**63 - 1, -1, 1, 0, 7, -7, 2**53 + 1, 10**9, 3]
        world.items["opened"] = numbers
        outcome = validate(world.write())
        bins = ["zero" if n == 0 else "+-"[n < 0] + str(min(160, math.floor(4 * math.log2(abs(n))))) for n in numbers]
        assert outcome.verdict == "valid"
        profile = json.loads((outcome.report_dir / "profile.json").read_text())
        assert profile["items.opened"]["counts"] == dict(Counter(bins))

    def test_booleans_drift_by_value(self, world: Any, validate: Callable, tmp_path: Path) -> None:
        world.items["on_sale"] = [True, False] * 5
        first = validate(world.write())
        registry = self.champion(tmp_path / "registry", first)
        profile = json.loads((first.report_dir / "profile.json").read_text())
        assert profile["items.on_sale"] == {"kind": "text", "counts": {"false": 5, "true": 5}}
        world.items["on_sale"] = [True] * 8 + [False, None]
        check = validate(world.write(), champion_uri=registry, name="moved").check("drift", "items", "on_sale")
        pairs = [(0.8, 0.5), (0.1, 0.5), (0.1, 1e-4)]  # true, false, null
        assert check["observed"] == pytest.approx(sum((p - q) * math.log(p / q) for p, q in pairs))

    def test_columns_that_an_older_profile_lacks_are_not_compared(
        self, world: Any, validate: Callable, tmp_path: Path
    ) -> None:
        """Oracle: the profile as releases before wrote it, without booleans and without text of too many values."""
        world.items["on_sale"] = [True, False] * 5
        first = validate(world.write())
        registry = Path(self.champion(tmp_path / "registry", first))
        path = registry / "versions" / "v1" / "profile.json"
        profile = json.loads(path.read_text())
        del profile["items.on_sale"]
        path.write_text(json.dumps({name: entry for name, entry in profile.items() if entry["counts"]}))
        drift = validate(world.directory, champion_uri=str(registry), name="same").report["drift"]
        assert "items.on_sale" not in drift
        assert drift["items.price"] == 0.0

    def test_next_run_is_compared_with_the_data_that_the_champion_was_trained_on(
        self, world: Any, validate: Callable, tmp_path: Path
    ) -> None:
        first = validate(world.write(), name="first")
        features_dir, spec_dir = tmp_path / "features", tmp_path / "spec"
        split = PipelineConfig(split=SplitConfig(validation_days=1, test_days=1))
        build_features(snapshot_dir=first.snapshot_dir, features_dir=features_dir, spec_dir=spec_dir, config=split)
        profile = (features_dir / "profile.json").read_bytes()
        assert "profile.json" in read_manifest(features_dir, kind="features").files
        bundle_dir, decision = make_bundle(tmp_path / "bundle", "champion", profile=profile)
        champion = Registry.open(tmp_path / "registry").promote(bundle_dir, decision)
        world.events["surface"] = "search"
        second = validate(world.write(), champion_uri=str(tmp_path / "registry"), name="second")
        assert second.report["champion"] == champion.version
        by_hand = (1 - 0.5) * math.log(1 / 0.5) + (1e-4 - 0.5) * math.log(1e-4 / 0.5)
        assert second.check("drift", column="surface")["observed"] == pytest.approx(by_hand)
        assert second.check("drift", column="event_type")["observed"] == 0

    @pytest.mark.parametrize("files", [{}, {"champion.json": "{"}, {"champion.json": '{"version": "../.."}'}])
    def test_absent_champion_is_no_reason_to_stop(
        self, world: Any, validate: Callable, tmp_path: Path, files: dict[str, str]
    ) -> None:
        (tmp_path / "registry").mkdir()
        for name, content in files.items():
            (tmp_path / "registry" / name).write_text(content)
        outcome = validate(world.write(), champion_uri=str(tmp_path / "registry"))
        assert (outcome.verdict, outcome.report["drift"]) == ("valid", {})
        assert "Drift against a champion was not measured: " in outcome.page_path.read_text()
