"""Candidates from a bundle: query features, the query tower, the index, filters, and a reason for each candidate."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conversion_retrieval.errors import CorruptArtifactError
from conversion_retrieval.evaluation.ranking import top_k_of
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.inputs import QueryArrays
from conversion_retrieval.index.search import ItemIndex, read_index
from conversion_retrieval.registry.bundle import Bundle, open_bundle
from conversion_retrieval.serving.coverage import Coverage
from conversion_retrieval.serving.query_features import EncodedQueries, Positions, QueryFeatures
from conversion_retrieval.serving.requests import Request, UserEvents
from conversion_retrieval.training.load import LoadedModel, load_model

MAX_REASONS: Final = 3
SEARCH_STEP: Final = 128
_Hits = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The answer to one request, best first.

    ``reasons[i]`` are the items of the user's history that lie closest to candidate i, closest first; empty without
    history.
    """

    user_id: str
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    advertiser_ids: tuple[str, ...]
    reasons: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Retriever:
    """A loaded bundle that answers requests; immutable, so safe to share between threads."""

    version: str
    model: LoadedModel
    index: ItemIndex
    features: QueryFeatures
    item_vectors: NDArray[np.float32]
    catalogue_rows: NDArray[np.int64]  # of each index row
    index_rows: NDArray[np.int64]  # of each catalogue row, -1 where not indexed
    item_names: NDArray[np.object_]  # of each catalogue row, as texts
    advertiser_names: NDArray[np.object_]

    @classmethod
    def open(cls, bundle_dir: Path | str) -> "Retriever":
        """Open a bundle, every byte verified; ``CorruptArtifactError`` names what does not fit."""
        return cls.of_bundle(open_bundle(Path(bundle_dir)))

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> "Retriever":
        """Load a verified bundle on the CPU."""
        directory = bundle.directory
        model = load_model(directory / "model", device="cpu")
        index = read_index(directory / "index", digest=bundle.manifest.inputs["index"])
        metadata = json.loads((directory / "features.json").read_text())
        items = pq.read_table(directory / "items.parquet")
        catalogue = FeatureDataset.of_catalogue(items, model.spec, metadata, directory)
        positions = Positions.of(catalogue)
        catalogue_rows = positions.rows(index.item_ids).astype(np.int64)
        if len(catalogue_rows) and catalogue_rows.min() < 0:
            unknown = index.item_ids[int(np.argmin(catalogue_rows))]
            raise CorruptArtifactError(f"expected indexed items in items.parquet, found {unknown} not in {directory}")
        index_rows = np.full(len(items), -1, np.int64)
        index_rows[catalogue_rows] = np.arange(len(catalogue_rows))
        return cls(
            version=bundle.version,
            model=model,
            index=index,
            features=QueryFeatures(catalogue=catalogue, items=positions, config=model.config.features),
            item_vectors=np.load(directory / "index" / "item_embeddings.npy", mmap_mode="r", allow_pickle=False),
            catalogue_rows=catalogue_rows,
            index_rows=index_rows,
            item_names=_texts(items["item_id"]),
            advertiser_names=_texts(items["advertiser_id"]),
        )

    def retrieve(
        self,
        requests: Sequence[Request],
        events: UserEvents,
        user: NDArray[np.int64],
        *,
        observe: Callable[[QueryArrays], None] | None = None,
    ) -> list[Candidates]:
        """Answer ``requests`` [B], whose users are rows ``user`` [B] of ``events``; ``observe`` sees the tower's
        inputs.
        """
        if not requests:
            return []
        return self.answer(requests, self.features.encode(requests, events, user), observe=observe)

    def answer(
        self,
        requests: Sequence[Request],
        queries: EncodedQueries,
        *,
        observe: Callable[[QueryArrays], None] | None = None,
    ) -> list[Candidates]:
        """The same for requests [B, at least one] whose tower inputs are at hand."""
        if observe:
            observe(queries.arrays)
        vectors = self.model.encode_arrays(self.features.catalogue, queries.arrays)
        histories = [queries.history_items(query) for query in range(len(requests))]
        found = self._search_all(vectors, requests, histories)
        return [
            self._answer(request, history, *hits)
            for request, history, hits in zip(requests, histories, found, strict=True)
        ]

    def coverage(self) -> Coverage:
        """A fresh count of missing features, to observe requests with."""
        return Coverage(self.model.spec, self.features.catalogue.metadata)

    def _answer(
        self, request: Request, history: NDArray[np.int64], rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> Candidates:
        taken = self.catalogue_rows[rows]
        return Candidates(
            user_id=request.user_id,
            item_ids=tuple(self.item_names[taken].tolist()),
            scores=tuple(scores.tolist()),
            advertiser_ids=tuple(self.advertiser_names[taken].tolist()),
            reasons=self._reasons(rows, history),
        )

    def _search_all(
        self, vectors: NDArray[np.float32], requests: Sequence[Request], histories: Sequence[NDArray[np.int64]]
    ) -> list[_Hits]:
        """Index rows and scores of each request's best ``k`` that pass its filters.

        Requests that need equally many are searched together; how many a request needs depends on itself alone, so
        that company never changes an answer.
        """
        seen = [
            history if request.exclude_seen else history[:0]
            for request, history in zip(requests, histories, strict=True)
        ]
        wanted = np.array(
            [_wanted(request, len(items), len(self.index)) for request, items in zip(requests, seen, strict=True)]
        )
        hits: list[_Hits | None] = [None] * len(requests)
        for count in np.unique(wanted).tolist():
            members = np.flatnonzero(wanted == count)
            scores, rows = self.index.search(vectors[members], count)
            for at, query in enumerate(members.tolist()):
                hits[query] = self._filtered(vectors[query], requests[query], seen[query], rows[at], scores[at])
        return [found for found in hits if found is not None]

    def _filtered(
        self,
        vector: NDArray[np.float32],
        request: Request,
        seen: NDArray[np.int64],
        rows: NDArray[np.int64],
        scores: NDArray[np.float32],
    ) -> _Hits:
        """The best ``k`` of a search's result that pass; searches for more until they are enough.

        Exactly once an approximate search could not fill its places: the few cells that suffice for its target, or what
        its graph leads to, can hold far fewer items than were asked for. A search that finds nothing at all is left at
        that: its vector is not finite, or the index is broken, which must not go unnoticed.
        """
        exactly = False
        while True:
            keep = self._allowed(rows, request, seen)
            if keep.sum() >= request.k or (rows >= 0).sum() in (0, len(self.index)):
                return rows[keep][: request.k], scores[keep][: request.k]
            exactly = exactly or bool((rows < 0).any())
            search = self._search_exactly if exactly else self.index.search
            scores, rows = (found[0] for found in search(vector[None], min(len(rows) * 4, len(self.index))))

    def _search_exactly(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return top_k_of(vectors @ self.item_vectors.T, k)

    def _allowed(self, rows: NDArray[np.int64], request: Request, seen: NDArray[np.int64]) -> NDArray[np.bool_]:
        keep = rows >= 0
        catalogue_rows = np.where(keep, self.catalogue_rows[rows], -1)
        if len(seen):
            keep &= ~np.isin(catalogue_rows, seen)
        if request.advertiser_cap:
            allowed = np.flatnonzero(keep)
            advertisers = self.features.catalogue.item_advertiser[catalogue_rows[allowed]]
            keep[allowed[_occurrence(advertisers) >= request.advertiser_cap]] = False
        return keep

    def _reasons(self, rows: NDArray[np.int64], history: NDArray[np.int64]) -> tuple[tuple[str, ...], ...]:
        """The history items with the largest cosine to each candidate."""
        history = history[self.index_rows[history] >= 0][: self.model.spec.history_length]
        if len(history) == 0 or len(rows) == 0:
            return ((),) * len(rows)
        # The candidate's own length is the same for all of its reasons.
        similarity = self.item_vectors[rows] @ _unit(self.item_vectors[self.index_rows[history]]).T
        closest = _largest(similarity, MAX_REASONS)
        return tuple(map(tuple, self.item_names[history][closest].tolist()))


def _wanted(request: Request, num_seen: int, num_items: int) -> int:
    """How many to search for: as many as asked, or whole blocks that leave room for what is left out."""
    room = request.k + num_seen
    return max(1, min(room if room == request.k else -(-room // SEARCH_STEP) * SEARCH_STEP, num_items))


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Columns of the ``count`` largest values of each row, largest first; of equal ones the first. Overwrites."""
    rows, columns = np.arange(len(values)), []
    for _ in range(min(count, values.shape[1])):
        columns.append(values.argmax(axis=1))
        values[rows, columns[-1]] = -np.inf
    return np.stack(columns, axis=1)


def _occurrence(values: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many equal values come before each one."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(values) else np.empty(0, np.int64)
    result = np.empty(len(values), np.int64)
    result[order] = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
    return result


def _texts(column: pa.ChunkedArray) -> NDArray[np.object_]:
    """Python texts made once: a request only picks some."""
    return np.array(list(map(str, column.to_pylist())), object)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)
