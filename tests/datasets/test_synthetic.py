"""The generated log against the rules of the world that made it."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from conversion_retrieval.datasets import responses, synthetic
from conversion_retrieval.datasets.config import SyntheticConfig
from conversion_retrieval.datasets.synthetic import generate
from conversion_retrieval.datasets.truth import TrueWorld
from conversion_retrieval.errors import UserError
from conversion_retrieval.schema import DEFAULT_SURFACES, TABLES
from tests.worlds import TINY, tiny_world


@pytest.fixture(scope="module")
def world_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world") / "data")


@pytest.fixture(scope="module")
def events(world_dir: Path) -> pd.DataFrame:
    return read_events(world_dir)


def read_events(data_dir: Path) -> pd.DataFrame:
    return pd.read_parquet(data_dir / "events").set_index("event_id", drop=False)


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def varied(**changes: object) -> SyntheticConfig:
    return dataclasses.replace(TINY, **changes)


def test_equal_configurations_give_equal_bytes_in_every_file(world_dir: Path, tmp_path: Path) -> None:
    assert contents(tiny_world(tmp_path / "again")) == contents(world_dir)


def test_another_seed_gives_other_events(events: pd.DataFrame, tmp_path: Path) -> None:
    other = read_events(tiny_world(tmp_path / "other", varied(seed=TINY.seed + 1)))
    assert not other["event_time"].isin(events["event_time"]).any()


def test_tables_have_exactly_the_canonical_columns_and_types(world_dir: Path) -> None:
    for table in TABLES:
        path = next((world_dir / "events").iterdir()) if table.name == "events" else world_dir / f"{table.name}.parquet"
        schema = pq.read_schema(path)
        assert [schema.field(column.name).type for column in table.columns] == [column.kind for column in table.columns]
        assert table.extra_columns or len(schema) == len(table.columns)


def test_keys_are_unique_and_events_name_only_known_items_and_users(world_dir: Path, events: pd.DataFrame) -> None:
    items, users = pd.read_parquet(world_dir / "items.parquet"), pd.read_parquet(world_dir / "users.parquet")
    assert events.index.is_unique
    assert items["item_id"].is_monotonic_increasing
    assert items["item_id"].is_unique
    assert events["item_id"].isin(items["item_id"]).all()
    assert events["context_item_id"].dropna().isin(items["item_id"]).all()
    assert events["user_id"].isin(users["user_id"]).all()


def test_every_surface_carries_its_context_and_no_other(events: pd.DataFrame) -> None:
    onsite = events[events["event_type"].isin(["impression", "click", "save"])]
    assert set(onsite["surface"]) == set(DEFAULT_SURFACES)
    assert (onsite["context_item_id"].notna() == (onsite["surface"] == "related_items")).all()
    assert (onsite["context_embedding"].notna() == (onsite["surface"] == "search")).all()
    assert onsite["context_embedding"].dropna().map(len).eq(TINY.embedding_dim).all()


def test_conversions_come_without_surface_and_context(events: pd.DataFrame) -> None:
    conversions = events[events["event_type"].isin(["add_to_cart", "checkout"])]
    assert len(conversions) > 100
    assert conversions[["surface", "context_item_id", "context_embedding"]].isna().all(axis=None)


def test_conversions_are_reported_after_they_happen_and_before_the_log_ends(events: pd.DataFrame) -> None:
    conversion = events["event_type"].isin(["add_to_cart", "checkout"])
    end = pd.Timestamp(TINY.end_us, unit="us", tz="UTC")
    assert events.loc[~conversion, "reported_time"].isna().all()
    assert (events.loc[conversion, "reported_time"] > events.loc[conversion, "event_time"]).all()
    assert (events["event_time"] < end).all()
    assert (events.loc[conversion, "reported_time"] < end).all()


def test_conversions_follow_the_impression_that_caused_them(world_dir: Path, events: pd.DataFrame) -> None:
    truth = pd.read_parquet(world_dir / "truth" / "conversions").dropna(subset=["impression_event_id"])
    cause, effect = events.loc[truth["impression_event_id"]], events.loc[truth["event_id"]]
    assert (effect["event_time"].to_numpy() > cause["event_time"].to_numpy()).all()
    assert (effect["user_id"].to_numpy() == cause["user_id"].to_numpy()).all()


def test_a_wrong_report_names_another_item_of_the_same_advertiser(world_dir: Path, events: pd.DataFrame) -> None:
    truth = pd.read_parquet(world_dir / "truth" / "conversions").dropna(subset=["impression_event_id"])
    advertiser = pd.read_parquet(world_dir / "items.parquet").set_index("item_id")["advertiser_id"]
    shown = events.loc[truth["impression_event_id"], "item_id"].to_numpy()
    reported = events.loc[truth["event_id"], "item_id"].to_numpy()
    assert (advertiser[shown].to_numpy() == advertiser[reported].to_numpy()).all()
    assert ((shown != reported) == truth["wrong_item"].to_numpy()).all()
    assert 0 < truth["wrong_item"].mean() < 2 * TINY.wrong_item_rate


def test_about_the_organic_share_of_conversions_has_no_impression(tmp_path: Path) -> None:
    data_dir = tiny_world(tmp_path / "data", varied(organic_share=0.4, requests_per_user_day=1.0))
    caused = pd.read_parquet(data_dir / "truth" / "conversions")["impression_event_id"].notna()
    error = 5 * np.sqrt(0.4 * 0.6 / len(caused))
    assert 1 - caused.mean() == pytest.approx(0.4, abs=error)


def test_click_rate_is_the_configured_one(tmp_path: Path) -> None:
    config = varied(click_rate=0.1, accidental_click_rate=0.05, requests_per_user_day=1.0)
    kinds = read_events(tiny_world(tmp_path / "data", config))["event_type"].value_counts()
    expected = 1 - (1 - 0.1) * (1 - 0.05)
    # The bias is set on a pilot sample of 8,000 impressions with a rate of its own.
    assert kinds["click"] / kinds["impression"] == pytest.approx(expected, rel=0.1)


def test_accidental_clicks_are_short_whatever_the_preference(tmp_path: Path) -> None:
    """Oracle: the mean of an exponential distribution; a rank correlation of independent variables."""
    config = varied(click_rate=0.0, accidental_click_rate=0.3)
    clicks = clicks_with_truth(tiny_world(tmp_path / "data", config))
    count = len(clicks)
    mean = clicks["click_duration_seconds"].mean()
    assert mean == pytest.approx(responses.BOUNCE_SECONDS, abs=5 * responses.BOUNCE_SECONDS / np.sqrt(count))
    correlation = clicks["click_duration_seconds"].corr(clicks["conversion_probability"], method="spearman")
    assert abs(correlation) < 5 / np.sqrt(count)


def test_clicks_that_were_meant_last_longer_on_what_is_wanted(tmp_path: Path) -> None:
    clicks = clicks_with_truth(tiny_world(tmp_path / "data", varied(accidental_click_rate=0.0)))
    correlation = clicks["click_duration_seconds"].corr(clicks["conversion_probability"], method="spearman")
    assert correlation > 0.4
    assert clicks["click_duration_seconds"].median() > 4 * responses.BOUNCE_SECONDS


def clicks_with_truth(data_dir: Path) -> pd.DataFrame:
    events = read_events(data_dir).reset_index(drop=True)
    truth = pd.read_parquet(data_dir / "truth" / "impressions")
    shown = events[events["event_type"] == "impression"].merge(truth, on="event_id")
    clicks = events[events["event_type"] == "click"].sort_values("event_time")
    by = ["user_id", "item_id", "surface"]
    return pd.merge_asof(
        clicks, shown.sort_values("event_time")[["event_time", *by, "conversion_probability"]], on="event_time", by=by
    )


def test_cold_items_appear_only_after_their_launch(world_dir: Path, events: pd.DataFrame) -> None:
    world = TrueWorld.open(world_dir).world
    launch = pd.Series(pd.to_datetime(world.item_launch, unit="us", utc=True))
    items = pd.read_parquet(world_dir / "items.parquet")["item_id"]
    launched = dict(zip(items, launch, strict=True))
    assert (events["event_time"] >= events["item_id"].map(launched)).all()
    cold = items[(launch > launch.min()).to_numpy()]
    assert len(cold) == int(TINY.cold_item_share * TINY.num_items)
    assert events["item_id"].isin(cold).any()


def test_advertisers_are_of_very_different_sizes(world_dir: Path) -> None:
    sizes = pd.read_parquet(world_dir / "items.parquet")["advertiser_id"].value_counts()
    assert len(sizes) == TINY.num_advertisers
    assert sizes.max() > 6 * sizes.median()


def test_users_stay_within_a_part(tmp_path: Path) -> None:
    data_dir = tiny_world(tmp_path / "data", varied(users_per_part=70))
    parts = [set(pd.read_parquet(path)["user_id"]) for path in sorted((data_dir / "events").iterdir())]
    assert len(parts) == -(-TINY.num_users // 70)
    assert sum(len(part) for part in parts) == len(set.union(*parts))


def test_clickbait_is_clicked_more_and_bought_less(world_dir: Path) -> None:
    world = TrueWorld.open(world_dir).world
    assert np.corrcoef(world.item_click_bias, world.item_conversion_bias)[0, 1] < -0.3


def test_conversion_varies_more_between_items_than_between_advertisers(world_dir: Path) -> None:
    world = TrueWorld.open(world_dir).world
    bias = pd.Series(world.item_conversion_bias).groupby(world.item_advertiser)
    assert bias.var().mean() > bias.mean().var()


def test_category_and_price_tier_act_together_not_each_by_itself(world_dir: Path) -> None:
    """Oracle: an additive fit of the items' segment factors to category and tier leaves much of them unexplained."""
    world = TrueWorld.open(world_dir).world
    clusters, first = np.unique(world.item_cluster, return_index=True)
    category, tier = np.divmod(clusters, TINY.num_price_tiers)
    design = np.hstack([np.eye(TINY.num_categories)[category], np.eye(TINY.num_price_tiers)[tier]])
    factors = world.item_factors[first, TINY.taste_dim : TINY.taste_dim + 4]
    fitted = design @ np.linalg.lstsq(design, factors, rcond=None)[0]
    assert ((factors - fitted) ** 2).sum() > 0.3 * ((factors - factors.mean(axis=0)) ** 2).sum()


