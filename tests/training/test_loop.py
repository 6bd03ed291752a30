import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.training import stage
from conversion_retrieval.training.checkpoint import Checkpoint, Checkpoints, read_checkpoint
from conversion_retrieval.training.interruption import EXIT_CODE, Interrupted
from conversion_retrieval.training.loop import Trainer
from conversion_retrieval.training.stage import make_trainer
from conversion_retrieval.training.step import DivergedError
from conversion_retrieval.training.validation import Validator
from tests.training.runs import small_config
from tests.training.separable import separable_world

WORLD = separable_world()
SMALL_WORLD = separable_world(num_users=120)
SHORT = {"max_epochs": 3}


def checkpoints(directory: Path, keep: int = 2) -> Checkpoints:
    return Checkpoints(directory=directory, fingerprint="run", keep=keep)


def curve(trainer: Trainer, split: str, metric: str) -> list[float]:
    return [r["value"] for r in trainer.position.curve if (r["split"], r["metric"]) == (split, metric)]


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": {"softmax": "full"}},
        {"losses": {"softmax": "sampled"}},
        {"losses": {"softmax": "sampled", "in_batch_negatives": False}},
        {"model": {"heads": "multi_head", "normalize": False}, "training": {"max_epochs": 20}},
        {"training": {"optimizer": "adamw_sparse"}, "losses": {"softmax": "sampled"}},
        {"training": {"precision": "bf16"}},
    ],
    ids=["full", "sampled", "uniform", "multi_head_raw_dot", "sparse", "bf16"],
)
def test_it_learns_a_world_where_a_perfect_model_exists(changes):
    # Popularity finds 10 of 200 items: 0.05; the perfect model finds all.
    position = make_trainer(WORLD, small_config(**changes)).fit()
    assert position.best_value > 0.8


LIMIT = "conversion_retrieval.training.optimizer.MAX_DENSE_ROWS"
ROWS = SMALL_WORLD.num_items + 1  # and one for unknown ids


@pytest.mark.parametrize(
    ("limit", "losses", "expected"),
    [
        (ROWS, {"softmax": "sampled"}, "adamw"),
        (ROWS - 1, {"softmax": "sampled"}, "adamw_sparse"),
        (ROWS - 1, {"softmax": "full"}, "adamw"),
    ],
)
def test_auto_trains_large_tables_sparsely(monkeypatch, limit, losses, expected):
    monkeypatch.setattr(LIMIT, limit)
    trainer = make_trainer(SMALL_WORLD, small_config(losses=losses))
    assert trainer.position.optimizer == expected
    assert trainer.learner.model.item_embedding.ids.table.sparse is (expected == "adamw_sparse")


@pytest.mark.parametrize(("first", "later"), [(10, 10_000), (10_000, 10)])
def test_a_run_keeps_the_optimizer_it_began_with(tmp_path, monkeypatch, first, later):
    config = small_config(training=SHORT, losses={"softmax": "sampled"})
    monkeypatch.setattr(LIMIT, first)
    whole = make_trainer(SMALL_WORLD, config)
    whole.fit()
    kill(make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path)), 5)
    monkeypatch.setattr(LIMIT, later)
    resumed = make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path))
    assert resumed.position.step
    resumed.fit()
    assert_equal_weights(resumed, whole)


def test_the_loss_follows_its_golden_curve():
    trainer = make_trainer(WORLD, small_config(training=SHORT, losses={"softmax": "full"}))
    trainer.fit()
    golden = GOLDEN_CONVERSION_LOSSES
    np.testing.assert_allclose(curve(trainer, "train", "conversion/loss"), golden, rtol=2e-3)


# Recorded on a CPU in float32 with one thread; other kernels move it in the fourth digit.
GOLDEN_CONVERSION_LOSSES = [5.365021, 5.017795, 4.747426, 4.386099, 4.222728, 3.846343, 3.907807]


def test_a_run_repeats_bit_for_bit():
    runs = [make_trainer(SMALL_WORLD, small_config(training=SHORT, losses={"softmax": "sampled"})) for _ in range(2)]
    for run in runs:
        run.fit()
        torch.rand(1)
    assert runs[0].position.curve == runs[1].position.curve
    assert_equal_weights(runs[0], runs[1])


