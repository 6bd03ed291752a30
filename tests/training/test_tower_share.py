"""How much of the towers is believed: what validation finds with each share."""

import pytest
import torch

from conversion_retrieval.training.checkpoint import Checkpoints
from conversion_retrieval.training.interruption import Interrupted, StopRequest
from conversion_retrieval.training.stage import make_trainer
from conversion_retrieval.training.tower_share import choose_tower_share
from tests.training.runs import small_config
from tests.training.separable import separable_world

WORLD = separable_world(num_users=60)


class Judge:
    """A validator that finds ``values`` by the towers' share; None stands for a request to stop."""

    metric = "conversion/recall@10"
    can_measure = True

    def __init__(self, values):
        self.values = values

    def measure(self, model, _stop):
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "tower_share"}
        value = self.values[round(float(model.tower_share), 2)]
        return None if value is None else {self.metric: value}


def finished(*, value=0.2, model=None, checkpoints=None, **training):
    """A trainer that validated, at its best with ``value``."""
    trainer = make_trainer(WORLD, small_config(training=training, model=model or {}), checkpoints=checkpoints)
    trainer.position.best_step, trainer.position.best_value = 7, value
    return trainer


@pytest.mark.parametrize(
    ("values", "share", "value"),
    [
        ({0.5: 0.3, 0.25: 0.25, 0.0: 0.1}, 0.5, 0.3),
        ({0.5: 0.1, 0.25: 0.1, 0.0: 0.1}, 1.0, 0.2),
        ({0.5: 0.2, 0.25: 0.2, 0.0: 0.2}, 1.0, 0.2),
        ({0.5: 0.1, 0.25: 0.1, 0.0: 0.21}, 0.0, 0.21),
    ],
    ids=["half", "whole", "whole of equals", "none"],
)
def test_the_share_that_finds_most_is_kept(values, share, value):
    trainer = finished()
    trainer.validator = Judge(values)
    assert choose_tower_share(trainer, StopRequest()) == value
    assert float(trainer.learner.model.tower_share) == share
    assert trainer.position.share_values == [0.2, *values.values()]


def test_shares_are_measured_with_the_best_weights_and_not_with_the_last():
    trainer = make_trainer(WORLD, small_config())
    trainer.validator = Judge({1.0: 0.5, 0.5: 0.1, 0.25: 0.1, 0.0: 0.1})
    trainer.fit()  # finds no more after its first validation
    assert 0 <= trainer.position.best_step < trainer.position.step
    choose_tower_share(trainer, StopRequest())
    measured = {name: trainer.validator.weights[name] for name in trainer.best}
    torch.testing.assert_close(measured, trainer.best, rtol=0, atol=0)


def test_a_run_that_goes_on_elsewhere_keeps_the_share_that_was_chosen(tmp_path):
    checkpoints = Checkpoints(directory=tmp_path, fingerprint="run", keep=1)
    trainer = finished(checkpoints=checkpoints)
    trainer.validator = Judge({0.5: 0.3, 0.25: 0.1, 0.0: 0.1})
    choose_tower_share(trainer, StopRequest())
    again = make_trainer(WORLD, small_config(), checkpoints=checkpoints)
    again.validator = Judge({})  # is not asked
    assert choose_tower_share(again, StopRequest()) == 0.3
    assert float(again.learner.model.tower_share) == 0.5


def test_one_share_is_not_measured_again():
    trainer = finished(tower_shares=(1.0,))
    trainer.validator = Judge({})
    assert choose_tower_share(trainer, StopRequest()) == 0.2


def test_towers_that_learned_something_that_popularity_cannot_know_count_whole():
    trainer = make_trainer(separable_world(), small_config())
    trainer.fit()
    learned = trainer.position.best_value
    assert choose_tower_share(trainer, StopRequest()) == learned > 0.8
    assert float(trainer.learner.model.tower_share) == 1.0


@pytest.mark.parametrize(
    ("changes", "validated"),
    [({}, False), ({"popularity_bias": False}, True)],
    ids=["nothing to validate on", "nothing beside the towers"],
)
def test_towers_count_whole_where_no_choice_is_to_be_made(changes, validated):
    trainer = finished(model=changes)
    trainer.validator = Judge({})
    if not validated:
        trainer.position.best_step = -1
    choose_tower_share(trainer, StopRequest())
    assert float(trainer.learner.model.tower_share) == 1.0


def test_a_request_to_stop_ends_the_run_between_the_shares_and_none_is_measured_twice(tmp_path):
    checkpoints = Checkpoints(directory=tmp_path, fingerprint="run", keep=1)
    trainer = finished(checkpoints=checkpoints)
    trainer.validator = Judge({0.5: 0.3, 0.25: None})
    with pytest.raises(Interrupted):
        choose_tower_share(trainer, StopRequest())
    again = make_trainer(WORLD, small_config(), checkpoints=checkpoints)
    again.validator = Judge({0.25: 0.4, 0.0: 0.1})
    assert choose_tower_share(again, StopRequest()) == 0.4
    assert again.position.share_values == [0.2, 0.3, 0.4, 0.1]
