"""From requests with raw events to what the query tower sees, by the functions that built the training features."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.config import FeatureConfig
from conversion_retrieval.features.dataset import Events, FeatureDataset
from conversion_retrieval.features.encoding import LARGEST_IN_VECTORS
from conversion_retrieval.features.events import ItemIndex, encode_block
from conversion_retrieval.features.inputs import QueryArrays
from conversion_retrieval.features.timeline import Timeline, timeline, user_aggregates
from conversion_retrieval.serving.requests import Request, UserEvents


@dataclass(frozen=True, kw_only=True)
class Positions(ItemIndex):
    """The catalogue's ids with a hash table made once: a request must not cost a pass over all items."""

    positions: dict[str, int] = field(repr=False)

    @classmethod
    def of(cls, catalogue: FeatureDataset) -> "Positions":
        """The positions of a catalogue."""
        ids = catalogue.item_ids
        positions = {item_id: row for row, item_id in enumerate(ids.to_pylist())}
        return cls(ids=ids, advertiser=catalogue.item_advertiser, positions=positions)

    def rows(self, ids: pa.ChunkedArray | pa.Array) -> NDArray[np.int32]:
        """See ``ItemIndex.rows``."""
        if ids.null_count == len(ids):
            return np.full(len(ids), -1, np.int32)
        return np.array([self.positions.get(item_id, -1) for item_id in ids.to_pylist()], np.int32)


@dataclass(frozen=True, kw_only=True)
class EncodedQueries:
    """Tower inputs of B requests with the history they came from."""

    arrays: QueryArrays
    history: Timeline
    user: NDArray[np.int64]
    end: NDArray[np.int64]

    def history_items(self, query: int) -> NDArray[np.int64]:
        """Distinct catalogue rows of all history events before a query, newest first."""
        window = self.history.item[self.history.offsets[self.user[query]] : self.end[query]][::-1]
        rows, first = np.unique(window[window >= 0], return_index=True)
        return rows[np.argsort(first)].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class QueryFeatures:
    """What turns requests into tower inputs: a catalogue, the spec it is seen through, and aggregate windows."""

    catalogue: FeatureDataset
    items: Positions
    config: FeatureConfig

    def encode(self, requests: Sequence[Request], events: UserEvents, user: NDArray[np.int64]) -> EncodedQueries:
        """Tower inputs of ``requests`` [B], whose users are rows ``user`` [B] of ``events``.

        Raises ``UserError`` for a context embedding that is not as the model was trained with.
        """
        surfaces = self.catalogue.metadata["surfaces"]
        known = timeline(encode_block(events.table, events.offsets, self.items, surfaces))
        users = events.users
        if users is None:
            users = pa.table({"user_id": pa.array(events.user_ids, pa.string())})
        return self.encode_past(requests, known, users.take(pa.array(user)), user)

    def encode_past(
        self, requests: Sequence[Request], known: Timeline, users: pa.Table, user: NDArray[np.int64]
    ) -> EncodedQueries:
        """The same from the events of the users as a timeline, and a row of user columns for each request."""
        history = known.only(self.catalogue.spec.history_events)
        time = np.array([request.time for request in requests], np.int64)
        end = history.known(user.astype(np.int32), time)
        arrays = QueryArrays(
            surface=self._surfaces(requests),
            context_item=self._context_items(requests),
            context_embedding=self._context_embeddings(requests),
            users=self.catalogue.spec.encode_users(users),
            user_aggregates=self._aggregates(known, user, time),
            **self._with_events(history).history_arrays(user, end, time, self.catalogue.spec.history_length),
        )
        return EncodedQueries(arrays=arrays, history=history, user=user, end=end)

    def _surfaces(self, requests: Sequence[Request]) -> NDArray[np.int64]:
        codes = {name: code for code, name in enumerate(self.catalogue.spec.surfaces, start=1)}
        return np.array([codes.get(request.surface or "", 0) for request in requests], np.int64)

    def _context_items(self, requests: Sequence[Request]) -> NDArray[np.int64]:
        ids = pa.array([request.context_item_id for request in requests], pa.string())
        return self.items.rows(ids).astype(np.int64)

    def _context_embeddings(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        result = np.zeros((len(requests), self.catalogue.spec.context_embedding_dim), np.float32)
        for row, request in enumerate(requests):
            if request.context_embedding is not None:
                if fault := context_fault(request.context_embedding, result.shape[1]):
                    raise UserError(f"request {row}: {fault}")
                result[row] = request.context_embedding
        return result

    def _aggregates(self, known: Timeline, user: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.float32]:
        raw = user_aggregates(
            known, user.astype(np.int32), time, advertiser=self.catalogue.item_advertiser, config=self.config
        )
        return self.catalogue.spec.normalize_aggregates(raw, self.catalogue.metadata["user_aggregates"])

    def _with_events(self, history: Timeline) -> FeatureDataset:
        events = Events(
            item=history.item,
            action=(history.type + 1).astype(np.int8),
            surface=history.surface,
            time=history.time,
            available=history.available,
            offsets=history.offsets,
        )
        return dataclasses.replace(self.catalogue, events=events)


def context_fault(embedding: Sequence[float], dim: int) -> str:
    """What is wrong with a context embedding for a model that knows ``dim`` numbers (0: none); empty if nothing is.

    Leaving it out instead would answer another question than the one that was asked.
    """
    if len(embedding) != dim:
        expected = (
            f"{dim} numbers in context_embedding" if dim else "no context_embedding, as this model was trained without"
        )
        return f"expected {expected}, found {len(embedding)}"
    if not (np.abs(np.asarray(embedding, np.float64)) <= LARGEST_IN_VECTORS).all():  # null and NaN neither
        return f"expected numbers of magnitudes up to {LARGEST_IN_VECTORS:g} in context_embedding, found others"
    return ""


def last_time(events: UserEvents) -> int:
    """The moment just after everything in these events was known, in microseconds; 0 if there are none."""
    columns = (events.table["event_time"], events.table["reported_time"])
    latest = [pc.max(column.cast(pa.int64())).as_py() for column in columns]
    return max((value for value in latest if value is not None), default=-1) + 1
