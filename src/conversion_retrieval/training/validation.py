"""Validation while training: exact recall over the whole catalogue, because a wrong Q shows nowhere else."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.evaluation.events import seen_items
from conversion_retrieval.evaluation.ranking import DotProductScores, ItemLists, score_ranks
from conversion_retrieval.evaluation.window import EvaluationWindow, event_log
from conversion_retrieval.features.dataset import FeatureDataset, Split
from conversion_retrieval.model.inputs import EntityInputs, as_tensor
from conversion_retrieval.model.two_tower import TASKS, TwoTower
from conversion_retrieval.progress import say
from conversion_retrieval.training.config import METRIC
from conversion_retrieval.training.distributed import sum_numbers
from conversion_retrieval.training.examples import Indices, expand
from conversion_retrieval.training.interruption import Abandoned, StopRequest
from conversion_retrieval.training.load import LoadedModel, encode_catalogue
from conversion_retrieval.training.shard import Shard

COUNTS: Final = (len(TASKS), 2, 2)
# Scores of the queries that are ranked at once: not more than training holds anyway.
SCORE_BYTES: Final = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class Group:
    """Queries ``rows`` of one snapshot, and what they are measured by.

    ``positives`` and the items ``seen`` before are by query; ``flat`` [P] are the positives' rows in the split, ``key``
    [P] is equal for equal (query, item).
    """

    snapshot: int
    rows: Indices
    key: Indices
    flat: Indices
    positives: ItemLists
    seen: ItemLists


@dataclass(frozen=True, kw_only=True)
class Validator:
    """Micro recall@k on distinct (query, item) positives of the validation split, for each task."""

    dataset: FeatureDataset
    split: Split
    catalogue: EntityInputs
    config: PipelineConfig
    shard: Shard

    @cached_property
    def window(self) -> EvaluationWindow:
        """The validation split with the users' full histories."""
        return EvaluationWindow(dataset=self.dataset, split=self.split, log=event_log(self.dataset))

    @cached_property
    def metric(self) -> str:
        """The metric that stops training; falls back to engagement, saying so, where there are no conversions."""
        wanted = f"{self.config.training.early_stopping_metric.partition('@')[0]}@{self.k}"
        if self._has_positives(wanted):
            return wanted
        task, _, kind = wanted.partition("/")
        other = wanted.replace(task, TASKS[1 - TASKS.index(task)])
        new = " of items new to the user" if kind.startswith("new_") else ""
        say(f"no {task} positives{new} in the validation split: training stops on {other}, {self._engagements}")
        return other

    @cached_property
    def can_measure(self) -> bool:
        """Whether there is anything to validate on."""
        return self._has_positives(self.metric)

    @cached_property
    def k(self) -> int:
        """The cut-off: that of the early stopping metric, or a tenth of a catalogue that has no more items, saying so.

        In a list of the whole catalogue every model finds everything, and none would be chosen over the first.
        """
        match = METRIC.fullmatch(self.config.training.early_stopping_metric)
        assert match
        wanted, num_items = int(match[3]), self.dataset.num_items
        if wanted < num_items:
            return wanted
        k = max(1, num_items // 10)
        say(f"{num_items} items all fit into a list of {wanted}: training stops on recall@{k}")
        return k

    @cached_property
    def rows(self) -> Indices:
        """The queries validated on: all with positives, or a seeded sample of them.

        Those that count for the metric come first: where conversions are rare, it would else be judged on a few.
        """
        positives = self.split.positives
        rows = np.flatnonzero(np.diff(positives.offsets))
        limit = self.config.training.max_validation_queries
        if len(rows) <= limit:
            return rows
        counted_before = np.concatenate([[0], np.cumsum(self._counting(self.metric))])
        counts = np.diff(counted_before[positives.offsets])[rows] > 0
        shuffled = np.random.default_rng(self.config.training.seed).permutation(len(rows))
        first = shuffled[np.argsort(~counts[shuffled], kind="stable")[:limit]]
        return np.sort(rows[first])

    @cached_property
    def groups(self) -> tuple["Group", ...]:
        """Our queries by snapshot, with everything about them that no model changes."""
        snapshots = self.split.snapshot[self.rows]
        chosen = ((int(s), self.rows[snapshots == s]) for s in np.unique(snapshots))
        return tuple(self._group(snapshot, rows[self.shard.slice(len(rows))]) for snapshot, rows in chosen)

    def measure(
        self, model: TwoTower, stop: StopRequest | None = None, queries: list[NDArray[np.float32]] | None = None
    ) -> dict[str, float] | None:
        """``task/recall@k`` and ``task/new_recall@k`` (items new to the user) for each task that has positives.

        ``queries`` are the model's ``query_vectors``, where the caller knows that they have not changed since.
        None where a ``stop`` request came first, to any process; then all of them return at once.
        """
        stop, counts, abandoned = stop or StopRequest(), np.zeros(COUNTS), 0.0
        try:
            with stop.abandoning():
                counts = self._counts(model, queries)
        except Abandoned:
            abandoned = 1.0
        *summed, abandoning = sum_numbers([*counts.ravel().tolist(), abandoned], self.catalogue.id_code.device)
        return None if abandoning else self._recalls(np.array(summed).reshape(COUNTS))

    def query_vectors(self, model: TwoTower) -> list[NDArray[np.float32]]:
        """The queries validated on as vectors [B, output_dim], an array for each of ``groups``."""
        loaded = LoadedModel(model=model, spec=self.dataset.spec, config=self.config, device=self._device)
        loaded.hold(self.dataset, self.catalogue)
        return [loaded.encode_queries(self.dataset, self.split, group.rows) for group in self.groups]

    def _group(self, snapshot: int, rows: Indices) -> "Group":
        offsets = self.split.positives.offsets
        owner, flat = expand(offsets, rows)
        lengths = np.concatenate([[0], np.cumsum(np.diff(offsets)[rows])])
        return Group(
            snapshot=snapshot,
            rows=rows,
            key=owner * self.dataset.num_items + self.split.positives.item[flat],
            flat=flat,
            positives=ItemLists(offsets=lengths, items=self.split.positives.item[flat]),
            seen=seen_items(self.window.log, self.window.windows.rows(rows)),
        )

    def _counts(self, model: TwoTower, queries: list[NDArray[np.float32]] | None) -> NDArray[np.float64]:
        """[task, all or new to the user, hits or positives]."""
        # Queries first: the catalogue's embedding is gone when its vectors are made.
        queries = self.query_vectors(model) if queries is None else queries
        counts = np.zeros(COUNTS)
        for group, vectors in zip(self.groups, queries, strict=True):
            performance = as_tensor(self.dataset.performance(group.snapshot), self._device, torch.float32)
            counts += self._count(group, vectors, encode_catalogue(model, self.catalogue, performance))
        return counts

    def _count(self, group: "Group", queries: NDArray[np.float32], items: NDArray[np.float32]) -> NDArray[np.float64]:
        """Items new to the user are ranked without those that the user had before, as the evaluation does."""
        block = max(1, SCORE_BYTES // (4 * max(len(items), 1)))
        scores = DotProductScores(queries, items, block=block)
        ranks = score_ranks(scores, len(items), group.positives, block=block, removed=group.seen)
        positives, counts = self.split.positives, np.zeros(COUNTS)
        for task in range(len(TASKS)):
            for only_new, rank in ((False, ranks.full), (True, ranks.without_removed)):
                chosen = (positives.task[group.flat] == task) & (positives.new_to_user[group.flat] | (not only_new))
                _, first = np.unique(group.key[chosen], return_index=True)
                found = rank[chosen][first]
                counts[task, int(only_new)] = ((found >= 0) & (found < self.k)).sum(), len(first)
        return counts

    @property
    def _device(self) -> torch.device:
        return self.catalogue.id_code.device

    def _recalls(self, counts: NDArray[np.float64]) -> dict[str, float]:
        names = [
            (t, n, f"{task}/{kind}recall@{self.k}")
            for t, task in enumerate(TASKS)
            for n, kind in enumerate(("", "new_"))
        ]
        return {name: counts[t, n, 0] / counts[t, n, 1] for t, n, name in names if counts[t, n, 1]}

    def _has_positives(self, metric: str) -> bool:
        return bool(self._counting(metric).any())

    def _counting(self, metric: str) -> NDArray[np.bool_]:
        """Which positives a metric counts, [P]."""
        match = METRIC.fullmatch(metric)
        assert match
        positives = self.split.positives
        counting: NDArray[np.bool_] = positives.task == TASKS.index(match[1])
        return counting & positives.new_to_user if match[2] else counting

    @property
    def _engagements(self) -> str:
        return f"{np.count_nonzero(self.split.positives.task == 1):,} engagements there"
