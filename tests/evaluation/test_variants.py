"""Every variant switches what its name says and nothing else; oracles: the switches by hand, and what a batch holds."""

from typing import Any

import numpy as np
import pytest
import torch

from conversion_retrieval.config import PipelineConfig, config_values
from conversion_retrieval.evaluation.variants import REFERENCES, VARIANTS, reference_of, variant_config
from conversion_retrieval.features.inputs import QueryArrays
from conversion_retrieval.features.queries import label_weights
from conversion_retrieval.model.inputs import QueryInputs
from conversion_retrieval.schema import EVENT_TYPES
from conversion_retrieval.training.loop import Trainer
from conversion_retrieval.training.stage import make_trainer
from tests.training.runs import small_config
from tests.training.separable import separable_world

WORLD = separable_world(num_users=60)
BASE = small_config(training={"batch_size": 33})
SEQUENTIAL = {"model.query_tower.layout": "sequential", "model.item_tower.layout": "sequential"}

DIFFERENCES: dict[str, dict[str, Any]] = {
    "default": {},
    "2023_multi_head_sequential": {**SEQUENTIAL, "model.heads": "multi_head", "losses.advertiser_weight": 0.0},
    "multi_head": {"model.heads": "multi_head"},
    "sequential": SEQUENTIAL,
    "no_advertiser_loss": {"losses.advertiser_weight": 0.0},
    "no_duration_weights": {"labels.click_duration_weighting": False},
    "no_hard_negatives": {"losses.hard_negatives": False},
    "no_engagement_task": {"losses.task_weights.engagement": 0.0},
    "no_history": {"model.history.encoder": "none"},
    "no_recent_steps": {"training.recent_epochs": 0},
    "sampled_softmax": {"losses.softmax": "sampled"},
    "sampled_softmax_no_logq": {"losses.softmax": "sampled", "losses.logq_correction": False},
    "engagement_weight_0.1": {"losses.task_weights.engagement": 0.1},
    "engagement_weight_1.0": {"losses.task_weights.engagement": 1.0},
    "engagement_weight_3.0": {"losses.task_weights.engagement": 3.0},
    "advertiser_weight_0.5": {"losses.advertiser_weight": 0.5},
}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted paths to leaves."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_differs_from_the_configuration_given_in_its_switches_alone(name):
    base, own = flat(config_values(BASE)), flat(config_values(variant_config(BASE, name, seed=4)))
    seeds = {"model.seed": 4, "training.seed": 4, "evaluation.baselines": own["evaluation.baselines"]}
    assert len(own["evaluation.baselines"]) == 0
    assert {path: value for path, value in own.items() if base[path] != value} == {**seeds, **DIFFERENCES[name]}


def trainer_of(name: str, base: PipelineConfig = BASE) -> Trainer:
    return make_trainer(WORLD, variant_config(base, name, seed=0))


def first_batch(trainer: Trainer) -> Any:
    snapshot, rows = next(iter(trainer.builder.examples.rows_by_snapshot.items()))
    return trainer.builder.build(snapshot, rows[:40], epoch=0, index=0)


def loss_terms(name: str) -> set[str]:
    trainer = trainer_of(name)
    return set(trainer.learner.losses(first_batch(trainer)).sums)


def test_loss_terms_vanish_with_their_switch():
    assert loss_terms("default") == {"conversion", "engagement", "advertiser"}
    assert loss_terms("no_advertiser_loss") == {"conversion", "engagement"}
    assert loss_terms("2023_multi_head_sequential") == {"conversion", "engagement"}
    assert loss_terms("no_engagement_task") == {"conversion", "advertiser"}


