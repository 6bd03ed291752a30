"""What follows validation: a short training on the queries that came in since the training window's end.

Early stopping must be judged on labels that no step has seen. Once it is over, they are the newest labels there are,
and a model that never learns from them is promoted two windows old. Going on from the best weights for a few epochs
costs a fraction of a training that starts anew with them, and finds nearly as much (docs/experiments.md). The memory,
which no step learns, is fitted anew. Towers that do not count whole have shown that steps do them no good: they take
none that nothing validates.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Final

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.features.windows import RECENT
from conversion_retrieval.progress import say
from conversion_retrieval.training.averaging import WeightAverage
from conversion_retrieval.training.checkpoint import Checkpoints, Position, common_latest
from conversion_retrieval.training.config import TrainingConfig
from conversion_retrieval.training.distributed import copy_from_first
from conversion_retrieval.training.examples import Examples, num_batches, trained_positives
from conversion_retrieval.training.factors import fill_memory
from conversion_retrieval.training.loop import Trainer, total_steps
from conversion_retrieval.training.optimizer import make_optimizer
from conversion_retrieval.training.recorder import Recorder

WARMUP_SHARE: Final = 0.1  # of the steps, at most: moments start anew, weights do not


def recent_trainer(
    trainer: Trainer, config: PipelineConfig, *, checkpoints: Checkpoints | None, log_dir: Path | str | None
) -> Trainer | None:
    """What goes on from the weights in the model of ``trainer``, which has come to its end, without validations.

    Its checkpoints and events lie below those of ``trainer``. It takes no step where the towers do not count whole or
    ``max_steps`` are taken already. None where nothing recent is to be learned. ``refit_memory`` comes next.
    """
    dataset, before = trainer.builder.dataset, trainer.builder.examples
    if not config.training.recent_epochs:
        return None
    split = dataset.split(RECENT)
    tasks = before.task_weight_per_query()
    positives = trained_positives(split, {task: w for task, w in config.losses.task_weights.items() if task in tasks})
    if not len(positives.item):
        say("no positives since the end of the training window: weights and memory stay as they are")
        return None
    examples = Examples(split, positives, dataset.item_advertiser, before)
    taken, limit = trainer.position.step, config.training.max_steps
    batches = num_batches(examples, config.training.batch_size)
    training = _shortened(config.training, batches, max_steps=limit and max(limit - taken, 0))
    learner, checkpoints = trainer.learner, checkpoints.below(RECENT) if checkpoints else None
    takes_steps = learner.model.tower_share >= 1 and not (limit and taken >= limit)
    if not takes_steps and learner.model.memory is None:
        say("no step is taken on what came in since the end of the training window")
        return None
    steps = total_steps(training, batches) if takes_steps else 0
    found = common_latest(checkpoints, learner.shard, learner.device)
    position = found.position if found else Position(optimizer=trainer.position.optimizer)
    events = Path(log_dir) / RECENT if log_dir and learner.shard.rank == 0 else None
    named = (("model", learner.model), ("objective", learner.objective))
    recent = Trainer(
        name=RECENT,
        learner=replace(learner, optimizer=make_optimizer(named, training, steps)),
        average=WeightAverage(learner.model, training.average_decay),
        builder=replace(trainer.builder, examples=examples),
        validator=None,
        recorder=Recorder(position.curve, events, first_step=position.step),
        checkpoints=checkpoints,
        config=training,
        position=position,
        memory=trainer.memory,
        clock=trainer.clock,
        saved_time=trainer.clock(),
        last_checkpoint=trainer.last_checkpoint,
    )
    if found:
        recent.restore(found)
    if steps:
        say(f"going on with {examples.num_queries:,} queries since the end of the training window, {steps:,} steps")
    else:
        say("no step is taken on what came in since the end of the training window: the memory alone learns from it")
    return recent


def refit_memory(recent: Trainer, before: Examples, config: PipelineConfig) -> None:
    """Fit the memory to what ``recent`` and the training ``before`` it know; a run that goes on elsewhere has it.

    Apart from ``recent_trainer``, so that its caller can let go of the training before, whose moments and averages
    would be held beside the fit.
    """
    memory, shard = recent.learner.model.memory, recent.learner.shard
    if memory is None or recent.position.step:
        return
    if shard.rank == 0:
        fill_memory(memory, recent.builder.dataset, (before, recent.builder.examples), config, before="test")
    copy_from_first(memory.buffers(), shard)


def _shortened(config: TrainingConfig, batches_per_epoch: int, *, max_steps: int) -> TrainingConfig:
    """The configuration of the recent steps; ``max_steps`` are left, 0 is no limit."""
    shortened = replace(
        config,
        max_epochs=config.recent_epochs,
        max_steps=max_steps,
        learning_rate=config.learning_rate * config.recent_rate_share,
        embedding_learning_rate=config.embedding_learning_rate * config.recent_rate_share,
    )
    warmup = math.ceil(WARMUP_SHARE * total_steps(shortened, batches_per_epoch))
    return replace(shortened, warmup_steps=min(config.warmup_steps, warmup))
