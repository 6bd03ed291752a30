"""One training step: encode, score, learn."""

from dataclasses import dataclass

import torch
from torch import Tensor

from conversion_retrieval.errors import UserError
from conversion_retrieval.losses.objective import LossValues, Objective
from conversion_retrieval.model.two_tower import TwoTower
from conversion_retrieval.training.batches import Batch
from conversion_retrieval.training.devices import autocast
from conversion_retrieval.training.distributed import gather_rows, sum_gradients
from conversion_retrieval.training.optimizer import Optimizer
from conversion_retrieval.training.shard import Shard


class DivergedError(UserError):
    """The loss or its gradient is not a finite number."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """Model, objective and optimiser of one process."""

    model: TwoTower
    objective: Objective
    optimizer: Optimizer
    shard: Shard
    device: torch.device
    bf16: bool
    seed: int

    def learn(self, batch: Batch, step: int) -> LossValues:
        """Take step number ``step``; raises ``DivergedError`` before a bad gradient reaches a weight.

        Random masks derive from (seed, step, rank), so that a resumed run repeats them.
        """
        self.model.train()
        # torch takes 64 bits, and a seed may be a time in milliseconds.
        torch.manual_seed(((self.seed * 1_000_003 + step) * 4096 + self.shard.rank) % 2**63)
        losses = self.losses(batch)
        _check_losses(losses, step)
        losses.total.backward()  # type: ignore[no-untyped-call]
        sum_gradients(self.optimizer.parameters.values())
        norm = self.optimizer.clip()
        if not torch.isfinite(norm):
            raise DivergedError(f"expected a finite gradient, found norm {norm.item()} at step {step}")
        self.optimizer.step(step)
        self.objective.temperature.clamp()
        return losses

    def losses(self, batch: Batch) -> LossValues:
        """The losses of this process's queries against the whole batch's items."""
        with autocast(self.device, bf16=self.bf16):
            embedded, referenced = self._embed(batch)
            items = self._item_vectors(batch, embedded)
            queries = self.model.query_vectors(batch.queries, referenced)
        losses: LossValues = self.objective(queries, items, batch.labels, self.model.renormalize)
        return losses

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings of the items to score, and of those in histories and contexts.

        One look-up for both where they share a table: each look-up's gradient is as large as the table.
        """
        if batch.full:
            embedded = self.model.embed_items(batch.entities)
            return embedded[:-1], self.model.embed_history_items(batch.entities, embedded)
        if self.model.history_embedding is not None:
            return self.model.embed_items(batch.items), self.model.embed_history_items(batch.referenced)
        scored, referenced = torch.split(
            self.model.embed_items(batch.entities), [len(batch.items), len(batch.referenced)]
        )
        return scored, referenced

    def _item_vectors(self, batch: Batch, embedded: Tensor) -> dict[str, Tensor]:
        total = len(batch.items)
        own = self.shard.slice(total)
        vectors = self.model.item_vectors(batch.items.rows(own), batch.performance[own], embedded[own])
        return {head: gather_rows(part, self.shard, total) for head, part in vectors.items()}


def _check_losses(losses: LossValues, step: int) -> None:
    if torch.isfinite(losses.total):
        return
    bad = [task for task, value in losses.sums.items() if not torch.isfinite(value)]
    raise DivergedError(f"expected a finite loss, found {losses.total.item()} at step {step} in task {', '.join(bad)}")
