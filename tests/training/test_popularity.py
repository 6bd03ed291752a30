"""The start of the popularity bias: a conditional logit model of what was chosen."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from scipy.special import log_softmax

from conversion_retrieval.training import popularity
from conversion_retrieval.training.popularity import Choices, conditional_logit
from conversion_retrieval.training.stage import make_trainer
from tests.training.runs import small_config
from tests.training.separable import separable_world

WIDTH = 4


def choices(weights, *, items=300, chosen=20_000, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(items, WIDTH)).astype(np.float32)
    counts = rng.multinomial(chosen, np.exp(log_softmax(features @ weights)))
    return Choices(features=features, counts=counts.astype(float), offsets=np.zeros(items))


def test_weights_that_made_the_choices_are_found_again():
    true = np.array([1.0, -0.5, 0.0, 2.0])
    found = conditional_logit([choices(true, seed=0), choices(true, seed=1)], WIDTH, ridge=0.0)
    # 40,000 choices: the standard error of a weight is about 0.01.
    np.testing.assert_allclose(found, true, atol=0.05)


def test_fit_is_a_minimum_of_the_loss_as_it_is_defined():
    parts = [choices(np.array([1.0, 0.0, -1.0, 0.5]), items=40, chosen=200, seed=s) for s in range(3)]

    def loss(weights):
        chosen = sum(float(p.counts @ log_softmax(p.features @ weights)) for p in parts)
        return -chosen / 600 + 0.1 * weights @ weights / 2

    found = conditional_logit(parts, WIDTH, ridge=0.1).astype(float)
    assert np.abs(approx_fprime(found, loss, 1e-6)).max() < 1e-3


def test_a_sample_of_the_items_not_chosen_stands_for_all_of_them():
    full = choices(np.array([1.0, -0.5, 0.0, 0.5]), items=4000, chosen=500)
    rest = np.flatnonzero(full.counts == 0)
    kept = np.random.default_rng(1).choice(rest, len(rest) // 4, replace=False)
    rows = np.concatenate([np.flatnonzero(full.counts), kept])
    offsets = np.where(full.counts[rows] > 0, 0.0, np.log(4.0))
    sampled = Choices(features=full.features[rows], counts=full.counts[rows], offsets=offsets)
    whole = conditional_logit([full], WIDTH)
    np.testing.assert_allclose(conditional_logit([sampled], WIDTH), whole, atol=0.06)
    biased = conditional_logit([dataclasses.replace(sampled, offsets=np.zeros(len(rows)))], WIDTH)
    assert np.abs(biased - whole).max() > 0.15


@pytest.fixture
def fitted(monkeypatch):
    """What models are fitted to, for each model; all their weights become one."""
    calls = []
    monkeypatch.setattr(
        popularity, "conditional_logit", lambda parts, width: calls.append(parts) or np.ones(width, np.float32)
    )
    return calls


@pytest.mark.parametrize("task", [0, 1], ids=["conversions", "engagements"])
def test_bias_starts_from_the_training_positives(task, fitted):
    world = separable_world(num_users=60, tasks=(task,))
    trainer = make_trainer(world, small_config())
    assert trainer.learner.model.bias is not None
    torch.testing.assert_close(trainer.learner.model.bias.linear.weight.detach(), torch.ones(1, 1))
    split = world.split("train")
    snapshot, item = split.snapshot[split.positives.query], split.positives.item
    for number, part in enumerate(fitted[0]):
        chosen, counts = np.unique(item[snapshot == number], return_counts=True)
        assert part.counts[: len(chosen)].tolist() == counts.tolist()
        assert not part.counts[len(chosen) :].any()
        np.testing.assert_array_equal(part.features[: len(chosen)], world.performance_rows(chosen, number))
    assert len(fitted[0]) == len(np.unique(snapshot))


def test_a_large_catalogues_sample_stands_for_all_that_was_not_chosen(fitted, monkeypatch):
    monkeypatch.setattr(popularity, "MAX_ITEMS", 60)
    world = separable_world(num_users=20)  # of 200 items
    make_trainer(world, small_config())
    for part in fitted[0]:
        chosen = int((part.counts > 0).sum())
        assert len(part.features) == 60 > chosen
        assert np.exp(part.offsets).sum() == pytest.approx(200)
        assert not part.offsets[:chosen].any()


def test_bias_starts_from_engagements_where_conversions_are_not_trained_on(fitted):
    world = separable_world(num_users=60, tasks=(0, 1))
    make_trainer(world, small_config(losses={"task_weights": {"conversion": 0.0, "engagement": 1.0}}))
    engagements = (world.split("train").positives.task == 1).sum()
    assert sum(part.counts.sum() for part in fitted[0]) == engagements


def test_nothing_chosen_starts_from_zero():
    assert conditional_logit([], WIDTH).tolist() == [0.0] * WIDTH
