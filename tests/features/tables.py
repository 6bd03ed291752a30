"""Tiny hand-made and random canonical tables, sorted into snapshots as the validation stage leaves them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from conversion_retrieval.contracts import new_artifact
from conversion_retrieval.schema import EVENT_TYPES, EVENTS

EVENTS_SCHEMA = pa.schema([(column.name, column.kind) for column in EVENTS.columns])
MIDNIGHT = pd.Timestamp("2026-01-01", tz="UTC")


def event(user, item, kind, day, *, reported=None, surface="home_feed", **more):
    """One event row; ``day`` counts days (with fractions) from 2026-01-01."""
    return {
        "user_id": user,
        "item_id": item,
        "event_type": kind,
        "event_time": MIDNIGHT + pd.Timedelta(days=day),
        "surface": surface,
        "reported_time": None if reported is None else MIDNIGHT + pd.Timedelta(days=reported),
        **more,
    }


def events_table(rows):
    """Event rows (dicts) as a canonical table; missing event ids are numbered in order."""
    filled = [{"event_id": f"e{number:05d}", **row} for number, row in enumerate(rows)]
    columns = {f.name: [row.get(f.name) for row in filled] for f in EVENTS_SCHEMA}
    return pa.table({f.name: pa.array(columns[f.name], f.type) for f in EVENTS_SCHEMA}, schema=EVENTS_SCHEMA)


def items_table(count=6, advertisers=3, **more):
    """Items i0, i1, ... of advertisers a0, a1, ... in turn, with a category and a price."""
    rows = range(count)
    return pa.table(
        {
            "item_id": [f"i{row}" for row in rows],
            "advertiser_id": [f"a{row % advertisers}" for row in rows],
            "category": [f"c{row % 2}" for row in rows],
            "price": [float(10 + row) for row in rows],
            **more,
        }
    )


def write_snapshot(directory: Path, rows, items=None, users=None, *, parts=1, row_group_size=None):
    """Sort events as the contract says and write a snapshot artifact; returns its directory."""
    events = rows if isinstance(rows, pa.Table) else events_table(rows)
    order = [("user_id", "ascending"), ("event_time", "ascending"), ("event_id", "ascending")]
    events = events.sort_by(order)
    items = items_table() if items is None else items
    with new_artifact(directory, kind="snapshot") as working_dir:
        (working_dir / "events").mkdir()
        for number, part in enumerate(_at_user_boundaries(events, parts)):
            path = working_dir / "events" / f"part-{number:05d}.parquet"
            pq.write_table(part, path, row_group_size=row_group_size)
        pq.write_table(items.sort_by("item_id"), working_dir / "items.parquet")
        if users is not None:
            pq.write_table(users.sort_by("user_id"), working_dir / "users.parquet")
    return directory


def _at_user_boundaries(events, parts):
    user = events["user_id"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    cuts = starts[np.linspace(0, len(starts), parts, endpoint=False).astype(int)] if len(starts) else [0]
    cuts = sorted(set(cuts))
    return [events.slice(low, high - low) for low, high in zip(cuts, [*cuts[1:], len(user)], strict=True)]


def random_rows(seed, *, users=5, items=6, count=120, days=30.0, ticks_per_day=4):
    """Random events on a coarse clock, so that ties in time are common; some conversions are reported late."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        kind = str(random.choice(EVENT_TYPES, p=[0.45, 0.25, 0.08, 0.12, 0.1]))
        day = int(random.integers(days * ticks_per_day)) / ticks_per_day
        conversion = kind in ("add_to_cart", "checkout")
        surface = None if conversion else str(random.choice(["home_feed", "search", "related_items"]))
        late = conversion and random.random() < 0.5
        searched = surface == "search" and random.random() < 0.7
        rows.append(
            event(
                f"u{random.integers(users)}",
                f"i{random.integers(items)}",
                kind,
                day,
                surface=surface,
                reported=day + int(random.integers(1, 16)) / 2 if late else None,
                click_duration_seconds=float(random.integers(0, 60))
                if kind == "click" and random.random() < 0.8
                else None,
                context_item_id=f"i{random.integers(items)}" if surface == "related_items" else None,
                context_embedding=[float(random.integers(2)), 1.0] if searched else None,
                value=float(random.integers(1, 50)) if conversion else None,
            )
        )
    return rows