def assert_equal_weights(one: Trainer, other: Trainer) -> None:
    states = one.learner.model.state_dict(), other.learner.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_sparse"])
@pytest.mark.parametrize("killed_after", [7, 16, 20])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, optimizer, killed_after):
    config = small_config(
        training={**SHORT, "batch_size": 64, "optimizer": optimizer, "checkpoint_every_steps": 5},
        losses={"softmax": "sampled"},
        model={"item_id_dropout": 0.1},
    )
    whole = make_trainer(SMALL_WORLD, config)
    whole.fit()
    kill(make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path)), killed_after)
    resumed = make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path))
    assert resumed.position.step == killed_after // 5 * 5
    resumed.fit()
    assert resumed.position.curve == whole.position.curve
    assert_equal_weights(resumed, whole)


class KilledError(Exception):
    pass


def kill(trainer: Trainer, step: int) -> None:
    learn = trainer.learner.learn

    def die(batch, number):
        if number == step:
            raise KilledError
        return learn(batch, number)

    object.__setattr__(trainer.learner, "learn", die)
    with pytest.raises(KilledError):
        trainer.fit()


def test_sigterm_saves_and_the_next_run_goes_on(tmp_path):
    config = small_config(training={**SHORT, "batch_size": 32})
    whole = make_trainer(SMALL_WORLD, config)
    whole.fit()
    stopped = make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path))
    learn = stopped.learner.learn

    def learn_and_be_told_to_stop(batch, number):
        if number == 16:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(batch, number)

    object.__setattr__(stopped.learner, "learn", learn_and_be_told_to_stop)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:
        stopped.fit()
    assert stop.value.code == EXIT_CODE == 143
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path))
    assert resumed.position.step == 17
    resumed.fit()
    assert_equal_weights(resumed, whole)


def test_sigterm_at_a_validation_step_leaves_the_validation_to_the_next_run(tmp_path):
    config = small_config(training={**SHORT, "batch_size": 32})
    whole, stopped = (
        make_trainer(SMALL_WORLD, config),
        make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path)),
    )
    whole.fit()
    learn, last = stopped.learner.learn, stopped.steps_per_epoch - 1

    def learn_and_be_told_to_stop(batch, number):
        if number == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(batch, number)

    object.__setattr__(stopped.learner, "learn", learn_and_be_told_to_stop)
    with pytest.raises(Interrupted):
        stopped.fit()
    resumed = make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path))
    resumed.fit()
    assert resumed.position.curve == whole.position.curve


def test_sigterm_in_the_middle_of_a_validation_gives_it_up_saves_and_the_next_run_does_it(tmp_path, monkeypatch):
    config = small_config(training={**SHORT, "batch_size": 32})
    whole, stopped = (
        make_trainer(SMALL_WORLD, config),
        make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path)),
    )
    whole.fit()
    ranked = []

    def rank_and_be_told_to_stop(self, group, *_):
        ranked.append(group.snapshot)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on ranking")

    with monkeypatch.context() as patched:
        patched.setattr(Validator, "_count", rank_and_be_told_to_stop)
        with pytest.raises(Interrupted):
            stopped.fit()
    assert len(ranked) == 1  # of two snapshots
    resumed = make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path))
    assert resumed.position.step == resumed.steps_per_epoch
    assert resumed.position.validated_step < resumed.position.step
    with monkeypatch.context() as patched:
        patched.setattr(Validator, "_count", rank_and_be_told_to_stop)
        with pytest.raises(Interrupted):  # the validation that it owes is given up as well
            resumed.fit()
    resumed = make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path))
    resumed.fit()
    assert resumed.position.curve == whole.position.curve
    assert_equal_weights(resumed, whole)


def test_a_run_ends_with_a_checkpoint_whatever_the_interval(tmp_path):
    config = small_config(training={"max_steps": 5, "checkpoint_every_steps": 3})
    make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path)).fit()
    assert make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path)).position.validated_step == 5


