"""Exact full-catalogue ranks and top-k lists, in blocks: memory stays bounded and time is that of a matrix product.

A positive's rank is the number of items that score strictly higher, plus the equally scored items of a smaller row:
rank 0 is the best, and equal scores cannot make two runs differ. All items count, other positives included, so that
recall@k is the number of positives in the top-k list over the number of positives.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from conversion_retrieval.errors import UserError

ScoreBlock = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Scores of some queries against every item: query rows [B] -> [B, N]. The result may be reused by the next call."""

BLOCK_BYTES: Final = 256 * 2**20
# Counting passes over a row cost less than sorting it (vectorised in NumPy) up to about this many positives.
MAX_COUNTED_POSITIVES: Final = 24
GROUP: Final = 64


@dataclass(frozen=True, kw_only=True)
class ItemLists:
    """A list of items a query, in compressed rows: query ``q`` has ``items[offsets[q]:offsets[q + 1]]``.

    ``offsets`` [Q + 1] int64, ``items`` [P] rows of the catalogue.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.offsets) - 1

    def __getitem__(self, query: int) -> NDArray[np.int32]:
        """The items of one query."""
        return self.items[self.offsets[query] : self.offsets[query + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Items a query, [Q]."""
        return np.diff(self.offsets)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Ranks of all positives, [P] int32: in the full list, and in the list without the removed items.

    ``without_removed`` is -1 for a positive that is itself removed; it equals ``full`` where nothing was removed.
    """

    full: NDArray[np.int32]
    without_removed: NDArray[np.int32]


def exact_ranks(
    query_vectors: NDArray[np.float32],
    item_vectors: NDArray[np.float32],
    positive_offsets: NDArray[np.int64],
    positive_items: NDArray[np.int32],
    *,
    block: int = 512,
) -> NDArray[np.int32]:
    """0-based dot-product rank [P] of each positive among all N items.

    ``query_vectors`` [Q, D], ``item_vectors`` [N, D], positives of query q at ``positive_offsets[q:q + 2]`` in
    ``positive_items`` [P]. At most ``block`` queries are scored at a time, fewer where the catalogue is large.
    Raises ``ValueError`` for vectors that are not finite or too large, or positives outside the catalogue.
    """
    scores = DotProductScores(query_vectors, item_vectors, block=block)
    return score_ranks(
        scores, len(item_vectors), ItemLists(offsets=positive_offsets, items=positive_items), block=block
    ).full


def score_ranks(
    score_block: ScoreBlock, num_items: int, positives: ItemLists, *, block: int = 512, removed: ItemLists | None = None
) -> Ranks:
    """Ranks of positives under any scorer; ``removed`` items of a query are also ranked around."""
    _check_positives(positives, num_items)
    full = np.zeros(len(positives.items), np.int32)
    without = np.zeros(len(positives.items), np.int32)
    rows = np.flatnonzero(positives.lengths)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for chosen in query_blocks(rows, num_items, block):
            rank_one = partial(_rank_query, positives=positives, removed=removed, full=full, without=without)
            list(pool.map(rank_one, score_block(chosen), chosen.tolist()))
    return Ranks(full=full, without_removed=without)


def top_k(
    query_vectors: NDArray[np.float32], item_vectors: NDArray[np.float32], k: int, *, block: int = 512
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The exact ``min(k, N)`` best items of each query: scores and rows, both [Q, k], best first."""
    scores = DotProductScores(query_vectors, item_vectors, block=block)
    k = min(k, len(item_vectors))
    best = np.empty((len(query_vectors), k), np.float32)
    rows = np.empty((len(query_vectors), k), np.int64)
    for chosen in query_blocks(np.arange(len(query_vectors)), len(item_vectors), block):
        best[chosen], rows[chosen] = top_k_of(scores(chosen), k)
    return best, rows


