"""The fitted part of popularity: the best linear score of items that knows nothing of the query.

It is a conditional logit model (McFadden, 1974) of the conversions trained on (of the engagements where there are
none): at each snapshot the chosen items against all others, by their performance features. Which counts and half-lives
tell most differs from data set to data set by more than a short training can find out.

Weights are held to those of a list by new buyers, since a small log tells less about thirty columns than is known
beforehand, and early snapshots know fewer conversions than later ones. How strongly, the validation window says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.performance import KIND_NAMES, NEW_BUYERS
from conversion_retrieval.features.spec import Statistic
from conversion_retrieval.model.two_tower import TwoTower
from conversion_retrieval.progress import say
from conversion_retrieval.training.examples import Examples
from conversion_retrieval.training.validation import Validator

Floats = NDArray[np.float64]

MAX_SNAPSHOTS: Final = 8
MAX_ITEMS: Final = 50_000  # a snapshot: all that were chosen, and a sample of the rest


@dataclass(frozen=True, kw_only=True)
class Choices:
    """At one snapshot: features [N, F] of items, how often each was chosen, the log of how many each stands for."""

    features: NDArray[np.float32]
    counts: Floats
    offsets: Floats


def fit_popularity(
    dataset: FeatureDataset, examples: Examples, ridges: Sequence[float], *, seed: int
) -> NDArray[np.float32]:
    """Weights [R, F] for each ridge, fitted to the conversions trained on, or the engagements where there are none."""
    choices = _choices(dataset, examples, np.random.default_rng(seed))
    prior = prior_weights(dataset.spec.item_performance)
    return np.stack([conditional_logit(choices, prior, ridge=ridge) for ridge in ridges])


def choose_popularity(model: TwoTower, fits: torch.Tensor, ridges: Sequence[float], validator: Validator) -> None:
    """Give the model that fit of ``fits`` [R, F] with which, beside its memory and without towers, it finds most.

    The first where there is nothing to validate on. All processes call this together.
    """
    assert model.bias is not None
    model.bias.start(fits[0])
    if len(ridges) == 1 or not validator.can_measure:
        return
    share, found = model.tower_share.clone(), []
    model.tower_share.zero_()
    queries = validator.query_vectors(model)  # the fits are of items: no query vector depends on them
    for weights in fits:
        model.bias.start(weights)
        values = validator.measure(model, queries=queries)
        assert values is not None  # nobody asked to stop
        found.append(values[validator.metric])
    model.tower_share.copy_(share)
    best = int(np.argmax(found))
    model.bias.start(fits[best])
    listed = ", ".join(f"{ridge:g} {value:.4f}" for ridge, value in zip(ridges, found, strict=True))
    say(f"popularity: {validator.metric} before training by ridge: {listed}; kept {ridges[best]:g}")


def prior_weights(statistics: Sequence[Statistic]) -> Floats:
    """Weights [F] of normalised columns that score an item by the log of its new buyers, of the longest half-life.

    Nothing but zeros where conversions are not among the columns.
    """
    weights = np.zeros(len(statistics))
    start = f"{KIND_NAMES[NEW_BUYERS]}_decayed_"
    half_lives = {
        n: float(s.name.removeprefix(start)[:-1]) for n, s in enumerate(statistics) if s.name.startswith(start)
    }
    if half_lives:
        longest = max(half_lives, key=lambda n: half_lives[n])
        weights[longest] = statistics[longest].std
    return weights


def conditional_logit(choices: list[Choices], prior: Floats, *, ridge: float) -> NDArray[np.float32]:
    """Weights w [F] that minimise the mean of ``log sum_j exp(w x_j + offset_j) - w x_i`` over the choices i, plus
    ``ridge / 2`` times their squared distance from ``prior`` [F].

    The features are of unit variance; many are nearly the same count, whose weights would otherwise be large and of
    both signs.
    """
    total = sum(float(c.counts.sum()) for c in choices)
    if not total:
        return prior.astype(np.float32)

    def loss(weights: Floats) -> tuple[float, Floats]:
        away = weights - prior
        value, gradient = ridge * away @ away / 2, ridge * away
        for choice in choices:
            scores = choice.features @ weights.astype(np.float32)
            log_z = logsumexp(scores + choice.offsets)
            chosen = choice.counts.sum() / total
            value += chosen * log_z - choice.counts @ scores / total
            expected = chosen * np.exp(scores + choice.offsets - log_z)
            gradient = gradient + (expected - choice.counts / total).astype(np.float32) @ choice.features
        return float(value), gradient

    found = minimize(loss, prior, jac=True, method="L-BFGS-B", options={"maxiter": 50})
    return np.asarray(found.x, np.float32)


def _choices(dataset: FeatureDataset, examples: Examples, generator: np.random.Generator) -> list[Choices]:
    positives = examples.positives
    kept = positives.aimed_at
    snapshot, item = examples.split.snapshot[positives.query[kept]], positives.item[kept]
    found = np.unique(snapshot)
    spread = found[np.linspace(0, len(found) - 1, min(len(found), MAX_SNAPSHOTS)).round().astype(np.int64)]
    return [_choice(dataset, int(s), item[snapshot == s], generator) for s in spread]


def _choice(
    dataset: FeatureDataset, snapshot: int, item: NDArray[np.integer], generator: np.random.Generator
) -> Choices:
    chosen, counts = np.unique(item, return_counts=True)
    rest = np.setdiff1d(np.arange(dataset.num_items), chosen, assume_unique=True)
    sampled = min(len(rest), max(MAX_ITEMS - len(chosen), 1))
    others = generator.choice(rest, sampled, replace=False) if sampled < len(rest) else rest
    stands_for = len(rest) / max(sampled, 1)
    return Choices(
        features=dataset.performance_rows(np.concatenate([chosen, others]), snapshot),
        counts=np.concatenate([counts, np.zeros(len(others))]),
        offsets=np.concatenate([np.zeros(len(chosen)), np.full(len(others), np.log(max(stands_for, 1.0)))]),
    )
