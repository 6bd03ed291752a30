"""Large sparse matrices through few dimensions: truncated SVD, and regression of one on another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.nn import functional

OVERSAMPLING: Final = 16
POWER_ITERATIONS: Final = 4
FIT_ITERATIONS: Final = 2  # each is two fits of some ten products
SOLVE_TOLERANCE: Final = 1e-2  # of a residual's length: subspaces are no better known than that
MAX_SOLVE_STEPS: Final = 100
SOLVE_COLUMNS: Final = 128  # at once
BLOCK_ROWS: Final = 8_192  # of a tall matrix at once: a copy of it all, in double precision, is twice its size


def item_factors(matrix: sparse.csr_array, count: int, *, seed: int) -> NDArray[np.float32]:
    """The leading right singular vectors [N, min(count, rank)] of a sparse [U, N] matrix.

    Randomised subspace iteration (Halko, Martinsson and Tropp, 2011, algorithms 4.4 and 5.1), on the shorter side.
    """
    if not matrix.nnz:
        return np.zeros((matrix.shape[1], 0), np.float32)
    product = _Matrix(matrix)
    transpose = matrix.shape[0] > matrix.shape[1]
    to_long, to_short = (product.times, product.transposed_times)[:: 1 if transpose else -1]
    basis = _random(min(matrix.shape), min(count + OVERSAMPLING, *matrix.shape), seed)
    for _ in range(POWER_ITERATIONS + 1):
        basis = _orthonormal(to_short(to_long(basis)))
    projected = to_long(basis)
    squared, rotation = _squared_singular(projected)
    leading = _leading(squared, count)
    vectors = basis @ rotation[:, leading] if transpose else projected @ (rotation / _roots(squared))[:, leading]
    return np.ascontiguousarray(vectors.numpy())


@dataclass(frozen=True, kw_only=True)
class ReducedRank:
    """``Y ~ X @ inputs @ outputs.T`` with ``inputs`` [P, r] and ``outputs`` [Q, r], both float32.

    The columns of ``outputs`` are orthonormal; those that explain most come first.
    """

    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]


def reduced_rank_ridge(x: sparse.csr_array, y: sparse.csr_array, *, rank: int, ridge: float, seed: int) -> ReducedRank:
    """Ridge regression of sparse Y [R, Q] on sparse X [R, P], projected on the ``rank`` leading directions of its fit.

    The coefficients B minimise ``|Y - X B|^2 + ridge |B|^2``; what is kept is ``B V V'`` with V the leading right
    singular vectors of the fitted values X B (reduced-rank regression: Izenman, 1975). Subspace iteration finds V and
    conjugate gradients invert: of dense matrices, only a few [R, rank], [P, rank] and [Q, rank] are held. Fewer columns
    come back where the fit has fewer directions.
    """
    if not x.nnz or not y.nnz:
        return ReducedRank(inputs=np.zeros((x.shape[1], 0), np.float32), outputs=np.zeros((y.shape[1], 0), np.float32))
    inputs, targets = _Matrix(x), _Matrix(y)

    def product(values: Tensor) -> Tensor:
        """``X X' + ridge`` times ``values`` [R, D]; a [P, D] is held beside."""
        return inputs.times(inputs.transposed_times(values)) + ridge * values

    def solve(values: Tensor) -> Tensor:
        """``(X X' + ridge)^-1`` times ``values`` [R, D], some columns at a time."""
        parts = torch.split(values, SOLVE_COLUMNS, dim=1)
        return torch.cat([_conjugate_gradients(product, part.contiguous()) for part in parts], dim=1)

    def fit(values: Tensor) -> Tensor:
        """What the regression fits of ``values`` [R, D]: ``X X' (X X' + ridge)^-1`` times them."""
        return values - ridge * solve(values)

    basis = _random(y.shape[1], min(rank + OVERSAMPLING, *x.shape, y.shape[1]), seed)
    basis = _orthonormal(targets.transposed_times(targets.times(basis)))
    for _ in range(FIT_ITERATIONS):
        # Two fits in a row would square how much weaker the last direction is than the first, beyond float32.
        fitted = _orthonormal(fit(targets.times(basis)))
        del basis  # [Q, rank], not beside the next one
        basis = _orthonormal(targets.transposed_times(fit(fitted)))
    projected = targets.times(basis)
    solved = solve(projected)
    squared, rotation = _squared_singular(projected - ridge * solved)
    kept = rotation[:, _leading(squared, rank)]
    outputs = _times_in_place(basis, kept)
    return ReducedRank(inputs=inputs.transposed_times(solved @ kept).numpy(), outputs=outputs.numpy())


