"""User columns in requests. Oracle: the tower inputs of the same values in a users table; counts by hand."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.spec import Column
from conversion_retrieval.serving.calls import Answered, Answerer
from conversion_retrieval.serving.commands import read_user_events
from conversion_retrieval.serving.protocol import parse_requests, requests_of
from conversion_retrieval.serving.requests import UserEvents
from conversion_retrieval.serving.retriever import Retriever
from conversion_retrieval.serving.user_columns import overlay
from conversion_retrieval.tables import read_tables
from tests.serving.conftest import Run

COLUMNS = (
    Column(name="band", kind="categorical", size=3),
    Column(name="age", kind="numeric"),
    Column(name="taste", kind="embedding", dim=2),
)


@pytest.fixture(scope="module")
def events(run: Run) -> UserEvents:
    return read_user_events(read_tables(run.data_dir))


def users_of(retriever: Retriever, known: UserEvents | None, *documents: dict):
    """The tower's user inputs of requests."""
    columns = retriever.model.spec.users.columns
    requests, events = requests_of(parse_requests([json.dumps(d) for d in documents]), known, user_columns=columns)
    return retriever.features.encode(requests, events, np.arange(len(requests))).arrays.users


def raw_columns(events: UserEvents, user_id: str, retriever: Retriever) -> dict:
    row = next(row for row in events.users.to_pylist() if row["user_id"] == user_id)
    return {column.name: row[column.name] for column in retriever.model.spec.users.columns}


def test_columns_in_a_request_give_the_inputs_of_the_same_columns_in_the_data(
    retriever: Retriever, events: UserEvents
) -> None:
    first, second = events.user_ids[0], events.user_ids[1]
    given = {"user_id": "stranger", "history": [], "user_columns": raw_columns(events, first, retriever)}
    expected = users_of(retriever, events, {"user_id": first}, {"user_id": second})
    found = users_of(retriever, events, given, {"user_id": second})
    alone = users_of(retriever, None, given)
    for name in ("categorical", "numeric"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6)
        np.testing.assert_allclose(getattr(alone, name)[0], getattr(expected, name)[0], rtol=1e-6)
    assert retriever.model.spec.users.columns


def test_a_given_column_replaces_the_known_value_and_leaves_the_others() -> None:
    known = pa.table({"user_id": ["a", "b"], "band": ["x", "y"], "age": [1, 2], "taste": [[1.0, 2.0], None]})
    found = overlay(known, [{"age": 9}, None], COLUMNS)
    expected = [{"band": "x", "age": 9.0, "taste": [1.0, 2.0]}, {"band": "y", "age": 2.0, "taste": None}]
    assert found.to_pylist() == expected
    assert overlay(known, [None, {}], COLUMNS) is known


@pytest.mark.parametrize(("value", "text"), [(True, "true"), (3, "3"), (3.0, "3"), (2.5, "2.5"), ("Ü", "Ü")])
def test_categories_are_read_as_vocabularies_hold_them(value: object, text: str) -> None:
    assert overlay(None, [{"band": value}], COLUMNS)["band"].to_pylist() == [text]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"agee": 1}, "request 1: expected user columns out of band, age, taste; found 'agee'"),
        ({"age": "old"}, "request 1: expected a number in user column 'age', found 'old'"),
        ({"age": True}, "expected a number"),
        ({"band": [1.0]}, "expected a text"),
        ({"taste": 1.0}, "expected a list of numbers"),
        ({"taste": [1.0]}, "expected 2 numbers in user column 'taste', found 1"),
    ],
)
def test_wrong_columns_are_refused_by_name(given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        overlay(None, [None, given], COLUMNS)


def test_a_wrong_call_spoils_no_other_in_its_batch(retriever: Retriever) -> None:
    def text(user_columns: dict | None = None) -> str:
        return json.dumps({"user_id": "u", "time": "2026-01-02T00:00:00Z", "k": 4, "user_columns": user_columns})

    answerer = Answerer(retriever=retriever, known=None)
    good, unreadable, wrong, two = answerer([[text()], ["{"], [text({"nonsense": 1})], [text(), text()]])
    (expected,) = answerer([[text()]])
    assert isinstance(good, Answered)
    assert good.candidates[0].item_ids == expected.candidates[0].item_ids
    assert isinstance(two, Answered)
    assert [c.item_ids for c in two.candidates] == [expected.candidates[0].item_ids] * 2
    assert isinstance(unreadable, UserError)
    assert isinstance(wrong, UserError)
    assert "nonsense" in str(wrong)


def test_missing_shares_count_what_requests_lack_beside_what_training_lacked(
    retriever: Retriever, events: UserEvents
) -> None:
    coverage = retriever.coverage()
    assert all(s.serving is None for s in coverage.shares() if s.feature.startswith("users."))
    name = retriever.model.spec.users.columns[0].name
    known = raw_columns(events, events.user_ids[0], retriever)
    for given in (known, {**known, name: None}, {**known, name: None}, None):
        queries = users_of(retriever, None, {"user_id": "u", "history": [], "user_columns": given})
        arrays = dataclasses.replace(some_queries(retriever), users=queries)
        coverage.observe(arrays)
    shares = {s.feature: s for s in coverage.shares()}
    assert shares[f"users.{name}"].serving == pytest.approx(3 / 4)
    others = [shares[f"users.{c.name}"].serving for c in retriever.model.spec.users.columns[1:]]
    assert others == pytest.approx([1 / 4] * len(others))
    recorded = retriever.features.catalogue.metadata["coverage"]
    assert {n: shares[f"queries.{n}"].serving for n in recorded["queries"]["train"]} == dict.fromkeys(
        ("surface", "context_item", "context_embedding", "history"), 1.0
    )
    assert shares["queries.history"].training == recorded["queries"]["train"]["history"]
    assert shares[f"users.{name}"].training == recorded["users"]["train"][name]
    assert {s.removeprefix("items.") for s in shares if s.startswith("items.")} == set(recorded["items"]["serve"])


def some_queries(retriever: Retriever):
    requests, events = requests_of(parse_requests([json.dumps({"user_id": "u", "history": []})]), None)
    return retriever.features.encode(requests, events, np.zeros(1, np.int64)).arrays
