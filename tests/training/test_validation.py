import dataclasses

import numpy as np
import torch

from conversion_retrieval.training.load import LoadedModel
from conversion_retrieval.training.stage import make_trainer
from tests.training.runs import small_config
from tests.training.separable import SeparableWorld, separable_world

WORLD = separable_world(num_users=50)


def test_recall_equals_a_brute_force_count_of_distinct_positives_at_each_snapshot():
    trainer = make_trainer(WORLD, small_config())
    loaded = LoadedModel(
        model=trainer.learner.model, spec=WORLD.spec, config=small_config(), device=torch.device("cpu")
    )
    split, hits, total = WORLD.split("validation"), 0, 0
    for query in range(len(split)):
        positives = slice(2 * query, 2 * query + 2)
        wanted = set(split.positives.item[positives][split.positives.task[positives] == 0].tolist())
        items = loaded.encode_items(WORLD, int(split.snapshot[query]))
        scores = items @ loaded.encode_queries(WORLD, split, np.array([query]))[0]
        hits += len(wanted & set(np.argsort(-scores)[:10].tolist()))
        total += len(wanted)
    assert trainer.validator.measure(trainer.learner.model)["conversion/recall@10"] == hits / total


def test_new_recall_counts_only_items_new_to_the_user():
    world = separable_world(num_users=50)
    split = world.split("validation")
    positives = dataclasses.replace(split.positives, new_to_user=np.zeros(len(split.positives), bool))
    replaced: SeparableWorld = world
    replaced.splits["validation"] = dataclasses.replace(split, positives=positives)
    values = make_trainer(replaced, small_config()).validator.measure(make_trainer(WORLD, small_config()).learner.model)
    assert "conversion/recall@10" in values
    assert "conversion/new_recall@10" not in values


def test_a_limit_takes_a_seeded_sample_of_the_queries():
    validator = make_trainer(WORLD, small_config(training={"max_validation_queries": 7})).validator
    assert len(validator.rows) == 7
    assert (np.diff(validator.rows) > 0).all()


def test_validation_leaves_the_random_state_alone():
    trainer = make_trainer(WORLD, small_config())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trainer.validator.measure(trainer.learner.model)
    assert torch.equal(torch.rand(1), expected)
