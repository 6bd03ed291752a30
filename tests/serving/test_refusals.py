"""What a caller is told about a wrong request: the field, what was expected, what was found. Oracles: texts by hand."""

import itertools
import json
import random
import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from conversion_retrieval.errors import UserError
from conversion_retrieval.serving.guard import MAX_BODY_BYTES, MAX_NESTING, Refused, check_inference
from conversion_retrieval.serving.protocol import INPUT, MAX_BATCH, parse_requests

EVENT = {"item_id": "i", "event_type": "click", "event_time": "2026-01-01T00:00:00Z"}


def reason(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_requests(['{"user_id": "u"}', text])
    return str(caught.value)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"user": "u"}, "request 1: unknown key user; did you mean user_id?"),
        ({"k": 5}, "request 1: user_id: expected a value, found none"),
        ({"user_id": "u", "k": 0}, "request 1: k: Input should be greater than or equal to 1, found 0"),
        (
            {"user_id": "u", "history": [EVENT, {**EVENT, "item": "i"}]},
            "request 1: unknown key history.1.item; did you mean history.1.item_id?",
        ),
        (
            {"user_id": "u", "history": [{**EVENT, "event_type": "clik"}]},
            "request 1: history.0.event_type: Input should be 'impression', 'click', 'save', 'add_to_cart' or "
            "'checkout', found \"clik\"",
        ),
        (
            {"user_id": "u", "user_columns": {"age": {"years": 3}}},
            "request 1: user_columns.age: expected a text of at most 1024 characters, a finite number, true, false, a "
            'list of at most 4096 numbers or null, found {"years": 3}',
        ),
        (
            {"user_id": "u", "user_columns": {"": 1}},
            'request 1: user_columns: expected names of 1 to 256 characters, found ""',
        ),
        (["u"], 'request 1: expected a JSON object, found ["u"]'),
    ],
)
def test_a_wrong_document_is_told_by_field_and_what_was_found(document: Any, expected: str) -> None:
    assert reason(json.dumps(document)) == expected


TIMES = (1767614400, 1767614400000, 1.5, True, "1767614400", "-5", "+1767614400.5", "", "today", [])


@pytest.mark.parametrize("value", TIMES, ids=json.dumps)
@pytest.mark.parametrize("field", ["time", "history.0.event_time", "history.0.reported_time"])
def test_a_time_that_does_not_name_its_moment_is_refused(field: str, value: Any) -> None:
    name = field.rpartition(".")[2]
    document = {name: value} if field == name else {"history": [{**EVENT, name: value}]}
    assert reason(json.dumps({"user_id": "u", **document})) == (
        f"request 1: {field}: expected a text in ISO 8601 with a time zone, such as 2026-01-05T12:00:00Z, "
        f"found {json.dumps(value)}"
    )


@pytest.mark.parametrize("text", ["2026-01-05T12:00:00", "2026-01-05"])
def test_a_time_without_a_zone_is_refused(text: str) -> None:
    expected = r"request 1: expected times with a time zone, found 2026-01-05T\d\d:00:00"
    assert re.fullmatch(expected, reason(json.dumps({"user_id": "u", "time": text})))
    assert re.fullmatch(expected, reason(json.dumps({"user_id": "u", "history": [{**EVENT, "event_time": text}]})))


@pytest.mark.parametrize("text", ["2026-01-05T12:00:00Z", "2026-01-05 13:00+01:00", "2026-01-05T11:30:00.000-00:30"])
def test_a_text_with_a_zone_is_that_moment(text: str) -> None:
    event = {**EVENT, "event_time": text, "reported_time": text}
    (document,) = parse_requests([json.dumps({"user_id": "u", "time": text, "history": [event]})])
    assert document.history is not None
    noon = datetime(2026, 1, 5, 12, tzinfo=UTC)
    assert [document.time, document.history[0].event_time, document.history[0].reported_time] == [noon] * 3


def test_a_text_that_is_no_json_is_told_where_it_breaks() -> None:
    assert reason('{"user_id"') == (
        "request 1: expected a JSON object, found: Invalid JSON: EOF while parsing an object at line 1 column 10"
    )


@pytest.mark.parametrize("document", [{"x" * 9000: 1}, {"user_id": "u" * 9000}, {"user_id": "u", "k": [*range(9000)]}])
def test_an_answer_repeats_little_of_what_was_sent(document: dict[str, Any]) -> None:
    assert len(reason(json.dumps(document))) < 400


def inference(**changes: Any) -> dict[str, Any]:
    tensor = {"name": INPUT, "datatype": "BYTES", "shape": [1], "data": ['{"user_id": "u"}'], **changes}
    return {"inputs": [{name: value for name, value in tensor.items() if value is not ...}]}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([1], "expected an object with inputs, found [1]"),
        ({"instances": []}, 'expected an object with inputs, found ["instances"]'),
        ({**inference(), "id": 7}, "expected an id of at most 256 characters, found 7"),
        ({**inference(), "parameters": {"k": 5}}, 'expected no parameters: every output is answered, found {"k": 5}'),
        ({"inputs": []}, "expected inputs with one tensor, found []"),
        (
            inference(datatype=...),
            'expected name, datatype, shape and data in the input, found ["name", "shape", "data"]',
        ),
        (
            inference(datatype="FP32"),
            'expected a BYTES tensor called requests, found {"name": "requests", "datatype": "FP32"}',
        ),
        (inference(data=["{}"] * (MAX_BATCH + 1)), f"expected 1 to {MAX_BATCH} texts in data, found {MAX_BATCH + 1}"),
        (inference(data=[{"user_id": "u"}]), 'expected texts in data, each a JSON object, found {"user_id": "u"}'),
        (inference(data=[None]), "expected texts in data, each a JSON object, found null"),
        (inference(shape=[2]), "expected shape [1], found [2]"),
    ],
)
def test_a_wrong_inference_body_is_told_what_was_found(document: Any, expected: str) -> None:
    with pytest.raises(Refused) as caught:
        check_inference(json.dumps(document).encode())
    assert str(caught.value) == expected


def test_a_good_inference_body_passes() -> None:
    check_inference(json.dumps(inference()).encode())


def deepest(body: bytes) -> int:
    """Oracle: brackets counted one by one."""
    depths = itertools.accumulate((byte in b"[{") - (byte in b"]}") for byte in body)
    return max(depths, default=0)


def test_what_is_nested_too_deeply_is_refused_and_nothing_else() -> None:
    rng = random.Random(0)
    bodies = [bytes(rng.choices(b"[{]}x\xff", weights=(4, 4, 3, 3, 1, 1), k=rng.randrange(400))) for _ in range(300)]
    refused = []
    for body in bodies:
        with pytest.raises(Refused) as caught:  # none of them is an inference request
            check_inference(body)
        refused.append("levels of nesting" in str(caught.value))
    assert refused == [deepest(body) > MAX_NESTING for body in bodies]
    assert 0 < sum(refused) < len(bodies)


def test_brackets_of_a_large_body_are_not_counted_one_by_one() -> None:
    body = b'"' + b"[]" * (MAX_BODY_BYTES // 2 - 1) + b'"'
    start = time.thread_time()
    assert deepest(body) == 1
    one_by_one = time.thread_time() - start
    start = time.thread_time()
    with pytest.raises(Refused):
        check_inference(body)
    assert time.thread_time() - start < one_by_one
