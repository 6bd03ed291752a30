import dataclasses
import os
import signal

import numpy as np
import pytest
import torch

from conversion_retrieval.evaluation.events import seen_items
from conversion_retrieval.training import load, validation
from conversion_retrieval.training.interruption import stop_on_sigterm
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


def test_new_recall_ranks_without_what_the_user_had_by_brute_force():
    trainer = make_trainer(WORLD, small_config())
    loaded = LoadedModel(
        model=trainer.learner.model, spec=WORLD.spec, config=small_config(), device=torch.device("cpu")
    )
    split, events, hits, total = WORLD.split("validation"), WORLD.events, 0, 0
    for query, user in enumerate(split.user):
        had = events.item[events.offsets[user] : split.history_end[query]]
        found = slice(2 * query, 2 * query + 2)
        counts = (split.positives.task[found] == 0) & split.positives.new_to_user[found]
        wanted = set(split.positives.item[found][counts].tolist())
        items = loaded.encode_items(WORLD, int(split.snapshot[query]))
        scores = items @ loaded.encode_queries(WORLD, split, np.array([query]))[0]
        scores[had] = -np.inf
        hits += len(wanted & set(np.argsort(-scores)[:10].tolist()) - set(had.tolist()))
        total += len(wanted)
    found = trainer.validator.measure(trainer.learner.model)
    assert found["conversion/new_recall@10"] == hits / total != found["conversion/recall@10"]


@pytest.mark.parametrize("metric", ["conversion/recall@10", "conversion/new_recall@10"])
def test_a_sample_of_the_queries_holds_those_that_the_metric_counts(metric):
    world = separable_world(num_users=50)
    split = world.split("validation")
    rare = dataclasses.replace(
        split.positives,
        task=np.where(split.positives.query < 6, 0, 1).astype(np.int8),
        new_to_user=split.positives.query < 3,
    )
    world.splits["validation"] = dataclasses.replace(split, positives=rare)
    training = {"max_validation_queries": 7, "early_stopping_metric": metric}
    validator = make_trainer(world, small_config(training=training)).validator
    counting = range(3 if "new" in metric else 6)
    assert set(counting) < set(validator.rows.tolist())
    assert len(validator.rows) == 7
    assert metric in validator.measure(make_trainer(WORLD, small_config()).learner.model)


def test_a_list_as_long_as_the_catalogue_chooses_nothing_so_a_tenth_of_it_does(capsys):
    """Oracle: a list of all items holds all positives, whatever the model; the shorter one can be asked for by name."""
    everything = {"early_stopping_metric": f"conversion/new_recall@{WORLD.num_items}"}
    trainer = make_trainer(WORLD, small_config(training=everything))
    said = capsys.readouterr().err
    tenth = WORLD.num_items // 10
    assert trainer.validator.metric == f"conversion/new_recall@{tenth}"
    assert f"{WORLD.num_items} items all fit into a list of {WORLD.num_items}: training stops on recall@{tenth}" in said
    by_name = make_trainer(WORLD, small_config(training={"early_stopping_metric": f"conversion/recall@{tenth}"}))
    model = trainer.learner.model
    assert trainer.validator.measure(model) == by_name.validator.measure(model)
    almost = make_trainer(
        WORLD, small_config(training={"early_stopping_metric": f"conversion/recall@{WORLD.num_items - 1}"})
    )
    assert almost.validator.k == WORLD.num_items - 1


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


def test_what_users_had_before_is_gathered_once_however_often_is_validated(monkeypatch):
    calls = []
    monkeypatch.setattr(validation, "seen_items", lambda *args: calls.append(args) or seen_items(*args))
    trainer = make_trainer(WORLD, small_config())
    first = trainer.validator.measure(trainer.learner.model)
    assert trainer.validator.measure(trainer.learner.model) == first
    assert len(calls) == len(np.unique(WORLD.split("validation").snapshot))


@pytest.mark.parametrize("name", ["performance", "query_arrays"])
def test_a_stop_request_ends_it_wherever_it_is(monkeypatch, name):
    trainer, calls = make_trainer(WORLD, small_config()), []
    original = getattr(SeparableWorld, name)

    def told_to_stop(self, *arguments):
        calls.append(arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(SeparableWorld, name, told_to_stop)
    with stop_on_sigterm() as stop:
        assert trainer.validator.measure(trainer.learner.model, stop) is None
        assert len(calls) == 1
        assert trainer.validator.measure(trainer.learner.model, stop) is None  # known before it began
    assert len(calls) == 1


def test_blocks_of_scores_change_no_recall(monkeypatch):
    trainer = make_trainer(WORLD, small_config())
    expected = trainer.validator.measure(trainer.learner.model)
    monkeypatch.setattr(validation, "SCORE_BYTES", 1)
    monkeypatch.setattr(load, "ITEM_BLOCK", 7)
    assert trainer.validator.measure(trainer.learner.model) == expected
