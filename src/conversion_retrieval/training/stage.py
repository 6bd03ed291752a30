"""The ``train`` stage: features in, model artifact out."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from conversion_retrieval.config import PipelineConfig, config_digest, config_values
from conversion_retrieval.contracts import new_artifact, open_artifact, write_json
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.features.windows import RECENT
from conversion_retrieval.losses.objective import Objective
from conversion_retrieval.model.embedding import id_table_rows
from conversion_retrieval.model.inputs import EntityInputs, item_inputs
from conversion_retrieval.model.sizes import InputSizes
from conversion_retrieval.model.two_tower import TASKS, TwoTower, make_model
from conversion_retrieval.progress import say
from conversion_retrieval.training.averaging import WeightAverage
from conversion_retrieval.training.batches import BatchBuilder
from conversion_retrieval.training.checkpoint import Checkpoints, Position, common_latest
from conversion_retrieval.training.devices import choose_device, compile_towers, prepare_backend, uses_bf16
from conversion_retrieval.training.distributed import copy_from_first, process_group, wait_for_all
from conversion_retrieval.training.examples import Examples, num_batches, trained_positives
from conversion_retrieval.training.factors import fill_memory
from conversion_retrieval.training.interruption import StopRequest, stop_on_sigterm
from conversion_retrieval.training.loop import Trainer, total_steps
from conversion_retrieval.training.memory import MemoryMeter
from conversion_retrieval.training.optimizer import choose_optimizer, make_optimizer
from conversion_retrieval.training.popularity import choose_popularity, fit_popularity
from conversion_retrieval.training.recent import recent_trainer, refit_memory
from conversion_retrieval.training.recorder import Recorder, write_curve
from conversion_retrieval.training.shard import Shard
from conversion_retrieval.training.step import Learner
from conversion_retrieval.training.tower_share import choose_tower_share
from conversion_retrieval.training.validation import Validator


def train(
    *,
    features_dir: Path | str,
    spec_dir: Path | str,
    model_dir: Path | str,
    config: PipelineConfig,
    checkpoint_dir: Path | str | None = None,
    log_dir: Path | str | None = None,
) -> float:
    """Train on the train split, stop on the validation split, go on with what is recent, write the model.

    Returns the recall that its weights and the towers' share were chosen by, before they learned from the time of the
    validation split. With a ``checkpoint_dir`` the run resumes from what it finds there. Under ``torchrun`` all
    processes call this with the same arguments and the first writes. Raises ``UserError`` for data without positives,
    ``DivergedError`` for a loss that is not finite, ``Interrupted`` (a ``SystemExit``) after SIGTERM.
    """
    inputs = {
        "features": open_artifact(features_dir, kind="features").digest,
        "spec": open_artifact(spec_dir, kind="spec").digest,
    }
    device = choose_device(config.training.device, int(os.environ.get("LOCAL_RANK", "0")))
    memory = MemoryMeter(device)
    with process_group(device.type) as shard:
        dataset = FeatureDataset.open(features_dir, FeatureSpec.load(spec_dir))
        if config.training.recent_epochs:
            dataset.split_directory(RECENT)  # before hours of training
        config = with_trained_heads(config, dataset)
        checkpoints = _checkpoints(checkpoint_dir, config, inputs)
        trainer = make_trainer(
            dataset, config, device=device, shard=shard, checkpoints=checkpoints, log_dir=log_dir, memory=memory
        )
        with stop_on_sigterm() as stop:
            done = trainer.position.queries
            seconds = _fit(trainer, stop)
            best, footprint = choose_tower_share(trainer, stop), trainer.footprint()
            metrics = _metrics(trainer, seconds, queries=trainer.position.queries - done)
            curve = trainer.position.curve
            start, examples = time.monotonic(), trainer.builder.examples
            recent = recent_trainer(trainer, config, checkpoints=checkpoints, log_dir=log_dir)
            if recent is not None:
                trainer = recent  # the first one's moments and averages are free to go
                refit_memory(recent, examples, config)
                _fit(recent, stop)
                position = recent.position
                metrics[RECENT] = {
                    "queries": position.queries,  # in all epochs
                    "epochs": position.queries / recent.builder.examples.num_queries,
                    "steps": position.step,
                    "memory_fitted": recent.learner.model.memory is not None,
                    "seconds": round(time.monotonic() - start, 3),
                }
                curve = [*curve, *position.curve]
        footprint = footprint and memory.later(footprint)
        if footprint and footprint.ratio < 1:
            footprint = None  # what an earlier training in this process left is used again: the peak tells nothing
        metrics["memory"] = footprint.values() if footprint else None
        if shard.rank == 0:
            if footprint:
                say(str(footprint))
            with new_artifact(model_dir, kind="model", inputs=inputs) as working_dir:
                _write(working_dir, trainer.learner.model, curve, metrics, config)
                shutil.copytree(spec_dir, working_dir / "spec")
        wait_for_all()
    return best


def with_trained_heads(config: PipelineConfig, dataset: FeatureDataset) -> PipelineConfig:
    """One head for all tasks where nothing would train one of ``multi_head``: that of conversions, which is served, or
    that of engagements, which is measured as the engagement-only list.
    """
    if config.model.heads != "multi_head":
        return config
    trained = trained_positives(dataset.split("train"), config.losses.task_weights).task
    missing = [task for number, task in enumerate(TASKS) if not (trained == number).any()]
    if not missing:
        return config
    say(f"no {missing[0]} positives to train a head of their own: model.heads is unified instead of multi_head")
    return replace(config, model=replace(config.model, heads="unified"))


def _fit(trainer: Trainer, stop: StopRequest) -> float:
    """Train to the end; returns the seconds it took."""
    start = time.monotonic()
    trainer.fit(stop)
    trainer.recorder.close()
    return time.monotonic() - start


def make_trainer(
    dataset: FeatureDataset,
    config: PipelineConfig,
    *,
    device: torch.device | None = None,
    shard: Shard | None = None,
    checkpoints: Checkpoints | None = None,
    log_dir: Path | str | None = None,
    memory: MemoryMeter | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Trainer:
    """Put a run together, at the latest of its checkpoints if there are any; ``clock`` says when the next is due."""
    began = clock()
    device, shard = device or torch.device("cpu"), shard or Shard()
    builder = _batch_builder(dataset, config, device, shard)
    steps = total_steps(config.training, num_batches(builder.examples, config.training.batch_size))
    found = common_latest(checkpoints, shard, device)
    position = found.position if found else Position()
    writes = log_dir is not None and shard.rank == 0
    sizes = InputSizes.of(dataset.spec)
    position.optimizer = position.optimizer or choose_optimizer(
        config.training,
        device,
        processes=shard.world_size,
        full_softmax=builder.full,
        table_rows=id_table_rows(sizes.items.num_ids, config.model),
    )
    learner = _learner(sizes, config, steps, device, shard, sparse=position.optimizer == "adamw_sparse")
    validator = _validator(dataset, config, builder.catalogue, shard)
    if found is None:
        _start(learner.model, builder, validator, config)
    # Now: what validates the start would be compiled for its shapes.
    compile_towers(config.training, device, learner.model.query_tower.body, learner.model.item_tower.body)
    trainer = Trainer(
        learner=learner,
        average=WeightAverage(learner.model, config.training.average_decay),
        builder=builder,
        validator=validator,
        recorder=Recorder(position.curve, Path(str(log_dir)) if writes else None, first_step=position.step),
        checkpoints=checkpoints,
        config=config.training,
        position=position,
        memory=memory or MemoryMeter(device),
        clock=clock,
        saved_time=began,
    )
    if found:
        trainer.restore(found)
    _say_what_is_trained(trainer, config)
    return trainer


def _start(model: TwoTower, builder: BatchBuilder, validator: Validator, config: PipelineConfig) -> None:
    """Fill in what is computed from the data rather than learned step by step; the first process does it for all."""
    dataset, shard, ridges = builder.dataset, builder.shard, config.training.popularity_ridges
    fits = torch.zeros(len(ridges), len(dataset.spec.item_performance), device=builder.device)
    if shard.rank == 0 and model.bias is not None:
        fits.copy_(torch.from_numpy(fit_popularity(dataset, builder.examples, ridges, seed=config.model.seed)))
    if shard.rank == 0 and model.memory is not None:
        fill_memory(model.memory, dataset, (builder.examples,), config, before="validation")
    copy_from_first((*model.parameters(), *model.buffers(), fits), shard)
    if model.bias is not None:
        choose_popularity(model, fits, ridges, validator)


def _batch_builder(dataset: FeatureDataset, config: PipelineConfig, device: torch.device, shard: Shard) -> BatchBuilder:
    return BatchBuilder(
        dataset=dataset,
        examples=Examples.of(dataset.split("train"), dataset.item_advertiser, config.losses.task_weights),
        catalogue=item_inputs(dataset.items, device),
        losses=config.losses,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        device=device,
        shard=shard,
    )


def _validator(dataset: FeatureDataset, config: PipelineConfig, catalogue: EntityInputs, shard: Shard) -> Validator:
    return Validator(
        dataset=dataset, split=dataset.split("validation"), catalogue=catalogue, config=config, shard=shard
    )


def _learner(
    sizes: InputSizes, config: PipelineConfig, steps: int, device: torch.device, shard: Shard, *, sparse: bool
) -> Learner:
    bf16 = uses_bf16(config.training, device)
    prepare_backend(device, bf16=bf16)
    model = make_model(sizes, config.model, sparse=sparse).to(device)
    objective = Objective(config.losses, normalize=config.model.normalize).to(device)
    return Learner(
        model=model,
        objective=objective,
        optimizer=make_optimizer((("model", model), ("objective", objective)), config.training, steps),
        shard=shard,
        device=device,
        bf16=bf16,
        seed=config.training.seed,
    )


def _checkpoints(
    checkpoint_dir: Path | str | None, config: PipelineConfig, inputs: dict[str, str]
) -> Checkpoints | None:
    if not checkpoint_dir:
        return None
    sections = (config.model, config.losses, config.training.of_weights)
    fingerprint = "-".join([*(config_digest(section)[:16] for section in sections), *(d[:16] for d in inputs.values())])
    return Checkpoints(directory=Path(checkpoint_dir), fingerprint=fingerprint, keep=config.training.keep_checkpoints)


def _say_what_is_trained(trainer: Trainer, config: PipelineConfig) -> None:
    examples, num_items = trainer.builder.examples, trainer.builder.dataset.num_items
    tasks = examples.task_weight_per_query()
    for task in TASKS:
        if config.losses.task_weights.get(task, 0) > 0 and task not in tasks:
            say(f"no {task} positives in the training split: training on {', '.join(tasks)} alone")
    softmax = "full" if trainer.builder.full else "sampled"
    say(
        f"training on {examples.num_queries:,} queries with {len(examples.positives.item):,} positives, "
        f"{softmax} softmax over {num_items:,} items, {trainer.position.optimizer}, "
        f"{trainer.learner.device.type}, {'bf16' if trainer.learner.bf16 else 'fp32'}"
    )


def _write(
    directory: Path,
    model: TwoTower,
    curve: list[dict[str, Any]],
    metrics: dict[str, object],
    config: PipelineConfig,
) -> None:
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(weights, str(directory / "weights.safetensors"))
    write_json(directory / "config.json", config_values(config))
    write_curve(curve, directory / "training_curve.parquet")
    write_json(directory / "metrics.json", metrics)


def _metrics(trainer: Trainer, seconds: float, *, queries: int) -> dict[str, object]:
    """What is to be said about a training whose last ``queries`` took ``seconds``."""
    position, learner = trainer.position, trainer.learner
    return {
        "metric": trainer.validator.metric if trainer.validator is not None else None,
        "best_value": position.best_value if position.best_step >= 0 else None,
        "best_step": position.best_step,
        "tower_share": round(float(learner.model.tower_share), 6),  # kept in float32
        "share_values": {
            f"{share:g}": value
            for share, value in zip(trainer.config.tower_shares, position.share_values, strict=False)
        },
        "steps": position.step,
        "epochs": position.queries / trainer.builder.examples.num_queries,
        "seconds": round(seconds, 3),
        "queries_per_second": round(queries / max(seconds, 1e-9), 1),
        "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
        "embedding_dim": learner.model.output_dim,
        "temperature": float(learner.objective.temperature().detach()),
        "softmax": "full" if trainer.builder.full else "sampled",
        "optimizer": position.optimizer,
        "precision": "bf16" if learner.bf16 else "fp32",
        "device": learner.device.type,
        "processes": learner.shard.world_size,
        "tasks": trainer.builder.examples.task_weight_per_query(),
    }
