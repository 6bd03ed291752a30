"""The training objective: softmax losses of all tasks and the advertiser-level loss, put together from small parts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from conversion_retrieval.lookup import look_up
from conversion_retrieval.losses.advertiser import Renormalize, advertiser_means
from conversion_retrieval.losses.config import LossConfig
from conversion_retrieval.losses.hard import add_hard_negatives
from conversion_retrieval.losses.labels import Contrast, Labels, Positives
from conversion_retrieval.losses.partition import log_partition

CONVERSION, ADVERTISER = "conversion", "advertiser"


@dataclass(frozen=True, kw_only=True)
class LossValues:
    """``total`` is what is minimised; ``sums`` and ``weights`` give each task's mean loss for the progress line."""

    total: Tensor
    sums: dict[str, Tensor]
    weights: dict[str, Tensor]


class Temperature(nn.Module):
    """What scores are divided by: learned in logarithms and clamped, fixed, or 1 for raw inner products."""

    log_value: Tensor

    def __init__(self, config: LossConfig, *, normalize: bool) -> None:
        super().__init__()
        self.range = (math.log(config.min_temperature), math.log(config.max_temperature))
        value = torch.tensor(math.log(config.temperature) if normalize else 0.0)
        if config.learn_temperature and normalize:
            self.log_value = nn.Parameter(value)
        else:
            self.register_buffer("log_value", value)

    def forward(self) -> Tensor:
        """The temperature, a scalar."""
        return self.log_value.exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring a learned value back into its range, after a step: clamped on its way into the loss, it would get no
        gradient outside and never return.
        """
        if isinstance(self.log_value, nn.Parameter):
            self.log_value.clamp_(*self.range)


class Objective(nn.Module):
    """Weighted sum over tasks of the mean softmax loss of a positive.

    The loss of positive p of row r is ``log(exp(s_p) + Z_r) - s_p`` with ``Z_r`` the sum over the row's negatives, so
    a query with ten positives costs one pass over the candidates.
    """

    def __init__(self, config: LossConfig, *, normalize: bool) -> None:
        super().__init__()
        self.config = config
        self.temperature = Temperature(config, normalize=normalize)

    def forward(
        self,
        queries: Mapping[str, Tensor],
        items: Mapping[str, Tensor],
        labels: Labels,
        renormalize: Renormalize,
    ) -> LossValues:
        """``queries`` [B, D] and ``items`` [M, D] are vectors by head; heads are ``unified`` or named after tasks."""
        rows = {head: self._rows(vectors, labels) for head, vectors in queries.items()}
        sums = {}
        for head, tasks in _tasks_by_head(queries, labels).items():
            log_z = self._item_partition(rows[head], items[head], labels)
            for task in tasks:
                sums[task] = positives_loss(rows[head], items[head], log_z, labels.positives[task])
        if labels.advertisers is not None:
            head = _head(queries, CONVERSION)
            sums[ADVERTISER] = self._advertiser_loss(rows[head], items[head], labels, renormalize)
        return self._combined(sums, labels)

    def _rows(self, queries: Tensor, labels: Labels) -> Tensor:
        """The scaled query vector of each row of the softmax, [R, D]."""
        scaled: Tensor = queries / self.temperature()
        return scaled if labels.row_query is None else scaled.index_select(0, labels.row_query)

    def _item_partition(self, rows: Tensor, items: Tensor, labels: Labels) -> Tensor:
        log_z = partition(rows, items, labels.items)
        if labels.hard is None:
            return log_z
        return add_hard_negatives(log_z, rows, items, labels.hard, self.config.hard_negative_weight)

    def _advertiser_loss(self, rows: Tensor, items: Tensor, labels: Labels, renormalize: Renormalize) -> Tensor:
        advertisers = labels.advertisers
        assert advertisers is not None
        means = renormalize(advertiser_means(items[: len(advertisers.group)], advertisers.group))
        return positives_loss(rows, means, partition(rows, means, advertisers.contrast), advertisers.positives)

    def _combined(self, sums: dict[str, Tensor], labels: Labels) -> LossValues:
        parts = [sums[name] * labels.scales[name] * self._weight(name) for name in sums]
        weights = {task: positives.weight.sum() for task, positives in labels.positives.items()}
        if labels.advertisers is not None:
            weights[ADVERTISER] = labels.advertisers.positives.weight.sum()
        return LossValues(
            total=torch.stack(parts).sum(), sums={name: value.detach() for name, value in sums.items()}, weights=weights
        )

    def _weight(self, name: str) -> float:
        return self.config.advertiser_weight if name == ADVERTISER else self.config.task_weights[name]


def partition(rows: Tensor, candidates: Tensor, contrast: Contrast) -> Tensor:
    """Log of the sum over each row's negatives, [R]."""
    return log_partition(
        rows, candidates[: contrast.num_candidates], excluded=contrast.excluded, offsets=contrast.offsets
    )


def positives_loss(rows: Tensor, candidates: Tensor, log_z: Tensor, positives: Positives) -> Tensor:
    """Weighted sum of ``-log softmax`` of the positives, each against its row's negatives: a scalar."""
    chosen = look_up(candidates, positives.candidate)
    scores = (look_up(rows, positives.row) * chosen).sum(-1)
    return (positives.weight * functional.softplus(log_z.gather(0, positives.row) - scores)).sum()


def _tasks_by_head(heads: Mapping[str, Tensor], labels: Labels) -> dict[str, list[str]]:
    tasks: dict[str, list[str]] = {}
    for task in labels.positives:
        tasks.setdefault(_head(heads, task), []).append(task)
    return tasks


def _head(heads: Mapping[str, Tensor], task: str) -> str:
    return task if task in heads else next(iter(heads))
