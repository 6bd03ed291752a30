"""Answering several inference calls at once, so that a wrong one spoils no other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.inputs import QueryArrays
from conversion_retrieval.serving.known_users import KnownUsers
from conversion_retrieval.serving.protocol import (
    RequestDocument,
    parse_requests,
    plain_requests,
    requests_of,
    users_of,
)
from conversion_retrieval.serving.requests import UserEvents
from conversion_retrieval.serving.retriever import Candidates, Retriever

_Observe = Callable[[QueryArrays], None]
_Answer = Callable[[list[RequestDocument], _Observe], list[Candidates]]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The candidates of one call's requests, and the version they came from."""

    version: str
    candidates: list[Candidates]


class Answerer:
    """A bundle with the events it may look users up in; ``observe`` sees the tower inputs of all answers, once."""

    def __init__(self, *, retriever: Retriever, known: UserEvents | None, observe: _Observe | None = None) -> None:
        self.retriever, self._known, self._observe = retriever, known, observe
        self._users = None if known is None else KnownUsers.of(known, retriever.features)

    def __call__(self, calls: Sequence[Sequence[str]]) -> list[Answered | Exception]:
        """An answer, or the ``UserError`` that says what is wrong, for each call (the JSON texts of its requests)."""
        parsed = [_parsed(texts) for texts in calls]
        good = [documents for documents in parsed if not isinstance(documents, UserError)]
        answers = iter(self._together(good))
        return [documents if isinstance(documents, UserError) else next(answers) for documents in parsed]

    def _together(self, calls: list[list[RequestDocument]]) -> list[Answered | Exception]:
        if not calls:
            return []
        try:
            return [*self._answer(calls)]
        except UserError as error:
            return [error] if len(calls) == 1 else [answer for call in calls for answer in self._together([call])]

    def _answer(self, calls: list[list[RequestDocument]]) -> list[Answered]:
        documents = [document for call in calls for document in call]
        found: list[Candidates | None] = [None] * len(documents)
        observed: list[QueryArrays] = []
        for answer, rows in self._ways(documents, calls):
            for row, candidates in zip(rows, answer([documents[row] for row in rows], observed.append), strict=True):
                found[row] = candidates
        if self._observe:
            for arrays in observed:  # not before: a wrong call makes all of its batch come again
                self._observe(arrays)
        answers = [candidates for candidates in found if candidates is not None]
        ends = list(accumulate(map(len, calls)))
        spans = zip([0, *ends], ends, strict=False)
        return [Answered(version=self.retriever.version, candidates=answers[start:end]) for start, end in spans]

    def _ways(
        self, documents: list[RequestDocument], calls: list[list[RequestDocument]]
    ) -> Iterator[tuple[_Answer, list[int]]]:
        """Which documents are answered how: those without a history of their own from what is known.

        A single call is not divided, so that an error tells the number that its request has in the call.
        """
        known = [self._users is not None and document.history is None for document in documents]
        if len(calls) == 1 and not all(known):
            known = [False] * len(documents)
        for answer, wanted in ((self._answer_known, True), (self._answer_given, False)):
            if rows := [row for row, is_known in enumerate(known) if is_known is wanted]:
                yield answer, rows

    def _answer_known(self, documents: list[RequestDocument], observe: _Observe) -> list[Candidates]:
        assert self._users is not None
        user_ids, columns = [document.user_id for document in documents], self.retriever.model.spec.users.columns
        users = users_of(documents, self._users.columns_of(user_ids), columns)
        if users is None:
            users = pa.table({"user_id": pa.array(user_ids, pa.string())})
        requests, past = plain_requests(documents), self._users.past_of(user_ids)
        queries = self.retriever.features.encode_past(requests, past, users, np.arange(len(requests)))
        return self.retriever.answer(requests, queries, observe=observe)

    def _answer_given(self, documents: list[RequestDocument], observe: _Observe) -> list[Candidates]:
        requests, events = requests_of(documents, self._known, user_columns=self.retriever.model.spec.users.columns)
        return self.retriever.retrieve(requests, events, np.arange(len(requests)), observe=observe)


def _parsed(texts: Sequence[str]) -> list[RequestDocument] | UserError:
    try:
        return parse_requests(texts)
    except UserError as error:
        return error