def top_k_of(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The ``min(k, N)`` largest of each row of ``scores`` [B, N] and their columns, best first.

    The k best items lie in the k groups of highest maximum, so only those groups are looked at again: one cheap pass
    replaces a selection over the row.
    """
    values = torch.from_numpy(scores)
    num_groups = values.shape[1] // GROUP
    if k >= num_groups // 2:
        best, columns = values.topk(min(k, values.shape[1]))
        return best.numpy(), columns.numpy()
    grouped = values[:, : num_groups * GROUP].view(len(values), GROUP, num_groups)
    groups = grouped.amax(1).topk(k, sorted=False).indices
    members = groups[:, None, :].expand(-1, GROUP, -1)
    candidates = torch.cat([grouped.gather(2, members).flatten(1), values[:, num_groups * GROUP :]], 1)
    best, chosen = candidates.topk(k)
    return best.numpy(), _columns(chosen, groups, num_groups).numpy()


def _columns(chosen: torch.Tensor, groups: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Columns of the score matrix from positions in the candidates: grouped members first, then the rest."""
    k = groups.shape[1]
    member = chosen.clamp(max=GROUP * k - 1)
    column = member // k * num_groups + groups.gather(1, member % k)
    return torch.where(chosen < GROUP * k, column, chosen - GROUP * k + num_groups * GROUP)


def query_blocks(rows: NDArray[np.int64], num_items: int, block: int) -> Iterator[NDArray[np.int64]]:
    """Split query rows so that one block's scores stay within ``BLOCK_BYTES``."""
    size = _block_size(num_items, block)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class DotProductScores:
    """Scores by dot product, into one buffer that every call reuses."""

    def __init__(
        self, query_vectors: NDArray[np.float32], item_vectors: NDArray[np.float32], *, block: int = 512
    ) -> None:
        _check_vectors(query_vectors, item_vectors)
        self._queries = torch.from_numpy(np.ascontiguousarray(query_vectors, np.float32))
        self._items = torch.from_numpy(np.ascontiguousarray(item_vectors, np.float32)).T
        size = min(_block_size(len(item_vectors), block), max(len(query_vectors), 1))
        self._buffer = torch.empty(size, len(item_vectors))

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores [B, N] of the queries at ``rows``; valid until the next call."""
        out = self._buffer[: len(rows)]
        torch.mm(self._queries[torch.from_numpy(rows)], self._items, out=out)
        return out.numpy()


def _rank_query(
    scores: NDArray[np.float32],
    query: int,
    *,
    positives: ItemLists,
    removed: ItemLists | None,
    full: NDArray[np.int32],
    without: NDArray[np.int32],
) -> None:
    where = slice(positives.offsets[query], positives.offsets[query + 1])
    items = positives.items[where]
    full[where] = _ranks_in_row(scores, items)
    without[where] = full[where] if removed is None else _without(scores, items, full[where], removed[query])


def _ranks_in_row(scores: NDArray[np.float32], items: NDArray[np.int32]) -> NDArray[np.int64]:
    if len(items) > MAX_COUNTED_POSITIVES:
        return _ranks_by_sorting(scores, items)
    ranks = np.empty(len(items), np.int64)
    for position, item in enumerate(items.tolist()):
        score = scores[item]
        ranks[position] = np.count_nonzero(scores[:item] >= score) + np.count_nonzero(scores[item + 1 :] > score)
    return ranks


def _ranks_by_sorting(scores: NDArray[np.float32], items: NDArray[np.int32]) -> NDArray[np.int64]:
    ordered = np.sort(scores)
    wanted = scores[items]
    right = np.searchsorted(ordered, wanted, "right")
    ranks = len(scores) - right
    for position in np.flatnonzero(right - np.searchsorted(ordered, wanted, "left") > 1):
        item = items[position]
        ranks[position] += np.count_nonzero(scores[:item] == scores[item])
    return ranks


def _without(
    scores: NDArray[np.float32], items: NDArray[np.int32], ranks: NDArray[np.int32], removed: NDArray[np.int32]
) -> NDArray[np.int64]:
    score, other = scores[items][:, None], scores[removed][None, :]
    above = (other > score) | ((other == score) & (removed[None, :] < items[:, None]))
    return np.where(np.isin(items, removed), -1, ranks - above.sum(1))


def _block_size(num_items: int, block: int) -> int:
    return max(1, min(block, BLOCK_BYTES // (4 * max(num_items, 1))))


def _check_vectors(query_vectors: NDArray[np.float32], item_vectors: NDArray[np.float32]) -> None:
    if query_vectors.ndim != 2 or item_vectors.ndim != 2 or query_vectors.shape[1] != item_vectors.shape[1]:
        raise ValueError(f"expected [Q, D] and [N, D] vectors, found {query_vectors.shape} and {item_vectors.shape}")
    for name, vectors in (("query", query_vectors), ("item", item_vectors)):
        if not np.isfinite(vectors).all():
            bad = np.flatnonzero(~np.isfinite(vectors).all(1))
            raise ValueError(f"expected finite {name} vectors, found {len(bad)} others, the first at row {bad[0]}")
    require_finite_scores(query_vectors, item_vectors)


def require_finite_scores(query_vectors: NDArray[np.float32], item_vectors: NDArray[np.float32]) -> None:
    """``UserError`` for vectors so large that an inner product could overflow: no score compares with NaN.

    A positive whose score is NaN would be found to have none above it.
    """
    dim, largest = query_vectors.shape[1], float(np.finfo(np.float32).max)
    queries, items = (max(float(v.max(initial=0.0)), -float(v.min(initial=0.0))) for v in (query_vectors, item_vectors))
    if dim * queries * items > largest:
        raise UserError(
            f"expected scores that float32 can hold, found query vectors with magnitudes up to {queries:g} and item "
            f"vectors with up to {items:g}: scale the columns of vectors down, or set model.normalize=true"
        )


def _check_positives(positives: ItemLists, num_items: int) -> None:
    if len(positives.items) and not 0 <= positives.items.min() <= positives.items.max() < num_items:
        raise ValueError(
            f"expected positives in 0..{num_items - 1}, found {positives.items.min()}..{positives.items.max()}"
        )
