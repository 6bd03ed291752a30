"""Rows that training never saw. Oracle: the answers of the same log without them, and validation's own rules."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from conversion_retrieval.config import parse_config
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.schema import TIMESTAMP
from conversion_retrieval.serving.commands import read_user_events, retrieve_requests, retrieve_user
from conversion_retrieval.serving.event_rules import REQUIRED, latest_time, usable
from conversion_retrieval.serving.known_users import KnownUsers
from conversion_retrieval.serving.retriever import Retriever
from conversion_retrieval.tables import read_tables
from conversion_retrieval.validation.cleaning import clean, open_database
from tests.serving.conftest import Run

FAR = datetime(9999, 12, 31, tzinfo=UTC)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    **{f"null_{name}": ({name: None}, f"without {name}") for name in REQUIRED},
    "unknown_event_type": ({"event_type": "buy"}, "of an unknown event_type"),
    "unreadable_event_time": ({"event_time": -(10**17)}, "with event_time before year 1"),
    "future_dated": ({"event_time": FAR}, "with event_time after "),
    "orphan_item": ({"item_id": "no such item"}, "on an item that the catalogue lacks"),
    "reported": ({"reported_time": FAR}, "with reported_time after "),
}
Copy = Callable[..., Path]


@pytest.fixture
def world(run: Run, tmp_path: Path) -> Copy:
    """A copy of the world with other rows at the end of its log."""
    tables = read_tables(run.data_dir)
    assert tables.users is not None

    def copy(name: str, rows: pa.Table) -> Path:
        path = tmp_path / name
        path.mkdir()
        pq.write_table(pa.concat_tables([tables.events.read(), rows]), path / "events.parquet")
        pq.write_table(tables.items.read(), path / "items.parquet")
        pq.write_table(tables.users.read(), path / "users.parquet")
        return path

    return copy


@pytest.fixture
def newest(run: Run) -> dict[str, Any]:
    """One of the newest events, under an event id of its own, a moment later."""
    events = read_tables(run.data_dir).events.read()
    row = events.take(pc.sort_indices(events, [("event_time", "descending")])[:1]).to_pylist()[0]
    return {**row, "event_id": "added", "event_time": row["event_time"] + timedelta(hours=1)}


def table_of(run: Run, *rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), read_tables(run.data_dir).events.schema)


def items_of(run: Run) -> frozenset[str]:
    return frozenset(read_tables(run.data_dir).items.read()["item_id"].to_pylist())


@pytest.mark.parametrize(("changes", "told"), BAD.values(), ids=BAD)
def test_a_row_that_training_never_saw_changes_no_answer_and_is_told(
    registry: Registry,
    retriever: Retriever,
    run: Run,
    world: Copy,
    newest: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    told: str,
) -> None:
    user_id, bad = newest["user_id"], {**newest, **changes}
    data = str(world("bad", table_of(run, bad)))
    expected = retrieve_user(registry.uri, str(run.data_dir), user_id, k=5)
    assert "left out" not in capsys.readouterr().err
    assert retrieve_user(registry.uri, data, user_id, k=5) == expected
    assert ("events: left out 1 row: 1 " + told in capsys.readouterr().err) == (bad["user_id"] is not None)
    requests = Path(data, "requests.parquet")
    pq.write_table(pa.table({"user_id": [user_id]}), requests)
    answers = pq.read_table(retrieve_requests(registry.uri, data, requests, None, k=5))
    assert tuple(answers["item_id"].to_pylist()) == expected.item_ids
    capsys.readouterr()
    served = read_user_events(read_tables(data))
    assert "events: left out 1 row: 1 " + told in capsys.readouterr().err
    assert served.table.equals(read_user_events(read_tables(run.data_dir)).table)
    assert len(KnownUsers.of(served, retriever.features).past) == served.table.num_rows


def test_what_is_left_out_is_what_validation_drops(
    run: Run, world: Copy, newest: dict[str, Any], tmp_path: Path
) -> None:
    latest = datetime.now(UTC) + timedelta(days=1)
    rules = {name: changes for name, (changes, _) in BAD.items() if name != "reported"}
    last = {"event_id": "on time", "event_time": latest}
    rows = [{**newest, "event_id": name, **changes} for name, changes in rules.items()]
    tables = read_tables(world("bad", table_of(run, *rows, {**newest, **last})))
    with open_database(tmp_path, memory_mb=512) as database:
        cleaned = clean(database, tables, latest=latest)
        dropped = {
            row["drop_rule"] for row in cleaned.rows("SELECT DISTINCT drop_rule FROM events") if row["drop_rule"]
        }
        kept = {row["event_id"] for row in cleaned.rows("SELECT event_id FROM kept")}
    assert dropped == set(rules)
    microseconds = pa.scalar(latest, TIMESTAMP).cast(pa.int64()).as_py()
    found = pa.Table.from_batches(usable((part.batch for part in tables.events.batches()), microseconds, items_of(run)))
    assert "on time" in kept
    assert set(found["event_id"].to_pylist()) == kept


@pytest.mark.parametrize("reverse", [False, True])
def test_of_rows_with_one_id_the_one_that_validation_keeps_is_taken_whatever_their_order(
    run: Run, newest: dict[str, Any], tmp_path: Path, reverse: bool
) -> None:
    tables = read_tables(run.data_dir)
    user = tables.users.read().filter(pc.equal(tables.users.read()["user_id"], newest["user_id"])).to_pylist()[0]
    column = next(name for name, value in user.items() if name != "user_id" and isinstance(value, str))
    repeated = {"events": [], "users": [{**user, column: "first"}, {**user, column: "zeroth"}], "items": []}
    repeated["events"] = [{**newest, "item_id": item_id} for item_id in sorted(items_of(run))[:5]]
    for name, rows in repeated.items():
        table = getattr(tables, name).read()
        added = pa.Table.from_pylist(rows[::-1] if reverse else rows, table.schema)
        pq.write_table(pa.concat_tables([table, added] if reverse else [added, table]), tmp_path / f"{name}.parquet")
    repeating = read_tables(tmp_path)
    with open_database(tmp_path, memory_mb=512) as database:
        cleaned = clean(database, repeating, latest=datetime.now(UTC))
        (event,) = cleaned.rows("SELECT item_id FROM kept WHERE event_id = 'added'")
        (kept,) = cleaned.rows(f"SELECT {column} FROM users WHERE user_id = '{newest['user_id']}'")
    served = read_user_events(repeating, [newest["user_id"]])
    assert served.table.filter(pc.equal(served.table["event_id"], "added"))["item_id"].to_pylist() == [event["item_id"]]
    assert served.user_rows([newest["user_id"]])[column].to_pylist() == [kept[column]]


def test_a_row_counts_once_under_the_first_of_its_faults(
    run: Run, newest: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {**newest, "event_type": None, "event_time": FAR},
        {**newest, "user_id": None, "event_type": "buy"},
        {**newest, "event_type": "buy", "event_time": None},
        {**newest, "event_type": "buy", "event_time": FAR},
        {**newest, "event_type": "buy"},
        newest,
    ]
    kept = pa.Table.from_batches(usable(table_of(run, *rows).to_batches(), latest_time(run.config), items_of(run)))
    assert kept.to_pylist() == [newest]
    assert capsys.readouterr().err == (
        "events: left out 5 rows: 1 without user_id, 1 without event_type, 1 without event_time, "
        "2 of an unknown event_type\n"
    )


def test_the_tolerance_is_the_models_and_its_as_of_may_lie_ahead_of_the_clock() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    day = 86_400_000_000
    start = int(now.timestamp()) * 1_000_000
    assert latest_time(parse_config({}), now) == start + day
    assert latest_time(parse_config({"validation": {"max_future_days": 2.5}}), now) == start + 5 * day // 2
    assert latest_time(parse_config({"split": {"as_of": "2025-01-01"}}), now) == start + day
    assert latest_time(parse_config({"split": {"as_of": "2026-01-11"}}), now) == start + 11 * day


def test_a_model_with_a_wide_tolerance_sees_what_it_was_trained_on(
    run: Run, world: Copy, newest: dict[str, Any]
) -> None:
    soon = {**newest, "event_time": datetime.now(UTC) + timedelta(days=3)}
    tables = read_tables(world("soon", table_of(run, soon)))
    limits = replace(run.config.validation, max_future_days=7.0)
    for config, found in ((run.config, 0), (replace(run.config, validation=limits), 1)):
        events = read_user_events(tables, [soon["user_id"]], config=config)
        assert events.table["event_id"].to_pylist().count("added") == found
