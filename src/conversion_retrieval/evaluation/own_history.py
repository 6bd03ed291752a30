"""Baseline: what the user did before, by frequency and recency, then popular items."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy import sparse

from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.evaluation.events import CONVERSION_ACTIONS, EventLog, Windows, affinities
from conversion_retrieval.evaluation.rankers import BackedOffRanker, Ranker, popularity_order


def fit_own_history(log: EventLog, before: int, config: EvaluationConfig) -> Sequence[Ranker]:
    """One ranker a half-life and engagement weight, backed off to recent popularity."""
    base = popularity_order(log, before, half_life_days=max(config.popularity_half_lives_days))
    return [
        BackedOffRanker(
            parameters={"half_life_days": half_life, "engagement_weight": weight},
            base=base,
            personal=partial(_scores, log, half_life, weight),
        )
        for half_life in config.own_history_half_lives_days
        for weight in engagement_weights(log, config)
    ]


def engagement_weights(log: EventLog, config: EvaluationConfig) -> Sequence[float]:
    """The weights worth trying: one where the log holds conversions only or engagements only."""
    num_engagements = len(log.action) - np.count_nonzero(np.isin(log.action, CONVERSION_ACTIONS))
    return config.engagement_weights if 0 < num_engagements < len(log.action) else (1.0,)


def _scores(log: EventLog, half_life: float, weight: float, windows: Windows) -> sparse.csr_array:
    return affinities(log, windows, half_life_days=half_life, engagement_weight=weight)
