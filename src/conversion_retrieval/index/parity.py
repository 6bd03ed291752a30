"""Golden queries through the model in memory, the model read back, and the index read back: all must agree."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.errors import UserError
from conversion_retrieval.evaluation.ranking import top_k
from conversion_retrieval.index.search import ItemIndex

GOLDEN_QUERIES: Final = 64
GOLDEN_K: Final = 10
VECTOR_TOLERANCE: Final = 1e-4
# Of the largest score; "ivf_pq" scores from 8-bit codes.
SCORE_TOLERANCE: Final = {"exact": 1e-4, "hnsw": 1e-4, "ivf": 1e-4, "ivf_pq": 2e-2}


def check_vectors(
    name: str, expected: NDArray[np.float32], found: NDArray[np.float32], tolerance: float = VECTOR_TOLERANCE
) -> None:
    """Two ways to the same vectors [n, D] must give the same; ``UserError`` tells how far they are apart."""
    if expected.shape != found.shape:
        raise UserError(f"parity: expected {name} of shape {expected.shape}, found {found.shape}")
    worst = float(np.abs(expected - found).max(initial=0.0))
    if not worst <= tolerance:
        raise UserError(
            f"parity: expected {name} within {tolerance:g} of each other, found a difference of {worst:g}: "
            "the model read back from its artifact is not the model that was indexed"
        )


def check_index(index: ItemIndex, kind: str, queries: NDArray[np.float32], items: NDArray[np.float32]) -> None:
    """The index must score what it returns as the model does, and an exact one must return the exact best.

    ``queries`` [Q, D] and ``items`` [N, D] come from the model. Raises ``UserError`` where they differ.
    """
    scores, rows = index.search(queries, GOLDEN_K)
    expected = np.einsum("qd,qkd->qk", queries, items[np.maximum(rows, 0)])
    tolerance = SCORE_TOLERANCE[kind] * max(1.0, float(np.abs(expected).max(initial=0.0)))
    found = rows >= 0
    _check_scores("of retrieved items", expected[found], scores[found], tolerance)
    if kind == "exact":
        best, _ = top_k(queries, items, GOLDEN_K)
        _check_scores("of the exact best items", best, scores, tolerance)


def _check_scores(what: str, expected: NDArray[np.float32], found: NDArray[np.float32], tolerance: float) -> None:
    worst = float(np.abs(expected - found).max(initial=0.0))
    if not worst <= tolerance:
        raise UserError(
            f"parity: expected index and model to agree on scores {what} within {tolerance:g}, found a difference of "
            f"{worst:g}: the index was not built from this model's vectors"
        )
