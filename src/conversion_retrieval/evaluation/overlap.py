"""The engagement-only candidate list that conversions are held against: what would a retrieval built on it miss?

A multi-head model brings its own: the engagement head. Otherwise it is item-kNN on engagements alone, tuned on the
validation window's engagements; without engagements in the histories there is no such list.
"""

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.evaluation.baselines import fit_baseline
from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.evaluation.events import CONVERSION_ACTIONS, EventLog, Windows
from conversion_retrieval.evaluation.ranking import ScoreBlock
from conversion_retrieval.evaluation.window import ENGAGEMENT_TASK, EvaluationWindow, task_queries


def engagement_scores(
    validation: EvaluationWindow, test: EvaluationWindow, config: EvaluationConfig
) -> ScoreBlock | None:
    """A scorer of the test queries by item-kNN on engagements, None where histories hold none."""
    log, kept_before = engagements_only(test.log)
    if not len(log.item):
        return None
    windows = moved(validation.windows, kept_before)
    tuning = task_queries(validation.split, windows, ENGAGEMENT_TASK, validation.start)
    fitted = fit_baseline("item_knn", log, tuning, test.start, config).full
    return fitted.score_block(moved(test.windows, kept_before))


def engagements_only(log: EventLog) -> tuple[EventLog, NDArray[np.int64]]:
    """The log without conversions, and how many of its events precede each old position [E + 1]."""
    kept = ~np.isin(log.action, CONVERSION_ACTIONS)
    kept_before = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    engagements = EventLog(
        item=log.item[kept],
        action=log.action[kept],
        time=log.time[kept],
        available=log.available[kept],
        offsets=kept_before[log.offsets],
        num_items=log.num_items,
    )
    return engagements, kept_before


def moved(windows: Windows, kept_before: NDArray[np.int64]) -> Windows:
    """Windows of a log as windows of the same log without some events."""
    return Windows(starts=kept_before[windows.starts], ends=kept_before[windows.ends], times=windows.times)