class Clock:
    """Seconds that pass only when a step, a validation or a fit takes them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def passes(self, seconds: float, done: Callable[..., Any]) -> Callable[..., Any]:
        def take(*arguments: Any) -> Any:
            result = done(*arguments)
            self.seconds += seconds
            return result

        return take


def timed(directory: Path, *, step: float = 0.0, **training: Any) -> Trainer:
    """A run of 24 steps, 8 an epoch, each of which takes ``step`` seconds."""
    clock = Clock()
    config = small_config(training={**SHORT, "batch_size": 64, **training}, losses={"softmax": "sampled"})
    trainer = make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(directory, keep=99), clock=clock)
    object.__setattr__(trainer.learner, "learn", clock.passes(step, trainer.learner.learn))
    return trainer


def saved(directory: Path) -> list[int]:
    return [read_checkpoint(path).position.step for path in reversed(checkpoints(directory).paths())]


@pytest.mark.parametrize(
    ("step", "training", "expected"),
    [
        (60.0, {}, [8, 16, 24]),  # the next validation comes before ten minutes have passed
        (59.0, {"validate_every_steps": 24}, [11, 22, 24]),
        (60.0, {"validate_every_steps": 24}, [10, 20, 24]),
        (1500.0, {"validate_every_steps": 24}, [*range(1, 25)]),
        (60.0, {"checkpoint_every_minutes": 3.0}, [3, 6, 8, 11, 14, 16, 19, 22, 24]),
        (60.0, {"checkpoint_every_minutes": 3.0, "checkpoint_every_steps": 7}, [3, 6, 7, 10, 13, 14, 17, 20, 21, 24]),
        (1500.0, {"checkpoint_every_minutes": 0.0}, [8, 16, 24]),
    ],
)
def test_checkpoints_are_so_many_minutes_apart_at_most_whatever_a_step_takes(tmp_path, step, training, expected):
    """Oracle: the steps counted by hand; every checkpoint, whatever it is due to, begins the minutes anew."""
    timed(tmp_path, step=step, **training).fit()
    assert saved(tmp_path) == expected


def test_a_checkpoint_by_the_clock_changes_nothing_and_a_run_goes_on_from_it(tmp_path):
    whole = timed(tmp_path / "whole", step=60.0, checkpoint_every_minutes=3.0)
    whole.fit()
    undisturbed = make_trainer(SMALL_WORLD, small_config(training=vars(whole.config), losses={"softmax": "sampled"}))
    undisturbed.fit()
    kill(timed(tmp_path / "killed", step=60.0, checkpoint_every_minutes=3.0), 12)
    resumed = timed(tmp_path / "killed", checkpoint_every_minutes=3.0)
    assert resumed.position.step == 11
    resumed.fit()
    for run in (whole, resumed):
        assert run.position.curve == undisturbed.position.curve
        assert_equal_weights(run, undisturbed)


def test_what_is_due_before_a_validation_does_not_wait_for_its_end(tmp_path, monkeypatch):
    trainer = timed(tmp_path, step=60.0, checkpoint_every_minutes=8.0)
    monkeypatch.setattr(Validator, "measure", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        trainer.fit()
    owed = make_trainer(SMALL_WORLD, small_config(), checkpoints=checkpoints(tmp_path)).position
    assert (owed.step, owed.validated_step) == (8, -1)


def test_the_fits_before_the_first_step_count_among_the_minutes(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stage, "_start", clock.passes(600.0, stage._start))
    trainer = make_trainer(SMALL_WORLD, small_config(), checkpoints=checkpoints(tmp_path, keep=99), clock=clock)
    kill(trainer, 3)
    assert saved(tmp_path) == [1]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("os error 28"), UserError("x")]
)
def test_a_checkpoint_that_cannot_be_written_is_said_and_costs_nothing_else(tmp_path, monkeypatch, capsys, error):
    """Oracle: the weights of a run without checkpoints, and the checkpoints before and after the one that failed."""
    whole = timed(tmp_path / "whole")
    whole.fit()
    save = Checkpoints.save

    def save_or_fail(self: Checkpoints, checkpoint: Checkpoint) -> Path:
        if checkpoint.position.step == 16:
            raise error
        return save(self, checkpoint)

    monkeypatch.setattr(Checkpoints, "save", save_or_fail)
    trainer = timed(tmp_path)
    trainer.fit()
    assert saved(tmp_path) == [8, 24]
    said = (
        f"no checkpoint after step 16: {one_line(error)}; training goes on, the last one is {tmp_path}/step-000000008"
    )
    assert said in capsys.readouterr().err
    assert_equal_weights(trainer, whole)


def test_a_resumed_run_that_diverges_names_the_checkpoint_that_it_came_from(tmp_path):
    config = small_config(training={**SHORT, "batch_size": 64, "checkpoint_every_steps": 5})
    kill(make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path)), 6)
    resumed = make_trainer(SMALL_WORLD, config, checkpoints=checkpoints(tmp_path))
    with torch.no_grad():
        resumed.learner.model.item_tower.body.mlp[0].weight[0, 0] = torch.inf
    with pytest.raises(DivergedError, match=rf"at step 5 in task conversion.*{tmp_path}/step-000000005"):
        resumed.fit()


def test_a_loss_that_is_not_finite_stops_with_step_task_and_last_good_checkpoint(tmp_path):
    trainer = make_trainer(SMALL_WORLD, small_config(training=SHORT), checkpoints=checkpoints(tmp_path))
    learn = trainer.learner.learn

    def poison(batch, number):
        if number == trainer.steps_per_epoch + 2:
            with torch.no_grad():
                trainer.learner.model.query_tower.body.mlp[0].weight[0, 0] = torch.nan
        return learn(batch, number)

    object.__setattr__(trainer.learner, "learn", poison)
    step = trainer.steps_per_epoch + 2
    with pytest.raises(DivergedError, match=rf"found nan at step {step} in task conversion, .*{tmp_path}/step-"):
        trainer.fit()


def test_training_stops_after_patience_and_keeps_the_best_weights(monkeypatch):
    trainer = make_trainer(SMALL_WORLD, small_config(training={"patience": 2, "max_epochs": 9}))
    values = iter([0.1, 0.3, 0.2, 0.25, 0.9])
    seen, temperatures = [], []

    def measure(model):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        temperatures.append(trainer.learner.objective.temperature().item())
        return {"conversion/recall@10": next(values)}

    monkeypatch.setattr(type(trainer.validator), "measure", lambda _, model, _stop: measure(model))
    position = trainer.fit()
    assert (position.best_value, position.epoch) == (0.3, 4)
    final = trainer.learner.model.state_dict()
    assert all(torch.equal(final[name], seen[1][name]) for name in final)
    assert trainer.learner.objective.temperature().item() == temperatures[1] != temperatures[-1]


def test_a_data_set_without_conversions_trains_on_engagement_and_says_so(capsys):
    world = separable_world(num_users=100, tasks=(1,))
    trainer = make_trainer(world, small_config(training=SHORT))
    trainer.fit()
    said = capsys.readouterr().err
    assert "no conversion positives in the training split: training on engagement alone" in said
    assert "no conversion positives in the validation split: training stops on engagement/recall@10" in said
    assert curve(trainer, "validation", "engagement/recall@10")
    assert not curve(trainer, "train", "advertiser/loss")


def test_a_data_set_without_engagement_trains_on_conversions(capsys):
    trainer = make_trainer(separable_world(num_users=100, tasks=(0,)), small_config(training=SHORT))
    trainer.fit()
    assert "training on conversion alone" in capsys.readouterr().err


def test_max_steps_ends_a_run_with_a_validation():
    trainer = make_trainer(SMALL_WORLD, small_config(training={"max_steps": 5}))
    position = trainer.fit()
    assert position.step == position.validated_step == 5


def test_a_task_weight_of_zero_equals_the_tasks_absence():
    weights = {"conversion": 1.0, "engagement": 0.0}
    with_rows = make_trainer(SMALL_WORLD, small_config(training=SHORT, losses={"task_weights": weights}))
    with_rows.fit()
    assert not curve(with_rows, "train", "engagement/loss")
