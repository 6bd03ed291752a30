"""Baseline: PureSVD (Cremonesi, Koren and Turrin, 2010): fold a user's items into the catalogue's main factors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.evaluation.events import EventLog, Windows
from conversion_retrieval.evaluation.rankers import Parameters, Ranker, popularity_order, user_items, window_items
from conversion_retrieval.evaluation.ranking import ScoreBlock
from conversion_retrieval.factorization import item_factors


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
    """Scores x V V', where x [N] flags the items of a query's history; popularity where these hold none of it."""

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
            folded = torch.from_numpy(history @ self.factors)
            scores = folded @ items
            # An empty history, or one of items alone that nobody had before the fit.
            scores[~folded.any(dim=1)] = torch.from_numpy(self.base)
            return scores.numpy()

        return score
