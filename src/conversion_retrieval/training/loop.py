"""The training loop: batches in order, validation and checkpoints at their steps, until patience or steps run out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.losses.objective import LossValues
from conversion_retrieval.progress import Meter, meter, say
from conversion_retrieval.training.averaging import WeightAverage
from conversion_retrieval.training.batches import Batch, BatchBuilder
from conversion_retrieval.training.checkpoint import Checkpoint, Checkpoints, Position
from conversion_retrieval.training.config import TrainingConfig
from conversion_retrieval.training.distributed import any_process, sum_numbers
from conversion_retrieval.training.examples import Indices, batch_order, num_batches
from conversion_retrieval.training.interruption import Interrupted, StopRequest, stop_on_sigterm
from conversion_retrieval.training.memory import Footprint, MemoryMeter
from conversion_retrieval.training.prefetch import prefetch, prefetch_depth
from conversion_retrieval.training.recorder import Recorder
from conversion_retrieval.training.step import DivergedError, Learner
from conversion_retrieval.training.validation import Validator

STEPS_BETWEEN_LOSSES = 10


def total_steps(config: TrainingConfig, batches_per_epoch: int) -> int:
    """Steps of a run that no early stopping ends."""
    steps = config.max_epochs * batches_per_epoch
    return min(steps, config.max_steps) if config.max_steps else steps


@dataclass(kw_only=True)
class Trainer:
    """Everything that a run needs; ``fit`` moves ``position`` forward and leaves the best weights in the model.

    Without a ``validator`` they are those of the last step. ``name`` is how progress and the curve call the examples.
    ``clock`` counts seconds; by it, ``saved_time`` is when the last checkpoint was written, or the run began.
    """

    learner: Learner
    average: WeightAverage
    builder: BatchBuilder
    validator: Validator | None
    recorder: Recorder
    checkpoints: Checkpoints | None
    config: TrainingConfig
    position: Position
    memory: MemoryMeter
    clock: Callable[[], float]
    saved_time: float
    name: str = "train"
    best: dict[str, Tensor] = field(default_factory=dict)
    best_objective: dict[str, Tensor] = field(default_factory=dict)
    last_checkpoint: str = "none"

    def fit(self, stop: StopRequest | None = None) -> Position:
        """Train to the end. Raises ``Interrupted`` after SIGTERM, ``DivergedError`` for a loss that is not finite.

        With a ``stop`` of the caller, who then watches for SIGTERM, one that came before ends the run at once.
        """
        if stop is None:
            with stop_on_sigterm() as own:
                return self.fit(own)
        if any_process(stop.received, self.learner.device):
            self.leave()
        with meter(self.name, total=self._queries_to_come, unit="queries") as progress:
            self._finish_validation(stop)
            for batch in self._batches():
                self._step(batch, progress)
                self._validate_and_save(stop)
                if self._done:
                    break
        best = self.best or dict(self.average.model.named_parameters())
        self.learner.model.load_state_dict(self.learner.model.state_dict() | best)
        if self.best_objective:
            self.learner.objective.load_state_dict(self.best_objective)
        return self.position

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return num_batches(self.builder.examples, self.config.batch_size)

    @property
    def _queries_to_come(self) -> float:
        share = (self.learner.optimizer.total_steps - self.position.step) / self.steps_per_epoch
        return share * self.builder.examples.num_queries

    @property
    def _done(self) -> bool:
        exhausted = self.position.stale_validations >= self.config.patience
        return exhausted or self.position.step >= self.learner.optimizer.total_steps

    def _batches(self) -> Iterator[Batch]:
        """Batches from the current position on, made ahead where the device leaves the time."""
        if self._done:
            return iter(())
        depth = prefetch_depth(self.learner.device)
        return prefetch(self._build, self._places(), depth=depth)

    def _build(self, place: tuple[int, int, int, Indices]) -> Batch:
        epoch, index, snapshot, rows = place
        return self.builder.build(snapshot, rows, epoch=epoch, index=index)

    def _places(self) -> Iterator[tuple[int, int, int, Indices]]:
        """(epoch, index, snapshot, rows) of the batches to come."""
        for epoch in range(self.position.epoch, self.config.max_epochs):
            order = batch_order(self.builder.examples, self.config.batch_size, self.config.seed, epoch)
            start = self.position.index if epoch == self.position.epoch else 0
            for index in range(start, len(order)):
                yield epoch, index, *order[index]

    def _step(self, batch: Batch, progress: Meter) -> None:
        try:
            with self.memory.first_step(batch, self.builder.catalogue, self.learner.optimizer.parameters):
                losses = self.learner.learn(batch, self.position.step)
        except DivergedError as error:
            raise DivergedError(f"{error}; the last good checkpoint is {self.last_checkpoint}") from None
        self._advance(batch)
        self.average.update(self.position.step)
        note = ""
        if self.position.step % STEPS_BETWEEN_LOSSES == 0 or self.position.index == 0:
            note = self._record_losses(losses)
        progress.advance(batch.num_queries, note)

    def _advance(self, batch: Batch) -> None:
        self.position.step += 1
        self.position.queries += batch.num_queries
        self.position.index += 1
        if self.position.index == self.steps_per_epoch:
            self.position.epoch, self.position.index = self.position.epoch + 1, 0

    def _record_losses(self, losses: LossValues) -> str:
        names = list(losses.sums)
        values = [float(losses.sums[n]) for n in names] + [float(losses.weights[n]) for n in names]
        summed = sum_numbers(values, self.learner.device)
        means = {n: s / w for n, s, w in zip(names, summed[: len(names)], summed[len(names) :], strict=True) if w}
        temperature = {"temperature": float(self.learner.objective.temperature().detach())}
        self._record(self.name, {f"{name}/loss": value for name, value in means.items()} | temperature)
        return f"step {self.position.step}, " + ", ".join(f"{name} {value:.4f}" for name, value in means.items())

    def _record(self, split: str, values: dict[str, float]) -> None:
        self.recorder.record(step=self.position.step, epoch=self.position.epoch, split=split, values=values)

    def _validate_and_save(self, stop: StopRequest) -> None:
        stopping = any_process(stop.received, self.learner.device)
        if self._validation_is_due and self._minutes_are_over and not stopping:
            self.save()  # or a validation would add its own minutes to what may be lost
        validated = self._validation_is_due and not stopping and self._validate(stop)
        stopping = stopping or (self._validation_is_due and not validated)
        if stopping or self._checkpoint_is_due(validated=validated):
            self.save()
        if stopping:
            self.leave()

    def _finish_validation(self, stop: StopRequest) -> None:
        """A run stopped between a step and the end of its validation owes it."""
        owed = self.position.step and self._validation_is_due and self.position.validated_step < self.position.step
        if owed and not self._validate(stop):
            self.leave()

    def leave(self) -> NoReturn:
        """End the run after SIGTERM: ``Interrupted``."""
        say(f"stopped by SIGTERM after step {self.position.step}; checkpoint: {self.last_checkpoint}")
        raise Interrupted

    @property
    def _validation_is_due(self) -> bool:
        if self.position.step >= self.learner.optimizer.total_steps:
            return True
        every = self.config.validate_every_steps
        return self.position.step % every == 0 if every else self.position.index == 0

    def _checkpoint_is_due(self, *, validated: bool) -> bool:
        every = self.config.checkpoint_every_steps
        return self._done or self._minutes_are_over or (self.position.step % every == 0 if every else validated)

    @property
    def _minutes_are_over(self) -> bool:
        """By the clock of this process alone: the others write nothing, and wait for the first one's next step."""
        every = 60 * self.config.checkpoint_every_minutes
        return 0 < every <= self.clock() - self.saved_time

    def _validate(self, stop: StopRequest) -> bool:
        """Whether the validation, if there is anything to validate on, came to its end."""
        if self.validator is not None and self.validator.can_measure:
            values = self.validator.measure(self.average.model, stop)
            if values is None:
                return False
            self._judge(values, values[self.validator.metric])
        self.position.validated_step = self.position.step
        return True

    def _judge(self, values: dict[str, float], value: float) -> None:
        self._record("validation", values)
        improved = value > self.position.best_value
        if improved:
            self.position.best_value, self.position.best_step = value, self.position.step
            self.best, self.best_objective = _parameters(self.average.model), _parameters(self.learner.objective)
        self.position.stale_validations = 0 if improved else self.position.stale_validations + 1
        say(_validation_line(self.position, values))

    def footprint(self) -> Footprint | None:
        """The memory taken so far beside what must be held."""
        dataset, catalogue = self.builder.dataset, self.builder.catalogue
        validated = self.validator.split if self.validator is not None else None
        on_cpu = self.learner.device.type == "cpu"
        return self.memory.footprint(
            tables=(dataset, self.builder.examples.split, validated) if on_cpu else catalogue,
            parameters=(self.learner.optimizer.parameters, dict(self.learner.model.named_buffers())),
            optimizer_state=(self.learner.optimizer.state(), self.average.state()),
        )

    def save(self) -> None:
        """Write a checkpoint, where there is a directory for it; one process writes.

        One that cannot be written, to a volume that is full, is said and left out: the training may well end without.
        """
        self.saved_time = self.clock()
        if self.checkpoints is None or self.learner.shard.rank:
            return
        checkpoint = Checkpoint(position=self.position, tensors=self._tensors())
        try:
            self.last_checkpoint = str(self.checkpoints.save(checkpoint))
        except (OSError, SafetensorError, UserError) as error:
            step, last = self.position.step, self.last_checkpoint
            say(f"no checkpoint after step {step}: {one_line(error)}; training goes on, the last one is {last}")

    def _tensors(self) -> dict[str, Tensor]:
        groups = {
            "model": self.learner.model.state_dict(),
            "objective": self.learner.objective.state_dict(),
            "optimizer": self.learner.optimizer.state(),
            "average": self.average.state(),
            "best": self.best,
            "best_objective": self.best_objective,
        }
        return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        try:
            self.learner.model.load_state_dict(checkpoint.group("model"))
            self.learner.objective.load_state_dict(checkpoint.group("objective"))
            self.learner.optimizer.load_state(checkpoint.group("optimizer"))
            self.average.load_state(checkpoint.group("average"))
        except (RuntimeError, KeyError) as error:
            raise UserError(f"expected a checkpoint of this model, found: {one_line(error)}") from None
        self.best, self.best_objective = (
            {name: tensor.to(self.learner.device) for name, tensor in checkpoint.group(group).items()}
            for group in ("best", "best_objective")
        )
        self.position, self.last_checkpoint = checkpoint.position, str(checkpoint.path or "none")
        self.recorder.curve = self.position.curve


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    """A copy of what steps change; buffers, the memory's among them, stay as they are."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def _validation_line(position: Position, values: dict[str, float]) -> str:
    shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    return f"validation after step {position.step} (epoch {position.epoch}): {shown}; best {position.best_value:.4f}"