class _Matrix:
    """A sparse matrix [R, C] whose products with dense ones use all cores, each sum in one thread: always the same."""

    def __init__(self, matrix: sparse.csr_array) -> None:
        self._rows, self._columns = _bags(matrix), _bags(sparse.csr_array(matrix.T))

    def times(self, dense: Tensor) -> Tensor:
        """[C, D] -> [R, D]."""
        return functional.embedding_bag(weight=dense, **self._rows)

    def transposed_times(self, dense: Tensor) -> Tensor:
        """[R, D] -> [C, D]."""
        return functional.embedding_bag(weight=dense, **self._columns)


def _bags(matrix: sparse.csr_array) -> dict[str, Any]:
    kind = np.int32 if max(*matrix.shape, matrix.nnz) < 2**31 else np.int64
    return {
        "input": torch.from_numpy(matrix.indices.astype(kind, copy=False)),
        "offsets": torch.from_numpy(matrix.indptr.astype(kind, copy=False)),
        "per_sample_weights": torch.from_numpy(matrix.data.astype(np.float32, copy=False)),
        "mode": "sum",
        "include_last_offset": True,
    }


def _conjugate_gradients(product: Callable[[Tensor], Tensor], targets: Tensor) -> Tensor:
    """Solve ``product(x) = targets`` for each column of ``targets`` (Hestenes and Stiefel, 1952)."""
    tiny = torch.finfo(targets.dtype).tiny
    found, residual, direction = torch.zeros_like(targets), targets.clone(), targets.clone()
    squared = residual.square().sum(0)
    enough = SOLVE_TOLERANCE**2 * squared
    for _ in range(MAX_SOLVE_STEPS):
        if bool((squared <= enough).all()):
            break
        applied = product(direction)
        length = squared / (direction * applied).sum(0).clamp(min=tiny)
        found += length * direction
        residual -= length * applied
        before, squared = squared, residual.square().sum(0)
        direction = residual + squared / before.clamp(min=tiny) * direction
    return found


def _random(rows: int, columns: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32))


def _leading(values: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` largest ``values``, without what is only rounding."""
    order = torch.argsort(values, descending=True)[:count]
    return order[values[order] > 1e-6 * values.max()]


def _orthonormal(vectors: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span, in their place; directions lost to rounding become short vectors.

    By the Gram matrix rather than QR: LAPACK's QR of a narrow matrix crawls when cores are shared.
    """
    squared, rotation = _squared_singular(vectors)
    return _times_in_place(vectors, rotation / _roots(squared.clamp(min=1e-10 * float(squared.max()))))


def _times_in_place(tall: Tensor, small: Tensor) -> Tensor:
    """The product of [N, D] and [D, at most D], in the place of the first."""
    product = tall[:, : small.shape[1]]
    for rows, target in zip(torch.split(tall, BLOCK_ROWS), torch.split(product, BLOCK_ROWS), strict=True):
        target.copy_(rows @ small)
    return product


def _squared_singular(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values and right singular vectors of a tall matrix."""
    gram = torch.zeros(vectors.shape[1], vectors.shape[1], dtype=torch.float64)
    for rows in torch.split(vectors, BLOCK_ROWS):
        columns = rows.double()
        gram.addmm_(columns.T, columns)
    squared, rotation = torch.linalg.eigh(gram)
    return squared.float(), rotation.float()


def _roots(squared: Tensor) -> Tensor:
    return squared.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
