"""Randomised truncated SVD of large sparse matrices, in float32."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

OVERSAMPLING: Final = 16
POWER_ITERATIONS: Final = 4


def item_factors(matrix: sparse.csr_array, count: int, *, seed: int) -> NDArray[np.float32]:
    """The leading right singular vectors [N, min(count, rank)] of a sparse [U, N] matrix.

    Randomised subspace iteration (Halko, Martinsson and Tropp, 2011, algorithms 4.4 and 5.1), on the shorter side.
    """
    transpose = matrix.shape[0] > matrix.shape[1]
    short, long = (matrix.T.tocsr(), matrix) if transpose else (matrix, matrix.T.tocsr())
    size = min(count + OVERSAMPLING, *matrix.shape)
    basis = np.random.default_rng(seed).standard_normal((short.shape[0], size), dtype=np.float32)
    for _ in range(POWER_ITERATIONS + 1):
        basis = _orthonormal(short @ (long @ basis))
    projected = long @ basis
    squared, rotation = _squared_singular(projected)
    leading = np.argsort(-squared)[:count]
    leading = leading[squared[leading] > 1e-6 * squared.max(initial=0)]
    vectors = basis @ rotation[:, leading] if transpose else projected @ (rotation / _roots(squared))[:, leading]
    return np.ascontiguousarray(vectors, np.float32)


def _orthonormal(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """An orthonormal basis of the columns' span; directions lost to rounding become short vectors.

    By the Gram matrix rather than QR: LAPACK's QR of a narrow matrix crawls when cores are shared.
    """
    squared, rotation = _squared_singular(vectors)
    basis: NDArray[np.float32] = vectors @ (rotation / _roots(np.maximum(squared, 1e-10 * squared.max(initial=0))))
    return basis


def _squared_singular(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Squared singular values and right singular vectors of a tall matrix."""
    columns = torch.from_numpy(vectors).double()
    squared, rotation = torch.linalg.eigh(columns.T @ columns)
    return squared.float().numpy(), rotation.float().numpy()


def _roots(squared: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.sqrt(np.maximum(squared, np.finfo(np.float32).tiny))
