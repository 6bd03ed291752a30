"""The fitted part of popularity: a conditional logit model of what was chosen, held to a list of new buyers."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from scipy.special import log_softmax

from conversion_retrieval.features.spec import Statistic
from conversion_retrieval.training import popularity
from conversion_retrieval.training.popularity import Choices, choose_popularity, conditional_logit, prior_weights
from conversion_retrieval.training.stage import make_trainer
from tests.training.runs import small_config
from tests.training.separable import separable_world

WIDTH = 4
NONE = np.zeros(WIDTH)


def choices(weights, *, items=300, chosen=20_000, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(items, WIDTH)).astype(np.float32)
    counts = rng.multinomial(chosen, np.exp(log_softmax(features @ weights)))
    return Choices(features=features, counts=counts.astype(float), offsets=np.zeros(items))


def test_weights_that_made_the_choices_are_found_again():
    true = np.array([1.0, -0.5, 0.0, 2.0])
    found = conditional_logit([choices(true, seed=0), choices(true, seed=1)], NONE, ridge=0.0)
    # 40,000 choices: the standard error of a weight is about 0.01.
    np.testing.assert_allclose(found, true, atol=0.05)


def test_fit_is_a_minimum_of_the_loss_as_it_is_defined():
    parts = [choices(np.array([1.0, 0.0, -1.0, 0.5]), items=40, chosen=200, seed=s) for s in range(3)]
    prior = np.array([0.0, 2.0, 0.0, 0.0])

    def loss(weights):
        chosen = sum(float(p.counts @ log_softmax(p.features @ weights)) for p in parts)
        return -chosen / 600 + 0.1 * (weights - prior) @ (weights - prior) / 2

    found = conditional_logit(parts, prior, ridge=0.1).astype(float)
    assert np.abs(approx_fprime(found, loss, 1e-6)).max() < 1e-3


def test_a_strong_ridge_keeps_the_prior():
    prior = np.array([0.0, 2.0, 0.0, 0.0])
    found = conditional_logit([choices(np.array([1.0, 0.0, -1.0, 0.5]))], prior, ridge=1e6)
    np.testing.assert_allclose(found, prior, atol=1e-5)


def test_prior_scores_items_by_the_log_of_their_new_buyers_over_the_longest_half_life():
    names = ("click_count_1d", "new_buyers_decayed_30d", "new_buyers_decayed_7d", "conversion_age")
    statistics = [Statistic(name=name, transform="log1p", scale=100.0, mean=0.3, std=1.7) for name in names]
    new_buyers = np.array([0.0, 0.5, 12.0])
    values = np.random.default_rng(0).normal(size=(3, 4))
    values[:, 1] = (np.log1p(100 * new_buyers) - 0.3) / 1.7  # as the features are normalised
    scores = values @ prior_weights(statistics)
    np.testing.assert_allclose(scores - scores[0], np.log1p(100 * new_buyers), atol=1e-6)
    assert not prior_weights(statistics[:1]).any()


def test_a_sample_of_the_items_not_chosen_stands_for_all_of_them():
    full = choices(np.array([1.0, -0.5, 0.0, 0.5]), items=4000, chosen=500)
    rest = np.flatnonzero(full.counts == 0)
    kept = np.random.default_rng(1).choice(rest, len(rest) // 4, replace=False)
    rows = np.concatenate([np.flatnonzero(full.counts), kept])
    offsets = np.where(full.counts[rows] > 0, 0.0, np.log(4.0))
    sampled = Choices(features=full.features[rows], counts=full.counts[rows], offsets=offsets)
    whole = conditional_logit([full], NONE, ridge=0.1)
    np.testing.assert_allclose(conditional_logit([sampled], NONE, ridge=0.1), whole, atol=0.06)
    biased = conditional_logit([dataclasses.replace(sampled, offsets=np.zeros(len(rows)))], NONE, ridge=0.1)
    assert np.abs(biased - whole).max() > 0.15


@pytest.fixture
def fitted(monkeypatch):
    """What models are fitted to, for each ridge; all their weights become the ridge."""
    calls = []
    monkeypatch.setattr(
        popularity,
        "conditional_logit",
        lambda parts, prior, *, ridge: calls.append(parts) or np.full(len(prior), ridge, np.float32),
    )
    return calls


@pytest.mark.parametrize("task", [0, 1], ids=["conversions", "engagements"])
def test_bias_starts_from_the_training_positives(task, fitted):
    world = separable_world(num_users=60, tasks=(task,))
    trainer = make_trainer(world, small_config())
    assert trainer.learner.model.bias is not None
    ridges = small_config().training.popularity_ridges
    assert trainer.learner.model.bias.linear.weight.item() in np.float32(ridges)
    assert len(fitted) == len(ridges)
    split = world.split("train")
    snapshot, item = split.snapshot[split.positives.query], split.positives.item
    for number, part in enumerate(fitted[0]):  # the same for each ridge
        chosen, counts = np.unique(item[snapshot == number], return_counts=True)
        assert part.counts[: len(chosen)].tolist() == counts.tolist()
        assert not part.counts[len(chosen) :].any()
        np.testing.assert_array_equal(part.features[: len(chosen)], world.performance_rows(chosen, number))
    assert len(fitted[0]) == len(np.unique(snapshot))


def test_each_ridge_is_fitted_towards_the_list_by_new_buyers(monkeypatch):
    calls = []
    monkeypatch.setattr(
        popularity,
        "conditional_logit",
        lambda _parts, prior, *, ridge: calls.append((prior.tolist(), ridge)) or prior.astype(np.float32),
    )
    world = separable_world(num_users=20)
    statistics = (Statistic(name="new_buyers_decayed_30d", std=1.5),)
    named = dataclasses.replace(world, spec=dataclasses.replace(world.spec, item_performance=statistics))
    examples = make_trainer(world, small_config()).builder.examples
    calls.clear()
    found = popularity.fit_popularity(named, examples, RIDGES, seed=0)
    assert calls == [([1.5], ridge) for ridge in RIDGES]
    assert found.tolist() == [[1.5]] * 3


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


def test_nothing_chosen_leaves_the_prior():
    assert conditional_logit([], np.arange(4.0), ridge=0.1).tolist() == [0.0, 1.0, 2.0, 3.0]


RIDGES = (0.1, 1.0, 10.0)
FITS = torch.tensor([[1.0], [2.0], [3.0]])


class Judge:
    """A validator that finds ``values`` by the weight of the popularity, and remembers the towers' share."""

    metric = "conversion/recall@10"

    def __init__(self, values, *, can_measure=True):
        self.values, self.can_measure, self.shares = values, can_measure, []

    def query_vectors(self, model):
        return [np.full((1, 1), float(model.tower_share))]

    def measure(self, model, queries):
        assert queries == [[float(model.tower_share)]]
        self.shares.append(float(model.tower_share))
        return {self.metric: self.values[float(model.bias.linear.weight)]}


