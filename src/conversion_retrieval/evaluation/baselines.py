"""The baselines by name, and their tuning: chosen on the validation window, then fitted on all before the test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.evaluation.events import EventLog, Windows, seen_items
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


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A fitted baseline for each of the lists that are measured: ``full``, and ``new`` without what a user had.

    Often the same: what finds most of what is bought again need not find most of what is new.
    """

    full: Ranker
    new: Ranker


def fit_baseline(name: str, log: EventLog, validation: QuerySet, test_start: int, config: EvaluationConfig) -> Baseline:
    """The baseline called ``name`` at its best settings on the validation queries, fitted before ``test_start``."""
    fit = BASELINES[name]
    settings = fit(log, validation.start, config)
    full, new = (0, 0) if len(settings) == 1 else best_settings(settings, validation, log, config)
    fitted = fit(log, test_start, config)
    return Baseline(full=fitted[full], new=fitted[new])


def best_settings(
    settings: Sequence[Ranker], validation: QuerySet, log: EventLog, config: EvaluationConfig
) -> tuple[int, int]:
    """Positions of the settings with the highest validation recall at ``tuning_k``, in each list; ties: the first."""
    queries = validation.sample(config.tuning_queries, config.seed)
    seen = seen_items(log, queries.windows)
    recalls = np.array([_recalls(ranker, queries, seen, log.num_items, config) for ranker in settings])
    full, new = recalls.argmax(axis=0)
    return int(full), int(new)


def _recalls(
    ranker: Ranker, queries: QuerySet, seen: ItemLists, num_items: int, config: EvaluationConfig
) -> tuple[float, float]:
    """Recall of all positives, and of those that are new to the user in the list without what the user had."""
    scores = ranker.score_block(queries.windows)
    ranks = score_ranks(scores, num_items, queries.positives, block=config.block_queries, removed=seen)
    new = ranks.without_removed[ranks.without_removed >= 0]
    return _share_below(ranks.full, config.tuning_k), _share_below(new, config.tuning_k)


def _share_below(ranks: NDArray[np.int32], k: int) -> float:
    return float((ranks < k).mean()) if len(ranks) else 0.0
