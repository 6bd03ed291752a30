"""One evaluation window: its queries, positives and slices, and what was known before it began."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.evaluation.baselines import QuerySet
from conversion_retrieval.evaluation.events import EventLog, Windows, seen_items
from conversion_retrieval.evaluation.ranking import ItemLists
from conversion_retrieval.evaluation.slices import slice_columns
from conversion_retrieval.features.dataset import Events, FeatureDataset, Split
from conversion_retrieval.schema import EVENT_TYPES

CONVERSION_TASK, ENGAGEMENT_TASK = 0, 1


@dataclass(frozen=True, kw_only=True)
class EvaluationWindow:
    """A split as it is judged. Positives are the rows of ``split.positives``, in that order, everywhere."""

    dataset: FeatureDataset
    split: Split
    log: EventLog

    @classmethod
    def of(cls, dataset: FeatureDataset, name: str) -> "EvaluationWindow":
        """The split called ``name`` of ``dataset``."""
        return cls(dataset=dataset, split=dataset.split(name), log=event_log(dataset))

    @property
    def start(self) -> int:
        """The time of the first query, microseconds: item statistics may use what was known before it, no more."""
        return int(self.split.time.min()) if len(self.split) else 0

    @property
    def snapshot(self) -> int:
        """The item performance known when the window began: that of its first query, -1 for none."""
        return int(self.split.snapshot[np.argmin(self.split.time)]) if len(self.split) else -1

    @property
    def positives(self) -> ItemLists:
        """The items relevant to each query."""
        return ItemLists(offsets=self.split.positives.offsets, items=self.split.positives.item)

    @cached_property
    def windows(self) -> Windows:
        """Each query's history in the event log."""
        return history_windows(self.log, self.split, self.split.known_end)

    @cached_property
    def seen(self) -> ItemLists:
        """The items in each query's history."""
        return seen_items(self.log, self.windows)

    @cached_property
    def users(self) -> NDArray[np.int64]:
        """Each query's user [Q] as a number below ``num_users``: the unit of resampling."""
        return np.unique(self.split.user, return_inverse=True)[1].astype(np.int64)

    @property
    def num_users(self) -> int:
        """Distinct users of the window."""
        return int(self.users.max(initial=-1)) + 1

    @cached_property
    def slices(self) -> Mapping[str, NDArray[np.str_]]:
        """Each positive's value in every slice family."""
        return slice_columns(self.dataset, self.split, self.log, self.start)

    @cached_property
    def groups(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which positives count as what: conversions, by their event type, and engagement; empty ones left out."""
        positives = self.split.positives
        masks = {"conversion": positives.task == CONVERSION_TASK}
        for name in ("checkout", "add_to_cart"):
            masks[name] = masks["conversion"] & (positives.event_type == EVENT_TYPES.index(name))
        masks["engagement"] = positives.task == ENGAGEMENT_TASK
        return {name: mask for name, mask in masks.items() if mask.any()}

    def task_queries(self, task: int) -> QuerySet:
        """The queries with positives of one task, and only those positives."""
        return task_queries(self.split, self.windows, task, self.start)


def event_log(dataset: FeatureDataset) -> EventLog:
    """What users did as a log, whichever of it the model's histories hold."""
    return log_of(dataset.known_events, dataset.num_items)


def log_of(events: Events, num_items: int) -> EventLog:
    """Flat events as a log."""
    return EventLog(
        item=np.asarray(events.item),
        action=np.asarray(events.action),
        time=np.asarray(events.time),
        available=np.asarray(events.available),
        offsets=np.asarray(events.offsets),
        num_items=num_items,
    )


def history_windows(log: EventLog, split: Split, ends: NDArray[np.int64]) -> Windows:
    """What each query of a split may know of its user in a log: all up to its ``ends`` [Q] there."""
    return Windows(starts=log.offsets[split.user], ends=ends, times=split.time)


def task_queries(split: Split, windows: Windows, task: int, start: int) -> QuerySet:
    """The queries of a split with positives of ``task``; nothing is fitted on events from ``start`` on."""
    chosen = split.positives.task == task
    counts = np.bincount(split.positives.query[chosen], minlength=len(split))
    rows = np.flatnonzero(counts)
    offsets = np.concatenate([[0], np.cumsum(counts[rows])])
    positives = ItemLists(offsets=offsets, items=split.positives.item[chosen])
    return QuerySet(windows=windows.rows(rows), positives=positives, start=start)