@pytest.mark.parametrize(
    ("judge", "kept"),
    [
        (Judge({1.0: 0.1, 2.0: 0.3, 3.0: 0.2}), 2.0),
        (Judge({1.0: 0.3, 2.0: 0.3, 3.0: 0.3}), 1.0),
        (Judge({}, can_measure=False), 1.0),
    ],
    ids=["the best", "the first of equals", "the first where nothing can be validated on"],
)
def test_validation_without_towers_chooses_the_fit(judge, kept):
    model = make_trainer(separable_world(num_users=20), small_config()).learner.model
    choose_popularity(model, FITS, RIDGES, judge)
    assert float(model.bias.linear.weight) == kept
    assert judge.shares == [0.0] * 3 * judge.can_measure
    assert float(model.tower_share) == 1.0


def test_query_vectors_are_the_same_with_every_fit():
    trainer = make_trainer(separable_world(num_users=60), small_config())
    model, validator = trainer.learner.model, trainer.validator
    fits = torch.randn(2, model.bias.linear.weight.shape[1], generator=torch.Generator().manual_seed(0))
    model.bias.start(fits[0])
    queries, first = validator.query_vectors(model), validator.measure(model)
    model.bias.start(10 * fits[1])
    assert validator.measure(model, queries=queries) == validator.measure(model) != first


def test_fit_stays_as_it_is_while_the_towers_learn():
    trainer = make_trainer(separable_world(num_users=60), small_config(training={"max_epochs": 2}))
    before = trainer.learner.model.bias.linear.weight.clone()
    assert before.any()
    trainer.fit()
    assert torch.equal(trainer.learner.model.bias.linear.weight, before)
