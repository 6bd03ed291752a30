"""Answering several inference calls at once, so that a wrong one spoils no other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.inputs import QueryArrays
from conversion_retrieval.serving.protocol import RequestDocument, parse_requests, requests_of
from conversion_retrieval.serving.requests import UserEvents
from conversion_retrieval.serving.retriever import Candidates, Retriever


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The candidates of one call's requests, and the version they came from."""

    version: str
    candidates: list[Candidates]


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """A bundle with the events it may look users up in; ``observe`` sees all tower inputs."""

    retriever: Retriever
    known: UserEvents | None
    observe: Callable[[QueryArrays], None] | None = None

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
        requests, events = requests_of(documents, self.known, user_columns=self.retriever.model.spec.users.columns)
        found = self.retriever.retrieve(requests, events, np.arange(len(requests)), observe=self.observe)
        ends = list(accumulate(map(len, calls)))
        spans = zip([0, *ends], ends, strict=False)
        return [Answered(version=self.retriever.version, candidates=found[start:end]) for start, end in spans]


def _parsed(texts: Sequence[str]) -> list[RequestDocument] | UserError:
    try:
        return parse_requests(texts)
    except UserError as error:
        return error
