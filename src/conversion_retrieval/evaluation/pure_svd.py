"""Baseline: PureSVD (Cremonesi, Koren and Turrin, 2010): fold a user's items into the catalogue's main factors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.evaluation.events import EventLog, Windows
from conversion_retrieval.evaluation.rankers import Parameters, Ranker, popularity_order, user_items, window_items
from conversion_retrieval.evaluation.ranking import ScoreBlock

OVERSAMPLING: Final = 16
POWER_ITERATIONS: Final = 4


def fit_pure_svd(log: EventLog, before: int, config: EvaluationConfig) -> Sequence[Ranker]:
    """One ranker a number of factors; the largest decomposition holds the smaller ones."""
    matrix = user_items(log, before, config)
    base = popularity_order(log, before, half_life_days=max(config.popularity_half_lives_days))
    factors = item_factors(matrix, max(config.pure_svd_factors), seed=config.seed)
    counts = sorted({min(count, factors.shape[1]) for count in config.pure_svd_factors})
    return [
        PureSVD(parameters={"factors": float(count)}, log=log, base=base, factors=factors[:, :count], config=config)
        for count in counts
    ]


@dataclass(frozen=True, kw_only=True)
class PureSVD:
    """Scores x V V', where x [N] flags the items of a query's history; popularity where that is empty."""

    parameters: Parameters
    log: EventLog
    base: NDArray[np.float32]
    factors: NDArray[np.float32]
    config: EvaluationConfig

    def score_block(self, windows: Windows) -> ScoreBlock:
        """A scorer of the queries whose histories are ``windows``."""
        items = torch.from_numpy(np.ascontiguousarray(self.factors)).T

        def score(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            history = window_items(self.log, windows.rows(rows), self.config)
            scores = torch.from_numpy(history @ self.factors) @ items
            scores[torch.from_numpy(np.diff(history.indptr) == 0)] = torch.from_numpy(self.base)
            return scores.numpy()

        return score


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
