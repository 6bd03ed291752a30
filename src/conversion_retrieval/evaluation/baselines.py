"""The baselines by name, and their tuning: chosen on the validation window, then fitted on all before the test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.evaluation.events import EventLog, Windows
from conversion_retrieval.evaluation.item_knn import fit_item_knn
from conversion_retrieval.evaluation.own_history import fit_own_history
from conversion_retrieval.evaluation.popularity import fit_popularity, fit_recent_popularity
from conversion_retrieval.evaluation.pure_svd import fit_pure_svd
from conversion_retrieval.evaluation.rankers import Fit, Ranker
from conversion_retrieval.evaluation.ranking import ItemLists, score_ranks

BASELINES: Final[Mapping[str, Fit]] = {
    "popularity": fit_popularity,
    "recent_popularity": fit_recent_popularity,
    "own_history": fit_own_history,
    "item_knn": fit_item_knn,
    "pure_svd": fit_pure_svd,
}


@dataclass(frozen=True, kw_only=True)
class QuerySet:
    """Queries with their histories and the items relevant to them; nothing is fitted on events from ``start`` on."""

    windows: Windows
    positives: ItemLists
    start: int

    def sample(self, size: int, seed: int) -> "QuerySet":
        """At most ``size`` of the queries, drawn without replacement."""
        if len(self.windows) <= size:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self.windows), size, replace=False))
        items = [self.positives[row] for row in rows]
        offsets = np.concatenate([[0], np.cumsum([len(i) for i in items])])
        positives = ItemLists(offsets=offsets, items=np.concatenate(items))
        return QuerySet(windows=self.windows.rows(rows), positives=positives, start=self.start)


def fit_baseline(name: str, log: EventLog, validation: QuerySet, test_start: int, config: EvaluationConfig) -> Ranker:
    """The baseline called ``name`` at its best setting on the validation queries, fitted before ``test_start``."""
    fit = BASELINES[name]
    settings = fit(log, validation.start, config)
    best = 0 if len(settings) == 1 else best_setting(settings, validation, log.num_items, config)
    return fit(log, test_start, config)[best]


def best_setting(settings: Sequence[Ranker], validation: QuerySet, num_items: int, config: EvaluationConfig) -> int:
    """Position of the setting with the highest recall at ``tuning_k`` on the validation queries; ties: the first."""
    queries = validation.sample(config.tuning_queries, config.seed)
    return int(np.argmax([_recall(ranker, queries, num_items, config) for ranker in settings]))


def _recall(ranker: Ranker, queries: QuerySet, num_items: int, config: EvaluationConfig) -> float:
    scores = ranker.score_block(queries.windows)
    ranks: NDArray[np.int32] = score_ranks(scores, num_items, queries.positives, block=config.block_queries).full
    return float((ranks < config.tuning_k).mean()) if len(ranks) else 0.0
