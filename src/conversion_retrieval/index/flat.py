"""Exact search of a flat FAISS index as one matrix product and a grouped selection, faster than FAISS's own."""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from conversion_retrieval.evaluation.ranking import query_blocks, top_k_of

Search = Callable[[NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""Scores and rows [B, k] of the best items of some vectors [B, D], best first."""

BLOCK_QUERIES = 512


def search_of(index: Any) -> Search:
    """How ``index`` is searched wherever it is measured or served: by FAISS, or if it is flat by ``FlatSearch``."""
    return FlatSearch(index) if isinstance(index, faiss.IndexFlatIP) else index.search


class FlatSearch:
    """Searches the vectors that a flat inner-product index holds, in place."""

    def __init__(self, index: Any) -> None:
        self._index = index  # owns the memory
        vectors = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
        self._items = torch.from_numpy(vectors).T

    def __call__(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The ``min(k, N)`` best items of each of ``vectors`` [B, D], in blocks of bounded memory."""
        if len(vectors) == 1:  # each vector is read once either way, and FAISS does little around it
            return self._index.search(vectors, min(k, self._index.ntotal))  # type: ignore[no-any-return] # no types
        blocks = query_blocks(np.arange(len(vectors)), self._index.ntotal, BLOCK_QUERIES)
        found = [self._search(vectors[rows], min(k, self._index.ntotal)) for rows in blocks]
        scores, rows = zip(*found, strict=True) if found else ([np.empty((0, k), np.float32)], [np.empty((0, k), int)])
        return np.concatenate(scores), np.concatenate(rows)

    def _search(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return top_k_of(torch.mm(torch.from_numpy(vectors), self._items).numpy(), k)