def test_a_task_weighs_in_the_loss_what_the_sweep_says():
    totals = {}
    for name in ("no_engagement_task", "engagement_weight_1.0", "engagement_weight_3.0"):
        trainer = trainer_of(name, small_config(losses={"advertiser_weight": 0.0}))
        trainer.learner.model.eval()
        snapshot, rows = next(iter(trainer.builder.examples.rows_by_snapshot.items()))
        both = [row for row in rows if set(WORLD.split("train").positives.task[2 * row : 2 * row + 2]) == {0, 1}]
        batch = trainer.builder.build(snapshot, np.array(both[:20]), epoch=0, index=0)
        values = trainer.learner.losses(batch)
        scaled = {task: float(values.sums[task]) * batch.labels.scales[task] for task in values.sums}
        totals[name] = float(values.total.detach()), scaled
    for name, weight in (("engagement_weight_1.0", 1.0), ("engagement_weight_3.0", 3.0)):
        total, scaled = totals[name]
        assert total == pytest.approx(scaled["conversion"] + weight * scaled["engagement"], rel=1e-5)
    total, scaled = totals["no_engagement_task"]
    assert total == pytest.approx(scaled["conversion"], rel=1e-5)


def test_hard_negatives_vanish_with_their_switch():
    assert first_batch(trainer_of("default")).labels.hard is not None
    assert first_batch(trainer_of("no_hard_negatives")).labels.hard is None


def test_sampling_and_its_correction_come_and_go_with_their_switches():
    default, sampled, uncorrected = (
        first_batch(trainer_of(name)) for name in ("default", "sampled_softmax", "sampled_softmax_no_logq")
    )
    assert default.full
    assert not sampled.full
    assert not uncorrected.full
    assert default.labels.items.offsets is None
    assert sampled.labels.items.offsets is not None
    assert uncorrected.labels.items.offsets is None


def test_towers_and_heads_are_those_of_the_name():
    shapes = {}
    for name in ("default", "sequential", "multi_head", "2023_multi_head_sequential"):
        model = trainer_of(name).learner.model
        towers = (model.query_tower, model.item_tower)
        shapes[name] = [(tower.body.parallel, sorted(tower.heads)) for tower in towers]
    both = ["conversion", "engagement"]
    assert shapes["default"] == [(True, ["unified"])] * 2
    assert shapes["sequential"] == [(False, ["unified"])] * 2
    assert shapes["multi_head"] == [(True, both)] * 2
    assert shapes["2023_multi_head_sequential"] == [(False, both)] * 2


def query_vectors(trainer: Trainer, arrays: QueryArrays) -> torch.Tensor:
    model, catalogue = trainer.learner.model.eval(), trainer.builder.catalogue
    inputs = QueryInputs.of(arrays, WORLD.num_items, torch.device("cpu"))
    with torch.no_grad():
        return model.encode_queries(inputs, model.embed_history_items(catalogue), catalogue.id_code)


@pytest.mark.parametrize("model", [{}, {"normalize": False, "memory_dim": 4, "memory_weight": 1.0}])
def test_no_history_means_that_no_event_moves_a_query(model):
    base, split = small_config(model=model), WORLD.split("train")
    arrays = WORLD.query_arrays(split, np.arange(20))
    shifted = QueryArrays(**{**vars(arrays), "history_item": (arrays.history_item + 17) % WORLD.num_items})
    for name, moves in (("default", True), ("no_history", False)):
        trainer = trainer_of(name, base)
        if trainer.learner.model.memory is not None:
            trainer.learner.model.memory.factors.normal_()
        assert bool((query_vectors(trainer, arrays) != query_vectors(trainer, shifted)).any()) is moves


def test_without_duration_weights_every_click_counts_alike():
    kind, duration = np.full(3, EVENT_TYPES.index("click"), np.int8), np.array([0.0, 5.0, np.nan])
    weights = {
        name: label_weights(kind, duration, variant_config(BASE, name, seed=0).labels, duration_cap=10.0)
        for name in ("default", "no_duration_weights")
    }
    assert len(set(weights["no_duration_weights"].tolist())) == 1
    assert weights["default"][0] == 0
    assert weights["default"][1] == pytest.approx(np.log(1.5) / np.log(2), rel=1e-6)


def test_no_logq_is_judged_beside_the_sampled_softmax_where_that_was_measured():
    assert set(REFERENCES) | set(REFERENCES.values()) <= set(VARIANTS)
    assert reference_of("sampled_softmax_no_logq", {"default", "sampled_softmax"}) == "sampled_softmax"
    assert reference_of("sampled_softmax_no_logq", {"default"}) == "default"
    assert reference_of("no_history", {"default", "sampled_softmax"}) == "default"
