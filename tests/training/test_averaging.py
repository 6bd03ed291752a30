import pytest
import torch

from conversion_retrieval.errors import UserError
from conversion_retrieval.model.config import ModelConfig
from conversion_retrieval.model.sizes import EntitySizes, InputSizes
from conversion_retrieval.model.two_tower import TwoTower, make_model
from conversion_retrieval.training.averaging import WeightAverage
from conversion_retrieval.training.stage import make_trainer
from tests.training.runs import small_config
from tests.training.separable import separable_world

SIZES = InputSizes(
    items=EntitySizes(num_ids=9),
    users=EntitySizes(),
    item_performance=2,
    user_aggregates=1,
    context_embedding=0,
    surfaces=2,
    actions=3,
)


def model(*, sparse: bool = False) -> TwoTower:
    config = ModelConfig(embedding_dim=4, feature_dim=2, normalize=False, memory_dim=3)
    return make_model(SIZES, config, sparse=sparse)


def fill(network: TwoTower, value: float) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)


def test_average_follows_the_recurrence():
    network = model()
    fill(network, 1.0)
    average = WeightAverage(network, 0.5)
    for step, value in enumerate([3.0, 5.0, 7.0], start=1):
        fill(network, value)
        average.update(step)
    # Decays 2/11, 3/12 and 4/13, all below 0.5.
    expected = 1.0
    for decay, value in ((2 / 11, 3.0), (3 / 12, 5.0), (4 / 13, 7.0)):
        expected = decay * expected + (1 - decay) * value
    for parameter in average.model.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))


def test_decay_is_reached_once_the_run_is_long_enough():
    network = model()
    fill(network, 0.0)
    average = WeightAverage(network, 0.9)
    fill(network, 1.0)
    average.update(1000)
    assert {round(p.mean().item(), 6) for p in average.model.parameters()} == {0.1}


def test_frozen_buffers_and_sparse_tables_are_shared_and_the_rest_is_not():
    network = model(sparse=True)
    average = WeightAverage(network, 0.9)
    factors, table, body = "memory.factors", "item_embedding.ids.table.weight", "query_tower.body.mlp.0.weight"
    assert average.model.get_buffer(factors) is network.get_buffer(factors)
    assert average.model.get_parameter(table) is network.get_parameter(table)
    assert average.model.get_parameter(body) is not network.get_parameter(body)
    assert table not in average.state()


def test_decay_zero_keeps_the_weights_themselves():
    network = model()
    average = WeightAverage(network, 0.0)
    assert average.model is network
    assert average.state() == {}


def test_decay_of_one_is_refused():
    with pytest.raises(UserError, match=r"average_decay must be in \[0, 1\), found 1.0"):
        small_config(training={"average_decay": 1.0})


def test_the_average_is_what_is_validated_and_kept(monkeypatch):
    trainer = make_trainer(separable_world(num_users=120), small_config(training={"max_epochs": 2}))
    validated = []
    measure = type(trainer.validator).measure

    def watch(validator, network, *options):
        validated.append(network)
        return measure(validator, network, *options)

    monkeypatch.setattr(type(trainer.validator), "measure", watch)
    best_step = trainer.fit().best_step
    assert all(network is trainer.average.model for network in validated)
    assert best_step == trainer.position.step
    final = trainer.learner.model.state_dict()
    assert all(torch.equal(final[name], value) for name, value in trainer.average.model.state_dict().items())
