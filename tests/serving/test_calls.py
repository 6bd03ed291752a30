"""Calls answered together. Oracle: the same calls, each answered alone."""

import itertools
import json

import numpy as np
import pytest

from conversion_retrieval.errors import UserError
from conversion_retrieval.serving.calls import Answered, Answerer
from conversion_retrieval.serving.commands import read_user_events
from conversion_retrieval.serving.requests import UserEvents
from conversion_retrieval.serving.retriever import Retriever
from conversion_retrieval.tables import read_tables
from tests.serving.conftest import Run


@pytest.fixture(scope="module")
def events(run: Run) -> UserEvents:
    return read_user_events(read_tables(run.data_dir))


def mixed_calls(retriever: Retriever, events: UserEvents) -> list[list[str]]:
    """Known and unknown users, given and missing histories, all options, one to three requests a call."""
    items = retriever.index.item_ids.to_pylist()
    options = itertools.product((1, 7, 100), (True, False), (0, 2), (None, "search"))
    documents = []
    for number, (k, exclude_seen, advertiser_cap, surface) in enumerate(options):
        document = {"user_id": events.user_ids[number % 20], "time": "2030-01-01T00:00:00Z", "k": k}
        document |= {"exclude_seen": exclude_seen, "advertiser_cap": advertiser_cap, "surface": surface}
        if number % 3 == 0:
            event = {"event_type": "click", "event_time": "2026-01-01T00:00:00Z"}
            document["history"] = [{"item_id": item, **event} for item in items[number : number + number % 5]]
        if number % 5 == 0:
            document["user_id"] = "stranger"
        documents.append(json.dumps(document))
    ends = list(itertools.accumulate(1 + number % 3 for number in range(len(documents) // 2)))
    return [documents[start:end] for start, end in itertools.pairwise([0, *ends]) if documents[start:end]]


def test_company_in_a_batch_changes_no_answer(retriever: Retriever, events: UserEvents) -> None:
    answerer = Answerer(retriever=retriever, known=events)
    calls = mixed_calls(retriever, events)
    together = answerer(calls)
    assert len(calls) >= 10
    for call, found in zip(calls, together, strict=True):
        (alone,) = answerer([call])
        assert isinstance(found, Answered)
        assert isinstance(alone, Answered)
        for one, other in zip(found.candidates, alone.candidates, strict=True):
            assert one.item_ids == other.item_ids
            assert one.advertiser_ids == other.advertiser_ids
            assert one.reasons == other.reasons
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_an_error_tells_the_number_of_the_request_in_its_own_call(retriever: Retriever, events: UserEvents) -> None:
    answerer = Answerer(retriever=retriever, known=events)
    good = json.dumps({"user_id": events.user_ids[0]})
    own = json.dumps({"user_id": "u", "history": []})
    bad = json.dumps({"user_id": events.user_ids[1], "user_columns": {"nonsense": 1}})
    for before in ([good, own], [good, good], [own, own]):
        *others, wrong = answerer([[good], [own], [*before, bad]])
        assert all(isinstance(answer, Answered) for answer in others)
        assert isinstance(wrong, UserError)
        assert "request 2: " in str(wrong)


def test_an_answered_request_is_observed_once_whatever_is_wrong_beside_it(
    retriever: Retriever, events: UserEvents
) -> None:
    observed: list[int] = []
    answerer = Answerer(retriever=retriever, known=events, observe=lambda queries: observed.append(len(queries)))
    good = json.dumps({"user_id": events.user_ids[0]})
    bad = json.dumps({"user_id": "u", "history": [], "user_columns": {"nonsense": 1}})
    answers = answerer([[good, good], [good], [good, bad]])
    assert [isinstance(answer, Answered) for answer in answers] == [True, True, False]
    assert sum(observed) == 3
