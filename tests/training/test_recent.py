"""Steps on what came in since the training window's end, in a world whose users have changed their minds."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.features.dataset import FeatureDataset, Split
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.model.memory import Memory
from conversion_retrieval.training.checkpoint import Checkpoints
from conversion_retrieval.training.examples import Examples
from conversion_retrieval.training.factors import fill_memory
from conversion_retrieval.training.interruption import Interrupted, StopRequest
from conversion_retrieval.training.loop import Trainer
from conversion_retrieval.training.recent import recent_trainer, refit_memory
from conversion_retrieval.training.stage import make_trainer
from tests.training.runs import built_config, small_config
from tests.training.separable import SeparableWorld, separable_world

GROUP = 10


def changed(split: Split) -> Split:
    """Every user now wants the next group's items."""
    item = ((split.positives.item + GROUP) % 200).astype(np.int32)
    return dataclasses.replace(split, positives=dataclasses.replace(split.positives, item=item))


def changed_world(*, tasks: tuple[int, ...] = (0, 1)) -> SeparableWorld:
    world = separable_world(num_users=120, tasks=tasks)
    world.splits["recent"] = changed(world.splits["train"])
    return world


def config(**training: object) -> PipelineConfig:
    return small_config(training={"max_epochs": 3, "batch_size": 64, **training})


def trained(world: SeparableWorld, settings: PipelineConfig, directory: Path | None = None) -> Trainer:
    trainer = make_trainer(world, settings, checkpoints=checkpoints(directory))
    trainer.fit()
    return trainer


def checkpoints(directory: Path | None) -> Checkpoints | None:
    return Checkpoints(directory=directory, fingerprint="run", keep=2) if directory else None


def go_on(trainer: Trainer, settings: PipelineConfig, directory: Path | None = None) -> Trainer | None:
    recent = recent_trainer(trainer, settings, checkpoints=checkpoints(directory), log_dir=None)
    if recent is not None:
        refit_memory(recent, trainer.builder.examples, settings)
    return recent


def recall(trainer: Trainer, world: SeparableWorld) -> float:
    """Of the changed wishes."""
    split = changed(world.splits["validation"])
    return dataclasses.replace(trainer.validator, split=split).measure(trainer.learner.model)["conversion/recall@10"]


def test_recent_steps_teach_what_has_changed():
    world, settings = changed_world(), config(recent_epochs=6, recent_rate_share=1.0)
    trainer = trained(world, settings)
    before = recall(trainer, world)
    recent = go_on(trainer, settings)
    recent.fit()
    assert before < 0.1  # 10 of 200 items by chance: 0.05
    assert recall(trainer, world) > 0.3


def test_they_go_on_from_the_best_weights_at_a_share_of_the_rate():
    world, settings = changed_world(), config(recent_epochs=2, recent_rate_share=0.25, embedding_learning_rate=4e-3)
    trainer = trained(world, settings)
    best = {name: tensor.clone() for name, tensor in trainer.best.items()}
    recent = go_on(trainer, settings)
    for name, tensor in recent.learner.model.named_parameters():
        assert torch.equal(tensor, best[name]), name
    rates = {group["initial_lr"] for part in recent.learner.optimizer.parts for group in part.param_groups}
    assert rates == {1e-3, 2.5e-3}
    recent.fit()
    assert recent.position.step == 2 * trainer.steps_per_epoch
    assert {row["split"] for row in recent.position.curve} == {"recent"}


@pytest.mark.parametrize("fit", ["reduced_rank", "svd"])
def test_memory_is_fitted_anew_with_what_came_in(built, fit):
    model = {"memory_dim": 8, "memory_fit": fit, "normalize": False}
    settings = built_config(model=model, max_epochs=1)
    dataset = FeatureDataset.open(built["features_dir"], FeatureSpec.load(built["spec_dir"]))
    trainer = make_trainer(dataset, settings)
    trainer.fit()
    before = trainer.learner.model.memory.factors.clone()
    recent = go_on(trainer, settings)
    expected = Memory(dataset.spec.item_ids.rows, settings.model)
    parts = (trainer.builder.examples, recent.builder.examples)
    fill_memory(expected, dataset, parts, settings, before="test")
    for memory in (recent.learner.model.memory, recent.average.model.memory):
        assert torch.equal(memory.factors, expected.factors)
    assert not torch.equal(before, expected.factors)


def test_engagements_alone_do_not_enter_a_memory_of_conversions(built):
    settings = built_config(model={"memory_dim": 8, "normalize": False}, max_epochs=1)
    dataset = FeatureDataset.open(built["features_dir"], FeatureSpec.load(built["spec_dir"]))
    trainer = make_trainer(dataset, settings)
    trainer.fit()
    before = trainer.learner.model.memory.factors.clone()
    split = dataset.split("recent")
    clicks = dataclasses.replace(split.positives, task=np.ones_like(split.positives.task))
    engaged = Examples.of(dataclasses.replace(split, positives=clicks), dataset.item_advertiser, {"engagement": 1.0})
    # None of the training queries counts as one that comes again.
    engaged = dataclasses.replace(engaged, split=dataclasses.replace(engaged.split, time=engaged.split.time + 1))
    fill_memory(
        trainer.learner.model.memory, dataset, (trainer.builder.examples, engaged), settings, before="validation"
    )
    torch.testing.assert_close(trainer.learner.model.memory.factors, before)


def test_towers_that_do_not_count_whole_take_no_steps_but_the_memory_is_fitted_anew(built):
    settings = built_config(model={"memory_dim": 8, "normalize": False}, max_epochs=1)
    dataset = FeatureDataset.open(built["features_dir"], FeatureSpec.load(built["spec_dir"]))
    trainer = make_trainer(dataset, settings)
    trainer.fit()
    trainer.learner.model.tower_share.fill_(0.5)
    before = {name: tensor.clone() for name, tensor in trainer.learner.model.state_dict().items()}
    recent = go_on(trainer, settings)
    recent.fit()
    after = recent.learner.model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "memory.factors",
        "memory.history_factors",
    }
    assert recent.position.step == 0


