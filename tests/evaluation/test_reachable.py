"""Recall against the best reachable: arithmetic by hand, and the best ranking against a full sort of the truth."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conversion_retrieval.datasets.truth import TrueWorld
from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.evaluation.ablation import write_variant
from conversion_retrieval.evaluation.reachable import best_ranks, compare_with_truth, reachable_recalls, truth_queries
from conversion_retrieval.evaluation.stage import evaluate
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.spec import FeatureSpec

RANKS = np.array([0, 150, -1, 5])
BEST = np.array([0, 50, 20, 300])
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "reachable_recall.py"


@pytest.fixture(scope="module")
def dataset(world):
    return FeatureDataset.open(world.features_dir, FeatureSpec.load(world.spec_dir))


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """The artifacts of a finished run on a generated world."""
    directory = tmp_path_factory.mktemp("run")
    evaluate(**world.inputs, evaluation_dir=directory / "evaluation", page_path=directory / "page.html")
    return {
        "data_dir": world.snapshot_dir.parent / "data",
        "features_dir": world.features_dir,
        "spec_dir": world.spec_dir,
        "evaluation_dir": directory / "evaluation",
    }


def test_ratio_is_what_the_model_finds_over_what_can_be_found():
    """Oracle: by hand, two of four found where three of four could be; an item not retrieved is not found."""
    found = reachable_recalls(ranks=RANKS, best_ranks=BEST, users=np.array([3, 3, 9, 9]), ks=(100,))[0]
    assert (found.model.value, found.best.value, found.ratio.value) == (2 / 4, 3 / 4, pytest.approx(2 / 3))


def test_intervals_resample_users_and_hold_the_ratio_of_the_same_resample():
    """Oracle: drawing either user twice gives (1/2, 1), both give 2/3: the only resamples. One user has no others."""
    found = reachable_recalls(ranks=RANKS, best_ranks=BEST, users=np.array([3, 3, 9, 9]), ks=(100,))[0]
    assert (found.ratio.low, found.ratio.high) == (pytest.approx(1 / 2), pytest.approx(1))
    alone = reachable_recalls(ranks=RANKS, best_ranks=BEST, users=np.zeros(4, int), ks=(100,))[0]
    assert alone.ratio.value == pytest.approx(2 / 3)
    assert np.isnan([alone.ratio.low, alone.ratio.high]).all()


def test_best_ranks_are_positions_in_a_full_sort_of_the_true_probabilities(run, dataset):
    world, split = TrueWorld.open(run["data_dir"]), dataset.split("test")
    chosen = split.positives.task == 0
    query, item = split.positives.query[chosen], split.positives.item[chosen]
    scores = world.scores(truth_queries(dataset, split, query))
    expected = [(row > row[i]).sum() + (row[:i] == row[i]).sum() for row, i in zip(scores, item, strict=True)]
    assert best_ranks(world, dataset, split, query, item).tolist() == expected


def test_truth_queries_say_what_the_events_said(dataset):
    split = dataset.split("test")
    rows = np.flatnonzero(split.context_embedding >= 0)[:5]
    queries = truth_queries(dataset, split, rows)
    assert set(queries.surfaces) == {"search"}
    assert np.abs(queries.context_embeddings).sum(1).min() > 0
    related = np.flatnonzero(split.context_item >= 0)[:5]
    expected = [dataset.item_ids[int(i)].as_py() for i in split.context_item[related]]
    assert truth_queries(dataset, split, related).context_item_ids.to_pylist() == expected


def test_comparison_reads_the_evaluations_own_recall(run, world):
    """Oracle: the recall that the stage returned is the model's recall here."""
    k = world.config.gate.k
    found = compare_with_truth(**run, ks=(k,))[0]
    recall = evaluate(
        **world.inputs,
        evaluation_dir=run["evaluation_dir"].with_name("again"),
        page_path=run["evaluation_dir"].with_name("again.html"),
    )
    assert found.model.value == pytest.approx(recall)
    assert found.ratio.value == pytest.approx(found.model.value / found.best.value)


def test_missing_truth_and_unknown_models_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="truth"):
        compare_with_truth(**{**run, "data_dir": tmp_path})
    with pytest.raises(UserError, match="'nobody'"):
        compare_with_truth(**run, model="nobody")


def test_variant_of_an_ablation_compares_as_the_evaluation_it_was_made_of(run, tmp_path):
    write_variant(evaluation_dir=run["evaluation_dir"], variant_dir=tmp_path / "variant", variant="default", seed=0)
    of_variant = {**run, "evaluation_dir": tmp_path / "variant", "kind": "variant"}
    assert compare_with_truth(**of_variant) == compare_with_truth(**run)
    with pytest.raises(CorruptArtifactError, match="'variant'"):
        compare_with_truth(**{**of_variant, "kind": "evaluation"})


@pytest.mark.parametrize("kind", ["evaluation", "variant"])
def test_benchmark_prints_the_table(run, tmp_path, kind):
    paths = {name.removesuffix("_dir"): path for name, path in run.items()}
    if kind == "variant":
        paths["variant"] = tmp_path / "variant"
        write_variant(evaluation_dir=paths.pop("evaluation"), variant_dir=paths["variant"], variant="default", seed=0)
    arguments = [f"--{name}={path}" for name, path in paths.items()]
    printed = subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed[0] == "| k | recall | best reachable | ratio |"
    assert [line.split("|")[1].strip() for line in printed[2:]] == ["10", "100", "1000"]
