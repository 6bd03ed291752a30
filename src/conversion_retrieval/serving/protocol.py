"""Messages inside the Open Inference Protocol (v2): requests as JSON in a BYTES tensor, candidates as tensors.

Input ``requests``, BYTES [B]: each a JSON object, see ``RequestDocument``. Outputs, all [B, K] with K the longest
answer: ``item_ids``, ``advertiser_ids``, ``reasons`` (BYTES; a JSON list of item ids) and ``scores`` (FP32); and
``num_candidates``, INT64 [B]: places beyond it are padding.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import numpy as np
import orjson
import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.spec import Column
from conversion_retrieval.options import hint
from conversion_retrieval.schema import EVENT_TYPES
from conversion_retrieval.serving.requests import EVENT_SCHEMA, MAX_K, Request, UserEvents, inline_events
from conversion_retrieval.serving.retriever import Candidates
from conversion_retrieval.serving.user_columns import overlay

INPUT: Final = "requests"
MAX_BATCH: Final = 64
MAX_HISTORY: Final = 1024
MAX_DIMENSIONS: Final = 4096
MAX_USER_COLUMNS: Final = 256
MAX_TEXT: Final = 1024
SHOWN: Final = 80  # characters of a wrong value that an answer repeats
Id = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Vector = Annotated[list[Finite], Field(max_length=MAX_DIMENSIONS)]
USER_VALUE: Final = (
    f"a text of at most {MAX_TEXT} characters, a finite number, true, false, a list of at most {MAX_DIMENSIONS} "
    "numbers or null"
)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
UserValue = StrictBool | Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)] | Finite | Text | Vector | None


def _dated_text(value: Any) -> str:
    """Only a text that begins with a date: a number, in a text too, could be seconds, milliseconds or anything."""
    if isinstance(value, str) and _DATE.match(value):
        return value
    raise PydanticCustomError("time", "expected a text in ISO 8601 with a time zone, such as 2026-01-05T12:00:00Z")


Time = Annotated[datetime, BeforeValidator(_dated_text)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EventDocument(_Document):
    """An event of the user's history; times are ISO 8601 with a time zone."""

    item_id: Id
    event_type: Literal[EVENT_TYPES]  # type: ignore[valid-type] # the vocabulary is data
    event_time: Time
    surface: Id | None = None
    reported_time: Time | None = None


class RequestDocument(_Document):
    """One query. The user's events come in ``history``, or from the service's own data where it is left out.

    ``user_columns`` are raw values of the users table, in place of those that the service knows.
    """

    user_id: Id
    time: Time | None = None
    surface: Id | None = None
    context_item_id: Id | None = None
    context_embedding: Vector | None = None
    history: Annotated[list[EventDocument], Field(max_length=MAX_HISTORY)] | None = None
    user_columns: Annotated[dict[Id, UserValue], Field(max_length=MAX_USER_COLUMNS)] | None = None
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 100
    exclude_seen: bool = False
    advertiser_cap: Annotated[int, Field(ge=0, le=MAX_K)] = 0


def parse_requests(texts: Sequence[str | bytes]) -> list[RequestDocument]:
    """Check a batch; ``UserError`` names the request, the field, and what was expected of it."""
    if not 1 <= len(texts) <= MAX_BATCH:
        raise UserError(f"expected 1 to {MAX_BATCH} requests in a batch, found {len(texts)}")
    return [_parse(number, text) for number, text in enumerate(texts)]


def _parse(number: int, text: str | bytes) -> RequestDocument:
    try:
        document = RequestDocument.model_validate_json(text)
    except ValidationError as error:
        # A misspelt key is also a missing one, but the nearest match is what helps.
        first = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
        raise UserError(f"request {number}: {_reason(first)}") from None
    for time in (document.time, *(t for e in document.history or () for t in (e.event_time, e.reported_time))):
        if time is not None and time.tzinfo is None:
            raise UserError(f"request {number}: expected times with a time zone, found {time.isoformat()}")
    return document


def _reason(error: ErrorDetails) -> str:
    """The field, what was expected of it and what was found, the latter cut short."""
    kind, loc = error["type"], error["loc"]
    if kind == "json_invalid":
        return f"expected a JSON object, found: {error['msg'][:100]}"
    if not loc:
        return f"expected a JSON object, found {shown(error['input'])}"
    if loc[-1] == "[key]":
        return f"{loc[0]}: expected names of 1 to 256 characters, found {shown(error['input'])}"
    if loc[0] == "user_columns" and len(loc) > 2:  # what follows is the first of the types that a value may have
        return f"user_columns.{str(loc[1])[:SHOWN]}: expected {USER_VALUE}, found {shown(error['input'])}"
    parents, name = [str(part) for part in loc[:-1]], str(loc[-1])
    if kind == "extra_forbidden":
        known = EventDocument if parents else RequestDocument
        prefix = "".join(f"{part}." for part in parents)
        return f"unknown key {prefix}{name[:SHOWN]}; {hint(name[:SHOWN], known.model_fields, prefix=prefix)}"
    field = ".".join([*parents, name])
    if kind == "missing":
        return f"{field}: expected a value, found none"
    return f"{field}: {error['msg']}, found {shown(error['input'])}"


