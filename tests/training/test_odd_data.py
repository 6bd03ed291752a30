"""Data that a formula could stumble over; oracle: finite losses and weights, and values that follow by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from conversion_retrieval.features.dataset import Events
from conversion_retrieval.features.encoding import LARGEST_IN_VECTORS
from conversion_retrieval.features.spec import Column
from conversion_retrieval.training.load import LoadedModel
from conversion_retrieval.training.loop import Trainer
from conversion_retrieval.training.stage import make_trainer
from conversion_retrieval.training.step import DivergedError
from tests.training.runs import small_config
from tests.training.separable import SeparableWorld, separable_world

SHAPES = {
    "full": {"losses": {"softmax": "full"}},
    "sampled": {"losses": {"softmax": "sampled"}},
    "in_batch": {"losses": {"softmax": "sampled", "uniform_negatives": 0}},
    "raw_multi_head": {"model": {"normalize": False, "heads": "multi_head"}},
    "recency_mean": {"model": {"history": {"encoder": "recency_mean"}}},
}


def changed(world: SeparableWorld, **changes: Any) -> SeparableWorld:
    found = dataclasses.replace(world, **changes)
    object.__setattr__(found, "splits", world.splits)
    return found


def train(world: SeparableWorld, shape: str, **training: Any) -> Trainer:
    trainer = make_trainer(world, small_config(training={"max_steps": 5, **training}, **SHAPES[shape]))
    trainer.fit()
    losses = [r["value"] for r in trainer.position.curve if r["metric"].endswith("/loss")]
    assert losses
    assert np.isfinite(losses).all()
    assert all(torch.isfinite(tensor).all() for tensor in trainer.learner.model.state_dict().values())
    return trainer


@pytest.mark.parametrize("shape", SHAPES)
def test_users_without_any_event_are_trained_on(shape):
    world = separable_world(num_users=60)
    for name, split in world.splits.items():
        world.splits[name] = dataclasses.replace(split, history_end=np.zeros(len(split), np.int64))
    empty = dataclasses.replace(Events.empty(), offsets=np.zeros(world.num_users + 1, np.int64))
    train(changed(world, events=empty), shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_users_with_and_without_events_share_a_batch(shape):
    world = separable_world(num_users=60)
    for name, split in world.splits.items():
        end = np.where(split.user % 2, split.history_end, world.events.offsets[split.user])
        world.splits[name] = dataclasses.replace(split, history_end=end)
    train(world, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_columns_of_zeros_give_no_division_by_a_length_of_zero(shape):
    world = separable_world(num_users=60)
    items = dataclasses.replace(world.items, numeric=np.zeros_like(world.items.numeric))
    trainer = make_trainer(changed(world, items=items), small_config(training={"max_steps": 5}, **SHAPES[shape]))
    with torch.no_grad():
        for parameter in trainer.learner.model.parameters():
            parameter.zero_()  # every vector is the zero vector now
    trainer.fit()
    assert all(torch.isfinite(tensor).all() for tensor in trainer.learner.model.state_dict().values())


@pytest.mark.parametrize("shape", ["full", "sampled", "in_batch", "recency_mean"])
def test_the_largest_vectors_that_features_let_through_have_a_length_and_a_direction(shape):
    """Oracle: a unit vector's length. A sum of squares that overflows would make it 0, for good and unsaid."""
    world = separable_world(num_users=60)
    vectors = np.random.default_rng(0).uniform(-1, 1, (world.num_items, 8)) * LARGEST_IN_VECTORS
    items = dataclasses.replace(world.items, embeddings={"visual": vectors.astype(np.float32)})
    columns = (*world.spec.items.columns, Column(name="visual", kind="embedding", dim=8))
    spec = dataclasses.replace(world.spec, items=dataclasses.replace(world.spec.items, columns=columns))
    world = changed(world, items=items, spec=spec)
    model = train(world, shape).learner.model
    loaded = LoadedModel(model=model, spec=spec, config=small_config(**SHAPES[shape]), device=torch.device("cpu"))
    found = {
        "items": loaded.encode_items(world, 0),
        "queries": loaded.encode_queries(world, world.split("test"), np.arange(20)),
    }
    for name, encoded in found.items():
        assert np.linalg.norm(encoded.astype(np.float64), axis=1).min() > 0.99, name


@pytest.mark.parametrize("shape", SHAPES)
def test_an_only_advertiser_has_nothing_to_be_told_from(shape):
    world = separable_world(num_users=60)
    trainer = train(changed(world, item_advertiser=np.zeros(world.num_items, np.int32)), shape)
    found = [r["value"] for r in trainer.position.curve if r["metric"] == "advertiser/loss"]
    assert found == pytest.approx([0.0] * len(found), abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_without_rows_of_a_task_learns_from_the_other(shape):
    world = separable_world(num_users=60)
    trainer = make_trainer(world, small_config(**SHAPES[shape]))
    positives = world.split("train").positives
    rows = [q for q in trainer.builder.examples.rows_by_snapshot[0] if (positives.task[2 * q : 2 * q + 2] == 1).all()]
    losses = trainer.learner.learn(trainer.builder.build(0, np.array(rows[:16]), epoch=0, index=0), 0)
    assert float(losses.sums["conversion"]) == float(losses.sums["advertiser"]) == 0
    assert float(losses.weights["conversion"]) == 0
    assert float(losses.sums["engagement"]) > 0
    assert torch.isfinite(losses.total)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_catalogue_smaller_than_the_batch_is_trained_on(shape):
    world = separable_world(num_groups=2, items_per_group=3, num_users=60)
    trainer = train(world, shape, batch_size=64, early_stopping_metric="conversion/recall@3")
    assert trainer.builder.dataset.num_items < 64


def test_a_single_item_leaves_nothing_to_learn_and_nothing_to_break():
    train(separable_world(num_groups=1, items_per_group=1, num_users=20, hard_negatives=0), "sampled")


def test_a_seed_may_be_a_time_in_milliseconds():
    train(separable_world(num_users=60), "sampled", seed=1_700_000_000_000)


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_a_weight():
    trainer = make_trainer(separable_world(num_users=60), small_config())
    weight = trainer.learner.model.item_tower.body.mlp[0].weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(
        DivergedError, match=r"expected a finite gradient, found norm (inf|nan) at step 0; the last good"
    ):
        trainer.fit()
    assert torch.isfinite(weight).all()
