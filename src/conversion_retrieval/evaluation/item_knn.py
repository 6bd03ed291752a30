"""Baseline: item-based nearest neighbours by the cosine of the items' user sets (Sarwar et al., 2001)."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.evaluation.events import EventLog, Windows, affinities
from conversion_retrieval.evaluation.rankers import BackedOffRanker, Ranker, popularity_order, user_items

BLOCK_ITEMS: Final = 2048


def fit_item_knn(log: EventLog, before: int, config: EvaluationConfig) -> Sequence[Ranker]:
    """One ranker a number of neighbours and half-life; a history's items pass their faded score on to neighbours."""
    base = popularity_order(log, before, half_life_days=max(config.popularity_half_lives_days))
    neighbors = nearest_neighbors(user_items(log, before, config), max(config.item_knn_neighbors))
    kept = {count: keep_largest(neighbors, count) for count in config.item_knn_neighbors}
    return [
        BackedOffRanker(
            parameters={"neighbors": float(count), "half_life_days": half_life},
            base=base,
            personal=partial(_scores, log, kept[count], half_life, config),
        )
        for count in config.item_knn_neighbors
        for half_life in config.own_history_half_lives_days
    ]


def nearest_neighbors(users_by_items: sparse.csr_array, count: int) -> sparse.csr_array:
    """Each item's ``count`` most similar items and their cosines, [N, N]; an item is its own nearest neighbour."""
    norms = np.sqrt(np.asarray(users_by_items.multiply(users_by_items).sum(axis=0)).ravel())
    normalized = sparse.csr_array(users_by_items @ sparse.diags_array(1 / np.maximum(norms, 1e-12))).astype(np.float32)
    transposed = normalized.T.tocsr()

    return _product(transposed, normalized, BLOCK_ITEMS, partial(keep_largest, count=count))


def _product(
    left: sparse.csr_array,
    right: sparse.csr_array,
    size: int,
    reduced: Callable[[sparse.csr_array], sparse.csr_array] = sparse.csr_array,
) -> sparse.csr_array:
    """``left @ right``, ``size`` rows at a time and ``reduced``: SciPy multiplies on one core, and lets others run."""

    def block(start: int) -> sparse.csr_array:
        return reduced(left[start : start + size] @ right)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        blocks = list(pool.map(block, range(0, max(left.shape[0], 1), size)))
    return sparse.csr_array(sparse.vstack(blocks, format="csr"))


def keep_largest(matrix: sparse.csr_array, count: int) -> sparse.csr_array:
    """The matrix with only the ``count`` largest entries of each row."""
    kept = [_largest(matrix.data, start, end, count) for start, end in itertools.pairwise(matrix.indptr.tolist())]
    lengths = [len(positions) for positions in kept]
    positions = np.concatenate([*kept, np.empty(0, np.int64)])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_array((matrix.data[positions], matrix.indices[positions], indptr), shape=matrix.shape)


def _largest(data: NDArray[np.float32], start: int, end: int, count: int) -> NDArray[np.int64]:
    if end - start <= count:
        return np.arange(start, end)
    return start + np.argpartition(-data[start:end], count - 1)[:count]


def _scores(
    log: EventLog, neighbors: sparse.csr_array, half_life: float, config: EvaluationConfig, windows: Windows
) -> sparse.csr_array:
    history = affinities(log, windows.newest(config.max_events_per_user), half_life_days=half_life)
    return _product(history, neighbors, -(-max(history.shape[0], 1) // torch.get_num_threads()))
