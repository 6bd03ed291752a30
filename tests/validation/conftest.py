"""A small clean world of tables, and a way to validate mutations of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conversion_retrieval.config import load_config
from conversion_retrieval.validation.stage import validate_data

START = datetime(2026, 1, 5, tzinfo=UTC)


def clean_events(days: int = 5, users: int = 20) -> pd.DataFrame:
    """Each user each day: an impression, a click on it, and a checkout reported an hour later."""
    rows = []
    for day in range(days):
        for user in range(users):
            when = START + timedelta(days=day, minutes=user)
            item = f"i{(user + day) % 10}"
            base = {"user_id": f"u{user:02d}", "item_id": item, "surface": ("home_feed", "search")[user % 2]}
            for step, kind in enumerate(("impression", "click", "checkout")):
                at = when + timedelta(minutes=step)
                rows.append(
                    base
                    | {
                        "event_id": f"e{len(rows):05d}",
                        "event_type": kind,
                        "event_time": at,
                        "click_duration_seconds": 10.0 if kind == "click" else None,
                        "reported_time": at + timedelta(hours=1) if kind == "checkout" else None,
                        "value": 9.5 if kind == "checkout" else None,
                    }
                )
    events = pd.DataFrame(rows)
    for name in ("event_time", "reported_time"):
        events[name] = pd.to_datetime(events[name], utc=True)
    return events


@dataclass
class World:
    """Tables to mutate before ``write``; ``events`` goes into ``parts`` part files."""

    directory: Path
    events: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame | None
    parts: int = 3

    def write(self) -> Path:
        (self.directory / "events").mkdir(parents=True, exist_ok=True)
        size = -(-len(self.events) // self.parts)
        for part in range(self.parts):
            rows = self.events.iloc[part * size : (part + 1) * size]
            pq.write_table(_table(rows), self.directory / "events" / f"part-{part}.parquet")
        pq.write_table(pa.Table.from_pandas(self.items, preserve_index=False), self.directory / "items.parquet")
        if self.users is not None:
            pq.write_table(pa.Table.from_pandas(self.users, preserve_index=False), self.directory / "users.parquet")
        return self.directory


def _table(rows: pd.DataFrame) -> pa.Table:
    kinds = {"event_time": pa.timestamp("us", "UTC"), "reported_time": pa.timestamp("us", "UTC"), "value": pa.float64()}
    kinds["click_duration_seconds"] = pa.float64()
    # Column by column from Arrow values: pandas would turn NaN, a bad number, into null, a missing one.
    return pa.table({name: pa.array(list(rows[name]), kinds.get(name), from_pandas=_nulls(name)) for name in rows})


def _nulls(name: str) -> bool:
    return name not in ("click_duration_seconds", "context_embedding")


@dataclass
class Outcome:
    """What the stage left behind."""

    verdict: str
    snapshot_dir: Path
    report_dir: Path
    page_path: Path

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.report_dir / "validation.json").read_text())

    def check(self, name: str, table: str = "events", column: str | None = None) -> dict[str, Any]:
        (found,) = [
            entry
            for entry in self.report["expectations"]
            if entry["name"] == name and entry["table"] == table and column in (None, entry["column"])
        ]
        return found

    @property
    def events(self) -> pd.DataFrame:
        return pq.read_table(self.snapshot_dir / "events").to_pandas()

    @property
    def snapshot_bytes(self) -> dict[str, bytes]:
        paths = (p for p in self.snapshot_dir.rglob("*") if p.is_file() and p.name != "manifest.json")
        return {p.relative_to(self.snapshot_dir).as_posix(): p.read_bytes() for p in paths}


@pytest.fixture
def world(tmp_path: Path) -> World:
    events = clean_events()
    events["click_duration_seconds"] = [10.0 if kind == "click" else None for kind in events["event_type"]]
    events["click_duration_seconds"] = (
        events["click_duration_seconds"].astype(object).where(events["event_type"] == "click", None)
    )
    items = pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(10)],
            "advertiser_id": [f"a{n % 3}" for n in range(10)],
            "price": [float(n + 1) for n in range(10)],
        }
    )
    users = pd.DataFrame({"user_id": [f"u{n:02d}" for n in range(20)], "age": list(range(20))})
    return World(directory=tmp_path / "data", events=events, items=items, users=users)


@pytest.fixture
def validate(tmp_path: Path) -> Callable[..., Outcome]:
    """Run the stage on a directory; keyword ``overrides`` are ``section.key=value``."""

    def run(data_uri: Path | str, *overrides: str, champion_uri: str = "", name: str = "run") -> Outcome:
        out = tmp_path / name
        outcome = Outcome("", out / "snapshot", out / "report", out / "page.html")
        outcome.verdict = validate_data(
            data_uri=str(data_uri),
            snapshot_dir=outcome.snapshot_dir,
            report_dir=outcome.report_dir,
            page_path=outcome.page_path,
            config=load_config(None, overrides),
            champion_uri=champion_uri,
        )
        return outcome

    return run