@pytest.mark.parametrize(
    "config",
    [
        SyntheticConfig(num_users=1, num_items=1, num_days=1),
        SyntheticConfig(num_users=5, num_items=3, num_days=2, requests_per_user_day=0.0),
        varied(click_rate=0.0, accidental_click_rate=0.0, organic_share=1.0),
        varied(cold_item_share=1.0, exploration_share=1.0, num_users=20),
        varied(click_rate=1.0, cart_rate=1.0, num_users=20),
        varied(advertiser_size_exponent=2, num_users=20),  # an integer, too, is a number
    ],
)
def test_extreme_worlds_still_give_readable_tables(config: SyntheticConfig, tmp_path: Path) -> None:
    data_dir = tiny_world(tmp_path / "data", config)
    assert set(read_events(data_dir)["event_type"]) <= {"impression", "click", "save", "add_to_cart", "checkout"}
    assert len(pd.read_parquet(data_dir / "items.parquet")) == config.num_items


def test_a_failure_leaves_the_earlier_data_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = tiny_world(tmp_path / "data", varied(num_users=10))
    before = contents(data_dir)
    monkeypatch.setattr(synthetic, "_users_table", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(data_dir, varied(seed=3))
    assert contents(data_dir) == before
    assert list(tmp_path.iterdir()) == [data_dir]


def test_tables_that_were_not_made_here_are_never_replaced(tmp_path: Path) -> None:
    # The layout in which users bring their own data.
    (tmp_path / "events").mkdir()
    for name in ("events/mine.parquet", "items.parquet"):
        (tmp_path / name).write_bytes(b"of a user")
    with pytest.raises(UserError, match=r"expected nothing or tables imported or generated before at .*, found events"):
        generate(tmp_path, TINY)
    assert (tmp_path / "events" / "mine.parquet").read_bytes() == b"of a user"
    assert (tmp_path / "items.parquet").read_bytes() == b"of a user"


def test_a_directory_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"found thesis\.txt"):
        generate(tmp_path, TINY)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_users": 0}, "num_users must be at least 1, found 0"),
        ({"click_rate": 1.5}, r"click_rate must be in \[0, 1\], found 1\.5"),
        ({"click_rate": float("nan")}, r"click_rate must be in \[0, 1\]"),
        ({"taste_strength": -1.0}, r"taste_strength must be 0 or more"),
        ({"num_advertisers": 5_000}, "num_advertisers must be at most num_items 200, found 5000"),
        ({"embedding_dim": 2}, "embedding_dim must be at least taste_dim 4, found 2"),
        ({"surface_shares": (0.5, 0.5, 0.5)}, "surface_shares must be three shares"),
        ({"start_date": "yesterday"}, "start_date must be a date"),
    ],
)
def test_impossible_worlds_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        varied(**changes)