def shown(value: object) -> str:
    """A value as JSON, of at most 80 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def requests_of(
    documents: Sequence[RequestDocument],
    known: UserEvents | None,
    *,
    user_columns: Sequence[Column] = (),
    now: datetime | None = None,
) -> tuple[list[Request], UserEvents]:
    """Requests and the events of each one's user, in the order of the requests.

    Where a document has no history, ``known`` events of that user are used; likewise user columns, of which those in
    ``user_columns`` may be given. ``UserError`` names one that may not, or has a value of another kind.
    """
    events = _events_of(documents, known)
    return plain_requests(documents, now), replace(events, users=users_of(documents, events.users, user_columns))


def plain_requests(documents: Sequence[RequestDocument], now: datetime | None = None) -> list[Request]:
    """What is asked, without the users' events and columns; a document without a time asks as of ``now``."""
    now = now or datetime.now(UTC)
    return [_request(document, now) for document in documents]


def users_of(
    documents: Sequence[RequestDocument], known: pa.Table | None, user_columns: Sequence[Column]
) -> pa.Table | None:
    """A row of user columns for each document: the ``known`` ones [B] with those that it gives in their place."""
    return overlay(known, [document.user_columns for document in documents], user_columns)


def _events_of(documents: Sequence[RequestDocument], known: UserEvents | None) -> UserEvents:
    if known is None:
        return inline_events([_events(document) for document in documents])
    looked_up = known.of_users([document.user_id for document in documents])
    if all(document.history is None for document in documents):
        return looked_up
    return _replace_given(looked_up, documents)


def _replace_given(looked_up: UserEvents, documents: Sequence[RequestDocument]) -> UserEvents:
    given = inline_events([_events(document) for document in documents])
    sources = [(looked_up if document.history is None else given) for document in documents]
    parts = [s.table.slice(s.offsets[i], s.offsets[i + 1] - s.offsets[i]) for i, s in enumerate(sources)]
    table = pa.concat_tables([part.select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA) for part in parts])
    offsets = np.concatenate([[0], np.cumsum([part.num_rows for part in parts])]).astype(np.int64)
    return UserEvents(user_ids=looked_up.user_ids, offsets=offsets, table=table, users=looked_up.users)


def _request(document: RequestDocument, now: datetime) -> Request:
    embedding = document.context_embedding
    return Request(
        user_id=document.user_id,
        time=_microseconds(document.time or now),
        surface=document.surface,
        context_item_id=document.context_item_id,
        context_embedding=None if embedding is None else tuple(embedding),
        k=document.k,
        exclude_seen=document.exclude_seen,
        advertiser_cap=document.advertiser_cap,
    )


def _events(document: RequestDocument) -> list[dict[str, Any]]:
    return [
        {
            "item_id": event.item_id,
            "event_type": event.event_type,
            "event_time": _microseconds(event.event_time),
            "surface": event.surface,
            "reported_time": None if event.reported_time is None else _microseconds(event.reported_time),
        }
        for event in document.history or ()
    ]


def _microseconds(time: datetime) -> int:
    delta = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def output_tensors(answers: Sequence[Candidates]) -> list[tuple[str, str, list[int], list[Any]]]:
    """(name, datatype, shape, flat data) of each output tensor."""
    width = max(len(answer.item_ids) for answer in answers)
    shape = [len(answers), width]
    reasons = [[orjson.dumps(reason).decode() for reason in answer.reasons] for answer in answers]
    return [
        ("item_ids", "BYTES", shape, _padded([answer.item_ids for answer in answers], width, "")),
        ("scores", "FP32", shape, _padded([answer.scores for answer in answers], width, 0.0)),
        ("advertiser_ids", "BYTES", shape, _padded([answer.advertiser_ids for answer in answers], width, "")),
        ("reasons", "BYTES", shape, _padded(reasons, width, "[]")),
        ("num_candidates", "INT64", [len(answers)], [len(answer.item_ids) for answer in answers]),
    ]


def _padded(rows: Sequence[Sequence[Any]], width: int, filler: Any) -> list[Any]:
    return [value for row in rows for value in (*row, *(filler,) * (width - len(row)))]
