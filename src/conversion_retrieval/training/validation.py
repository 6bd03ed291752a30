"""Validation while training: exact recall over the whole catalogue, because a wrong Q shows nowhere else."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.evaluation.events import seen_items
from conversion_retrieval.evaluation.ranking import DotProductScores, ItemLists, score_ranks
from conversion_retrieval.evaluation.window import EvaluationWindow
from conversion_retrieval.features.dataset import FeatureDataset, Split
from conversion_retrieval.model.inputs import EntityInputs
from conversion_retrieval.model.two_tower import TASKS, TwoTower
from conversion_retrieval.progress import say
from conversion_retrieval.training.config import METRIC
from conversion_retrieval.training.distributed import sum_numbers
from conversion_retrieval.training.examples import Indices, expand
from conversion_retrieval.training.load import LoadedModel, embed_catalogue
from conversion_retrieval.training.shard import Shard


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
        return EvaluationWindow.of(self.dataset, "validation")

    @cached_property
    def metric(self) -> str:
        """The metric that stops training; falls back to engagement, saying so, where there are no conversions."""
        wanted = self.config.training.early_stopping_metric
        if self._has_positives(wanted):
            return wanted
        task = wanted.partition("/")[0]
        other = wanted.replace(task, TASKS[1 - TASKS.index(task)])
        say(f"no {task} positives in the validation split: training stops on {other}, {self._counts}")
        return other

    @cached_property
    def can_measure(self) -> bool:
        """Whether there is anything to validate on."""
        return self._has_positives(self.metric)

    @property
    def k(self) -> int:
        """The cut-off."""
        match = METRIC.fullmatch(self.config.training.early_stopping_metric)
        assert match
        return int(match[3])

    @cached_property
    def rows(self) -> Indices:
        """The queries validated on: all with positives, or a seeded sample of them."""
        rows = np.flatnonzero(np.diff(self.split.positives.offsets))
        limit = self.config.training.max_validation_queries
        if len(rows) <= limit:
            return rows
        return np.sort(np.random.default_rng(self.config.training.seed).choice(rows, limit, replace=False))

    @torch.no_grad()
    def measure(self, model: TwoTower) -> dict[str, float]:
        """``task/recall@k`` and ``task/new_recall@k`` (items new to the user) for each task that has positives."""
        loaded = LoadedModel(
            model=model, spec=self.dataset.spec, config=self.config, device=self.catalogue.id_code.device
        )
        loaded._catalogues[id(self.dataset)] = embed_catalogue(model.eval(), self.dataset, self.catalogue)
        snapshots = self.split.snapshot[self.rows]
        counts = np.zeros((len(TASKS), 2, 2))
        for snapshot in np.unique(snapshots):
            rows = self.rows[snapshots == snapshot]
            rows = rows[self.shard.slice(len(rows))]
            counts += self._count(loaded, int(snapshot), rows)
        summed = sum_numbers(counts.ravel().tolist(), self.catalogue.id_code.device)
        return self._recalls(np.array(summed).reshape(counts.shape))

    def _count(self, loaded: LoadedModel, snapshot: int, rows: Indices) -> NDArray[np.float64]:
        """[task, all or new to the user, hits or positives].

        Items new to the user are ranked without those that the user had before, as the evaluation does.
        """
        positives = self.split.positives
        owner, flat = expand(positives.offsets, rows)
        lengths = np.diff(positives.offsets)[rows]
        lists = ItemLists(offsets=np.concatenate([[0], np.cumsum(lengths)]), items=positives.item[flat])
        ranks = score_ranks(
            DotProductScores(
                loaded.encode_queries(self.dataset, self.split, rows), loaded.encode_items(self.dataset, snapshot)
            ),
            self.dataset.num_items,
            lists,
            removed=seen_items(self.window.log, self.window.windows.rows(rows)),
        )
        key = owner * self.dataset.num_items + positives.item[flat]
        counts = np.zeros((len(TASKS), 2, 2))
        for task in range(len(TASKS)):
            for only_new, rank in ((False, ranks.full), (True, ranks.without_removed)):
                chosen = (positives.task[flat] == task) & (positives.new_to_user[flat] | (not only_new))
                _, first = np.unique(key[chosen], return_index=True)
                found = rank[chosen][first]
                counts[task, int(only_new)] = ((found >= 0) & (found < self.k)).sum(), len(first)
        return counts

    def _recalls(self, counts: NDArray[np.float64]) -> dict[str, float]:
        names = [
            (t, n, f"{task}/{kind}recall@{self.k}")
            for t, task in enumerate(TASKS)
            for n, kind in enumerate(("", "new_"))
        ]
        return {name: counts[t, n, 0] / counts[t, n, 1] for t, n, name in names if counts[t, n, 1]}

    def _has_positives(self, metric: str) -> bool:
        match = METRIC.fullmatch(metric)
        assert match
        positives = self.split.positives
        return bool(((positives.task == TASKS.index(match[1])) & (positives.new_to_user | (not match[2]))).any())

    @property
    def _counts(self) -> str:
        return f"{np.count_nonzero(self.split.positives.task == 1):,} engagements there"
