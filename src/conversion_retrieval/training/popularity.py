"""Where the popularity bias starts: the best linear score of items that knows nothing of the query.

It is a conditional logit model (McFadden, 1974) of the conversions trained on (of the engagements where there are
none): at each snapshot the chosen items against all others, by their performance features. Which counts and half-lives
tell most differs from data set to data set by more than a short training can find out.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.model.two_tower import PopularityBias
from conversion_retrieval.training.examples import Examples

Floats = NDArray[np.float64]

MAX_SNAPSHOTS: Final = 8
MAX_ITEMS: Final = 50_000  # a snapshot: all that were chosen, and a sample of the rest
# Of half the squared weights, the loss being the mean over conversions and the features of unit variance. Many of the
# features are nearly the same count, whose weights would otherwise be large and of both signs.
RIDGE: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Choices:
    """At one snapshot: features [N, F] of items, how often each was chosen, the log of how many each stands for."""

    features: NDArray[np.float32]
    counts: Floats
    offsets: Floats


def start_popularity(bias: PopularityBias, dataset: FeatureDataset, examples: Examples, *, seed: int) -> None:
    """Fit to the conversions that are trained on, or to the engagements where no conversions are."""
    choices = _choices(dataset, examples, np.random.default_rng(seed))
    weights = conditional_logit(choices, len(dataset.spec.item_performance))
    bias.start(torch.from_numpy(weights))


def conditional_logit(choices: list[Choices], width: int, *, ridge: float = RIDGE) -> NDArray[np.float32]:
    """Weights w [F] that minimise the mean of ``log sum_j exp(w x_j + offset_j) - w x_i`` over the choices i."""
    total = sum(float(c.counts.sum()) for c in choices)
    if not total:
        return np.zeros(width, np.float32)

    def loss(weights: Floats) -> tuple[float, Floats]:
        value, gradient = ridge * weights @ weights / 2, ridge * weights
        for choice in choices:
            scores = choice.features @ weights.astype(np.float32)
            log_z = logsumexp(scores + choice.offsets)
            chosen = choice.counts.sum() / total
            value += chosen * log_z - choice.counts @ scores / total
            expected = chosen * np.exp(scores + choice.offsets - log_z)
            gradient = gradient + (expected - choice.counts / total).astype(np.float32) @ choice.features
        return float(value), gradient

    found = minimize(loss, np.zeros(width), jac=True, method="L-BFGS-B", options={"maxiter": 50})
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
