"""Baselines that ignore the user: items by the number of users who converted on them, ever or recently."""

from collections.abc import Sequence

from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.evaluation.events import EventLog
from conversion_retrieval.evaluation.rankers import BackedOffRanker, Ranker, popularity_order


def fit_popularity(log: EventLog, before: int, config: EvaluationConfig) -> Sequence[Ranker]:  # noqa: ARG001
    """All users count alike; there is nothing to tune, the argument is that of every baseline."""
    return [BackedOffRanker(parameters={}, base=popularity_order(log, before))]


def fit_recent_popularity(log: EventLog, before: int, config: EvaluationConfig) -> Sequence[Ranker]:
    """A user counts the less the longer ago the conversion was."""
    return [
        BackedOffRanker(
            parameters={"half_life_days": half_life}, base=popularity_order(log, before, half_life_days=half_life)
        )
        for half_life in config.popularity_half_lives_days
    ]
