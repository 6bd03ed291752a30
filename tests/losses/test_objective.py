import dataclasses
import math

import pytest
import torch
from torch import Tensor

from conversion_retrieval.losses.config import LossConfig
from conversion_retrieval.losses.labels import AdvertiserLabels, Contrast, Labels, Positives
from conversion_retrieval.losses.objective import Objective
from conversion_retrieval.losses.partition import Pairs

CONFIG = LossConfig(temperature=0.5, learn_temperature=False, task_weights={"conversion": 2.0, "engagement": 1.0})


def positives(row: list[int], candidate: list[int], weight: list[float]) -> Positives:
    return Positives(row=torch.tensor(row), candidate=torch.tensor(candidate), weight=torch.tensor(weight))


def pairs(row: list[int], candidate: list[int]) -> Pairs:
    return Pairs.sorted(torch.tensor(row, dtype=torch.int64), torch.tensor(candidate, dtype=torch.int64))


def labels(**changes: object) -> Labels:
    """Query 0 bought item 0, query 1 clicked item 1 of three items; no query sees its own positive as a negative."""
    base = Labels(
        row_query=None,
        items=Contrast(num_candidates=3, excluded=pairs([0, 1], [0, 1]), offsets=None),
        positives={"conversion": positives([0], [0], [1.0]), "engagement": positives([1], [1], [0.5])},
        hard=None,
        advertisers=None,
        scales={"conversion": 1.0, "engagement": 1.0, "advertiser": 1.0},
    )
    return dataclasses.replace(base, **changes)


