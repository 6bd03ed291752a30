"""Users encoded once. Oracle: the same users encoded from their events for each request."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from conversion_retrieval.serving.commands import read_user_events
from conversion_retrieval.serving.known_users import KnownUsers
from conversion_retrieval.serving.requests import Request, UserEvents
from conversion_retrieval.serving.retriever import Retriever
from conversion_retrieval.tables import read_tables
from tests.serving.conftest import Run


@pytest.fixture(scope="module")
def events(run: Run) -> UserEvents:
    return read_user_events(read_tables(run.data_dir))


def middle(events: UserEvents) -> int:
    """A time with events before and after it."""
    return int(np.median(events.table["event_time"].cast(pa.int64()).to_numpy()))


def test_a_known_users_part_gives_the_inputs_of_that_users_events(retriever: Retriever, events: UserEvents) -> None:
    ids = [*events.user_ids[::3], "stranger", events.user_ids[0], "another stranger"]
    requests = [Request(user_id=user_id, time=middle(events), surface="search") for user_id in ids]
    user = np.arange(len(ids))
    chosen = events.of_users(ids)
    known = KnownUsers.of(events, retriever.features)
    expected = retriever.features.encode(requests, chosen, user)
    found = retriever.features.encode_past(requests, known.past_of(ids), known.columns_of(ids), user)
    for name in (field.name for field in dataclasses.fields(expected.arrays) if field.name != "users"):
        np.testing.assert_array_equal(getattr(found.arrays, name), getattr(expected.arrays, name), err_msg=name)
    for name in ("categorical", "numeric"):
        np.testing.assert_array_equal(getattr(found.arrays.users, name), getattr(expected.arrays.users, name))
    for query in user:
        np.testing.assert_array_equal(found.history_items(query), expected.history_items(query))
    assert found.end.max() > 0


def test_rows_of_the_users_table_are_found_by_id_and_null_where_there_is_none() -> None:
    users = pa.table({"user_id": ["b", "a", "b"], "age": [2, 1, 3]})  # of a user's several rows the first
    table = pa.table({"user_id": ["a"], "event_time": [1], "event_id": ["e"]})
    known = UserEvents.of_table(table, users)
    assert known.user_rows(["a", "x", "b", "a"])["age"].to_pylist() == [1, None, 2, 1]
    assert UserEvents.of_table(table).user_rows(["a"]) is None