def test_where_neither_towers_nor_a_memory_would_learn_nothing_follows():
    trainer = trained(changed_world(), config())
    trainer.learner.model.tower_share.fill_(0.5)
    assert go_on(trainer, config()) is None


@pytest.mark.parametrize("stopped_after", [3, 8])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stopped_after):
    settings = config(checkpoint_every_steps=2)
    whole = go_on(trained(changed_world(), settings), settings)
    whole.fit()
    stopped = go_on(trained(changed_world(), settings, tmp_path), settings, tmp_path)
    learn = stopped.learner.learn

    def fail(batch, step):
        if step == stopped_after:
            raise RuntimeError("killed")
        return learn(batch, step)

    object.__setattr__(stopped.learner, "learn", fail)
    with pytest.raises(RuntimeError, match="killed"):
        stopped.fit()
    again = trained(changed_world(), settings, tmp_path)
    resumed = go_on(again, settings, tmp_path)
    assert resumed.position.step == stopped_after // 2 * 2
    resumed.fit()
    expected = whole.learner.model.state_dict()
    for name, tensor in resumed.learner.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_positive_weighs_what_it_weighed_before():
    world = changed_world()
    split = world.splits["recent"]
    rare = dataclasses.replace(split.positives, task=np.ones_like(split.positives.task))
    rare.task[:1] = 0  # a single conversion must not count as much as all of them
    world.splits["recent"] = dataclasses.replace(split, positives=rare)
    trainer = trained(world, config())
    weights = trainer.builder.examples.task_weight_per_query()
    assert go_on(trainer, config()).builder.label_maker.task_weight_per_query == weights


@pytest.mark.parametrize("recent_tasks", [(0,), (1,)])
def test_a_task_may_have_no_recent_positives(recent_tasks):
    world = changed_world()
    split = world.splits["recent"]
    task = np.full(len(split.positives), recent_tasks[0], np.int8)
    world.splits["recent"] = dataclasses.replace(split, positives=dataclasses.replace(split.positives, task=task))
    recent = go_on(trained(world, config()), config())
    recent.fit()
    assert all(torch.isfinite(p).all() for p in recent.learner.model.parameters())


def test_a_task_that_was_not_trained_before_teaches_nothing_now():
    world = changed_world(tasks=(1,))
    split = world.splits["recent"]
    task = np.zeros(len(split.positives), np.int8)
    world.splits["recent"] = dataclasses.replace(split, positives=dataclasses.replace(split.positives, task=task))
    assert go_on(trained(world, config()), config()) is None


def test_a_users_earlier_positives_are_known_too():
    world, settings = changed_world(), config()
    examples = go_on(trained(world, settings), settings).builder.examples
    position, found = examples.items_by_user.of_users(np.arange(3))
    for user in range(3):
        splits = (world.splits["train"], world.splits["recent"])
        wanted = [split.positives.item[split.user[split.positives.query] == user] for split in splits]
        assert found[position == user].tolist() == sorted(set(np.concatenate(wanted).tolist()))


@pytest.mark.parametrize(("max_steps", "left"), [(0, 16), (40, 16), (30, 6), (24, 0), (9, 0)])
def test_max_steps_limits_all_steps(max_steps, left):
    settings = config(max_steps=max_steps, recent_epochs=2)
    recent = go_on(trained(changed_world(), settings), settings)
    if not left:
        assert recent is None
        return
    recent.fit()
    assert recent.position.step == left


@pytest.mark.parametrize(("warmup_steps", "expected"), [(0, 0), (1, 1), (5, 2)])
def test_the_rate_warms_up_over_a_tenth_of_the_steps(warmup_steps, expected):
    settings = config(warmup_steps=warmup_steps, recent_epochs=2)  # 16 steps
    recent = go_on(trained(changed_world(), settings), settings)
    assert recent.config.warmup_steps == recent.learner.optimizer.config.warmup_steps == expected


def test_the_average_of_the_weights_is_kept():
    settings = config(recent_epochs=1)
    recent = go_on(trained(changed_world(), settings), settings)
    name = "query_tower.body.mlp.0.weight"
    weight = recent.learner.model.get_parameter(name)
    expected, learn = weight.detach().clone(), recent.learner.learn

    def learn_and_average(batch, step):
        losses = learn(batch, step)
        decay = min(0.99, (2 + step) / (11 + step))
        expected.mul_(decay).add_(weight.detach(), alpha=1 - decay)
        return losses

    object.__setattr__(recent.learner, "learn", learn_and_average)
    recent.fit()
    torch.testing.assert_close(weight.detach(), expected)


def test_sigterm_at_the_end_of_the_first_part_ends_the_run_before_the_second():
    settings = config()
    recent = go_on(trained(changed_world(), settings), settings)
    stop = StopRequest()
    stop.received = True
    with pytest.raises(Interrupted):
        recent.fit(stop)
    assert recent.position.step == 0


def test_nothing_recent_leaves_the_weights(capsys):
    world = changed_world()
    split = world.splits["recent"]
    nothing = dataclasses.replace(split.positives, weight=np.zeros(len(split.positives), np.float32))
    world.splits["recent"] = dataclasses.replace(split, positives=nothing)
    assert go_on(trained(world, config()), config()) is None
    assert "no positives since the end of the training window" in capsys.readouterr().err
    assert go_on(trained(changed_world(), config()), config(recent_epochs=0)) is None