QUERIES = {"unified": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
ITEMS = {"unified": torch.tensor([[0.5, 0.5], [0.2, 0.1], [-0.3, 0.4]])}


def same(vectors: Tensor) -> Tensor:
    return vectors


def total(config: LossConfig = CONFIG, **changes: object) -> float:
    return Objective(config, normalize=True)(QUERIES, ITEMS, labels(**changes), same).total.item()


def test_two_queries_by_hand():
    # Scores over the temperature 0.5: query 0 has 1, 0.4, -0.6; query 1 has 1, 0.2, 0.8.
    conversion = math.log(math.exp(1) + math.exp(0.4) + math.exp(-0.6)) - 1
    engagement = math.log(math.exp(0.2) + math.exp(1) + math.exp(0.8)) - 0.2
    assert total() == pytest.approx(2 * conversion + 0.5 * engagement, rel=1e-5)


def test_several_positives_of_a_query_share_its_negatives_and_never_compete():
    found = total(
        items=Contrast(num_candidates=3, excluded=pairs([0, 0], [0, 1]), offsets=None),
        positives={"conversion": positives([0, 0], [0, 1], [1.0, 1.0])},
    )
    expected = sum(math.log(math.exp(s) + math.exp(-0.6)) - s for s in (1, 0.4))
    assert found == pytest.approx(2 * expected, rel=1e-5)


def test_weight_zero_equals_the_positives_absence():
    one = total(positives={"conversion": positives([0, 1], [0, 1], [1.0, 0.0])})
    assert one == pytest.approx(total(positives={"conversion": positives([0], [0], [1.0])}), rel=1e-6)


def test_logq_lowers_the_logit_of_a_popular_negative_only():
    popular = torch.tensor([0.9, 0.1, 0.1])
    found = total(
        items=Contrast(num_candidates=3, excluded=pairs([1], [1]), offsets=-popular.log()),
        positives={"engagement": positives([1], [1], [1.0])},
    )
    # Negatives 0 (Q 0.9) and 2 (Q 0.1); the positive itself is always there and not corrected.
    expected = math.log(math.exp(0.2) + math.exp(1) / 0.9 + math.exp(0.8) / 0.1) - 0.2
    assert found == pytest.approx(expected, rel=1e-5)


def test_items_past_the_candidates_are_nobody_elses_negatives():
    found = total(items=Contrast(num_candidates=2, excluded=pairs([0, 1], [0, 1]), offsets=None))
    conversion = math.log(math.exp(1) + math.exp(0.4)) - 1
    engagement = math.log(math.exp(0.2) + math.exp(1)) - 0.2
    assert found == pytest.approx(2 * conversion + 0.5 * engagement, rel=1e-5)


def test_rows_of_positives_repeat_their_query():
    found = total(
        row_query=torch.tensor([0, 0]),
        items=Contrast(num_candidates=3, excluded=pairs([0, 1], [0, 1]), offsets=None),
        positives={"conversion": positives([0, 1], [0, 1], [1.0, 1.0])},
    )
    partition = math.log(math.exp(1) + math.exp(0.4) + math.exp(-0.6))
    assert found == pytest.approx(2 * (2 * partition - 1 - 0.4), rel=1e-5)


def test_each_head_of_multi_head_learns_from_its_own_task_alone():
    queries = {name: torch.randn(2, 2, requires_grad=True) for name in ("conversion", "engagement")}
    items = {name: torch.randn(3, 2) for name in queries}
    only = labels(positives={"conversion": positives([0], [0], [1.0])})
    Objective(CONFIG, normalize=True)(queries, items, only, same).total.backward()
    assert queries["conversion"].grad.any()
    assert queries["engagement"].grad is None


def advertisers(excluded: Pairs, group: list[int]) -> AdvertiserLabels:
    contrast = Contrast(num_candidates=max(group) + 1, excluded=excluded, offsets=None)
    return AdvertiserLabels(contrast=contrast, group=torch.tensor(group), positives=positives([0], [0], [1.0]))


def test_advertiser_loss_contrasts_means_of_items_by_hand():
    config = dataclasses.replace(CONFIG, advertiser_weight=0.25)
    with_loss = total(config, advertisers=advertisers(pairs([0], [0]), [0, 0, 1]))
    # Advertiser 0 is the mean of items 0 and 1: query 0 scores (0.5 + 0.2) / 2 / 0.5 = 0.7; advertiser 1 scores -0.6.
    expected = 0.25 * (math.log(math.exp(0.7) + math.exp(-0.6)) - 0.7)
    assert with_loss - total(config) == pytest.approx(expected, rel=1e-4)


def test_a_batch_with_one_advertiser_adds_nothing():
    assert total(advertisers=advertisers(pairs([0, 1], [0, 0]), [0, 0, 0])) == pytest.approx(total(), rel=1e-6)


def test_a_hard_negative_counts_as_often_as_configured():
    found = total(dataclasses.replace(CONFIG, hard_negative_weight=3.0), hard=pairs([0], [2]))
    # Item 2 is one of the candidates of query 0, at -0.6, and counts three times more.
    conversion = math.log(math.exp(1) + math.exp(0.4) + 4 * math.exp(-0.6)) - 1
    engagement = math.log(math.exp(0.2) + math.exp(1) + math.exp(0.8)) - 0.2
    assert found == pytest.approx(2 * conversion + 0.5 * engagement, rel=1e-5)


@pytest.mark.parametrize(("step", "bound"), [(-5, 0.05), (5, 0.5)])
def test_a_learned_temperature_stays_in_its_range_and_can_leave_the_bound(step, bound):
    config = LossConfig(temperature=0.07, min_temperature=0.05, max_temperature=0.5)
    temperature = Objective(config, normalize=True).temperature
    with torch.no_grad():
        temperature.log_value += step
    temperature.clamp()
    assert temperature().item() == pytest.approx(bound)
    temperature().backward()
    assert temperature.log_value.grad.item() == pytest.approx(bound)  # d exp(x) / dx


def test_temperature_is_one_for_raw_products():
    assert Objective(LossConfig(), normalize=False).temperature().item() == 1.0
    assert list(Objective(LossConfig(), normalize=False).parameters()) == []


def test_permuting_a_batch_changes_nothing():
    queries = {"unified": QUERIES["unified"].flip(0)}
    permuted = labels(
        items=Contrast(num_candidates=3, excluded=pairs([1, 0], [0, 1]), offsets=None),
        positives={"conversion": positives([1], [0], [1.0]), "engagement": positives([0], [1], [0.5])},
    )
    found = Objective(CONFIG, normalize=True)(queries, ITEMS, permuted, same).total.item()
    assert found == pytest.approx(total(), rel=1e-6)
