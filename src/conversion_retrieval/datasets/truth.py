"""The truth beside a synthetic world's data: the best ranking that any model could give, and what it reaches."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from conversion_retrieval.datasets.config import SyntheticConfig
from conversion_retrieval.datasets.policy import LoggingPolicy
from conversion_retrieval.datasets.synthetic import item_ids, user_ids
from conversion_retrieval.datasets.tables import TRUTH, TRUTH_CONFIG
from conversion_retrieval.datasets.world import Floats, Integers, World
from conversion_retrieval.errors import UserError
from conversion_retrieval.schema import DEFAULT_SURFACES

Ids: TypeAlias = "Sequence[str | None] | pa.Array | pa.ChunkedArray"
BLOCK_SIZE = 512


@dataclass(frozen=True, kw_only=True)
class TruthQueries:
    """Q queries in the terms of the ``events`` table.

    ``times`` are microseconds since the epoch, ``surfaces`` names (null, or another than the world's: home feed);
    ``context_embeddings`` [Q, E] are read on the search surface only, ``context_item_ids`` on related items only.
    """

    user_ids: Ids
    times: NDArray[np.int64]
    surfaces: Ids
    context_item_ids: Ids
    context_embeddings: NDArray[np.floating]

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.times)


class TrueWorld:
    """The latent world behind a generated directory. Items are in the order of ``items.parquet``."""

    def __init__(self, world: World, config: SyntheticConfig) -> None:
        self.world, self.config = world, config
        self._policy = LoggingPolicy(world, config)
        self._users = user_ids(np.arange(config.num_users))
        self._items = item_ids(np.arange(config.num_items))

    @classmethod
    def open(cls, data_dir: Path | str) -> "TrueWorld":
        """Read ``truth/`` of a generated directory; ``UserError`` if it is missing or broken."""
        directory = Path(data_dir) / TRUTH
        try:
            values = json.loads((Path(data_dir) / TRUTH_CONFIG).read_text())
            values["surface_shares"] = tuple(values["surface_shares"])
            return cls(World.load(directory / "world"), SyntheticConfig(**values))
        except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
            raise UserError(f"expected the truth of a generated world in {directory}, found: {error}") from None

    def conversion_scores(
        self,
        user_ids: Ids,
        times_us: NDArray[np.int64],
        surfaces: Ids,
        context_item_ids: Ids,
        context_embeddings: NDArray[np.floating],
    ) -> NDArray[np.float32]:
        """Probability [Q, N] that the query shows each item *and* a conversion of it is reported under its own id.

        Its descending order is the best ranking there is of what a log taken long after the query holds: nothing but
        chance is left out. An item that is not launched has probability 0. See ``TruthQueries`` for the arguments.
        """
        queries = TruthQueries(
            user_ids=user_ids,
            times=times_us,
            surfaces=surfaces,
            context_item_ids=context_item_ids,
            context_embeddings=context_embeddings,
        )
        return self.scores(queries)

    def scores(self, queries: TruthQueries) -> NDArray[np.float32]:
        """``conversion_scores`` of queries given as one object."""
        times = np.asarray(queries.times, dtype=np.int64)
        factors = self._factors(queries, times)
        shown = self._policy.shown_probabilities(factors, times)
        return (shown * self._conversion(factors)).astype(np.float32)

    def conversion_probabilities(self, queries: TruthQueries) -> NDArray[np.float32]:
        """Probability [Q, N] that a conversion of each item is reported, had it been shown (launched or not)."""
        times = np.asarray(queries.times, dtype=np.int64)
        return self._conversion(self._factors(queries, times)).astype(np.float32)

    def _conversion(self, factors: Floats) -> Floats:
        clicks = self.world.click_probabilities(factors)
        through = clicks + (1 - clicks) * self.config.view_through_rate
        return self.world.purchase_probabilities(factors) * through * self.world.recorded_share()

    def _factors(self, queries: TruthQueries, times: Integers) -> Floats:
        users = _rows(queries.user_ids, self._users, "user_id")
        surfaces = _codes(queries.surfaces, pa.array(DEFAULT_SURFACES))
        surfaces = np.maximum(surfaces, 0)
        context = np.zeros((len(queries), self.config.taste_dim))
        subject = _codes(queries.context_item_ids, self._items)
        related = (surfaces == DEFAULT_SURFACES.index("related_items")) & (subject >= 0)
        context[related] = self.world.item_taste(subject[related])
        searching = surfaces == DEFAULT_SURFACES.index("search")
        # The basis has orthonormal rows: its transpose takes an embedding back to the taste it was made of.
        embeddings = np.asarray(queries.context_embeddings, dtype=np.float64).reshape(len(queries), -1)
        if searching.any():
            context[searching] = embeddings[searching] @ self.world.embedding_basis.T
        return self.world.query_factors(self.config, users, times, surfaces, context)


def oracle_ranks(
    world: TrueWorld, queries: TruthQueries, offsets: NDArray[np.int64], items: NDArray[np.integer]
) -> NDArray[np.int32]:
    """0-based rank [P] of each positive in the best ranking; query ``q`` has ``items[offsets[q]:offsets[q + 1]]``.

    Equal scores are broken by item row. ``items`` are rows of ``items.parquet``.
    """
    ranks = np.empty(len(items), dtype=np.int32)
    for start in range(0, len(queries), BLOCK_SIZE):
        block = range(start, min(start + BLOCK_SIZE, len(queries)))
        scores = world.scores(_slice(queries, block.start, block.stop))
        order = np.argsort(-scores, axis=1, kind="stable")
        positions = np.empty_like(order)
        np.put_along_axis(positions, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
        rows = np.repeat(np.arange(len(block)), np.diff(offsets[block.start : block.stop + 1]))
        chosen = slice(offsets[block.start], offsets[block.stop])
        ranks[chosen] = positions[rows, items[chosen]]
    return ranks


def best_reachable_recall(
    world: TrueWorld,
    queries: TruthQueries,
    offsets: NDArray[np.int64],
    items: NDArray[np.integer],
    ks: Sequence[int] = (10, 100, 1000),
) -> dict[int, float]:
    """Recall@k of the best ranking: the mean, over queries with positives, of the share of them in the top k."""
    counts = np.diff(offsets)
    query = np.repeat(np.arange(len(counts)), counts)
    ranks = oracle_ranks(world, queries, offsets, items)
    weights = 1 / np.maximum(counts, 1)[query] / max(int((counts > 0).sum()), 1)
    return {k: float(weights[ranks < k].sum()) for k in ks}


def _slice(queries: TruthQueries, start: int, stop: int) -> TruthQueries:
    return TruthQueries(
        user_ids=queries.user_ids[start:stop],
        times=queries.times[start:stop],
        surfaces=queries.surfaces[start:stop],
        context_item_ids=queries.context_item_ids[start:stop],
        context_embeddings=queries.context_embeddings[start:stop],
    )


def _codes(values: Ids, known: pa.Array) -> Integers:
    """Position of each value in ``known``, -1 where it is not in it."""
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, pa.string())
    found: Integers = pc.fill_null(pc.index_in(array, known), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _rows(values: Ids, known: pa.Array, name: str) -> Integers:
    codes = _codes(values, known)
    if (codes < 0).any():
        row = int(np.argmax(codes < 0))
        raise UserError(f"expected a {name} of the generated world, found {values[row]!s} in query {row}")
    return codes
