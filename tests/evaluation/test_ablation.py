"""Variants are compared on the same positives, paired, and mistakes are refused."""

import html
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conversion_retrieval import contracts
from conversion_retrieval.config import PipelineConfig, load_config, stage_config
from conversion_retrieval.errors import UserError
from conversion_retrieval.evaluation.ablation import compare_variants
from conversion_retrieval.evaluation.variants import VARIANTS, plan_variants, select_variants, variant_config

NUM_POSITIVES = 200


def _variant(path, name, seed, ranks, items=None):
    size = len(ranks)
    table = pa.table(
        {
            "model": ["candidate"] * size,
            "query": np.arange(size) // 2,
            "user": np.arange(size) // 4,
            "item": np.arange(size) if items is None else items,
            "task": np.zeros(size, np.int8),
            "rank": np.asarray(ranks, np.int64),
        }
    )
    with contracts.new_artifact(path, kind="variant", metadata={"variant": name, "seed": seed}) as directory:
        pq.write_table(table, directory / "ranks.parquet")
    return path


def _compare(tmp_path, dirs):
    rows = compare_variants(
        variant_dirs=dirs, ablation_dir=tmp_path / "out", page_path=tmp_path / "page.html", config=PipelineConfig()
    )
    return {(row.variant, row.k): row for row in rows}


def test_recall_and_difference_follow_from_the_ranks(tmp_path):
    half = np.where(np.arange(NUM_POSITIVES) % 2 == 0, 5, 500)
    dirs = [
        _variant(tmp_path / "a", "default", 0, half),
        _variant(tmp_path / "b", "no_history", 0, np.full(NUM_POSITIVES, 500)),
    ]
    rows = _compare(tmp_path, dirs)
    assert rows["default", 100].recall.value == 0.5
    assert rows["no_history", 100].difference.value == -0.5
    # Every user has two of four found, so no resample can differ.
    assert (rows["no_history", 100].difference.low, rows["no_history", 100].difference.high) == (-0.5, -0.5)
    assert rows["no_history", 1000].recall.value == 1.0
    assert (
        "| no_history | 0.0000 [0.0000, 0.0000] | -0.5000 [-0.5000, -0.5000]"
        in (tmp_path / "out" / "ablation.md").read_text()
    )


def test_the_caption_says_what_the_brackets_are_over(tmp_path):
    """One seed tells nothing about other seeds, so intervals cannot be over them."""
    dirs = [_variant(tmp_path / f"{seed}", "default", seed, np.arange(NUM_POSITIVES)) for seed in range(2)]
    for chosen, told in ((dirs[:1], "one seed; brackets: 95% bootstrap over users alone"), (dirs, "mean of 2 seeds")):
        _compare(tmp_path, chosen)
        assert f"of 50 users, {told}" in (tmp_path / "out" / "ablation.md").read_text()
        assert ("over users and seeds" in (tmp_path / "page.html").read_text()) == (len(chosen) == 2)


def test_not_retrieved_is_never_a_hit(tmp_path):
    rows = _compare(tmp_path, [_variant(tmp_path / "a", "default", 0, np.full(NUM_POSITIVES, -1))])
    assert rows["default", 1000].recall.value == 0.0


def test_no_logq_is_compared_with_the_sampled_softmax_not_with_the_full_one(tmp_path):
    found = {"default": 5, "sampled_softmax": 500, "sampled_softmax_no_logq": 5}
    dirs = [_variant(tmp_path / name, name, 0, np.full(NUM_POSITIVES, rank)) for name, rank in found.items()]
    row = _compare(tmp_path, dirs)["sampled_softmax_no_logq", 100]
    assert (row.reference, row.difference.value) == ("sampled_softmax", 1.0)
    assert "+1.0000 [+1.0000, +1.0000] to sampled_softmax |" in (tmp_path / "out" / "ablation.md").read_text()
    alone = _compare(tmp_path / "alone", [dirs[0], dirs[2]])["sampled_softmax_no_logq", 100]
    assert (alone.reference, alone.difference.value) == ("default", 0.0)


def test_the_page_draws_paired_differences_and_says_to_what(tmp_path):
    found = np.arange(NUM_POSITIVES)
    dirs = [_variant(tmp_path / "a", "default", 0, found)]
    _compare(tmp_path, dirs)
    assert "<figure" not in (tmp_path / "page.html").read_text()  # nothing to compare
    others = ("no_history", "sampled_softmax", "sampled_softmax_no_logq")
    dirs += [_variant(tmp_path / name, name, 0, found + 60) for name in others]
    _compare(tmp_path, dirs)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure") == 2
    assert "Recall@100, paired differences to the default; sampled_softmax_no_logq to sampled_softmax<" in page
    assert "no_history" in page.partition("<figure")[2]


def test_both_tables_say_what_a_variant_sets(tmp_path):
    name, options = "engagement_weight_0.1", {"losses.task_weights": {"conversion": 1.0, "engagement": 0.1}}
    assert VARIANTS[name] == options
    _compare(tmp_path, [_variant(tmp_path / v, v, 0, np.arange(NUM_POSITIVES)) for v in ("default", name)])
    (option,) = re.findall(rf"^- {name}: `(.*)`$", (tmp_path / "out" / "ablation.md").read_text(), re.MULTILINE)
    assert f"<small>{option}</small>" in html.unescape((tmp_path / "page.html").read_text())
    assert load_config(None, [option]).losses.task_weights == options["losses.task_weights"]


def test_other_positives_are_refused(tmp_path):
    ranks = np.zeros(NUM_POSITIVES)
    dirs = [
        _variant(tmp_path / "a", "default", 0, ranks),
        _variant(tmp_path / "b", "no_history", 0, ranks, items=np.arange(NUM_POSITIVES) + 1),
    ]
    with pytest.raises(UserError, match="same test positives"):
        _compare(tmp_path, dirs)


def test_models_of_other_seeds_are_not_paired_and_the_same_seed_twice_is_refused(tmp_path):
    ranks = np.zeros(NUM_POSITIVES)
    dirs = [_variant(tmp_path / f"default{seed}", "default", seed, ranks) for seed in (0, 1)]
    dirs += [_variant(tmp_path / f"other{seed}", "no_history", seed, ranks) for seed in (0, 2)]
    assert _compare(tmp_path, dirs)["no_history", 100].difference is None
    dirs[3] = _variant(tmp_path / "other1", "no_history", 1, ranks)
    assert _compare(tmp_path, dirs)["no_history", 100].difference.value == 0
    with pytest.raises(UserError, match=r"found 'no_history' with seed 1 again: .*again"):
        _compare(tmp_path, [*dirs, _variant(tmp_path / "again", "no_history", 1, ranks)])


def test_a_comparison_needs_conversions(tmp_path):
    with pytest.raises(UserError, match="expected conversions in the test window"):
        _compare(tmp_path, [_variant(tmp_path / "a", "default", 0, [])])


def test_a_comparison_needs_the_default(tmp_path):
    with pytest.raises(UserError, match="'default' variant"):
        _compare(tmp_path, [_variant(tmp_path / "a", "no_history", 0, np.zeros(NUM_POSITIVES))])


@pytest.mark.parametrize("overrides", [[], ["training.batch_size=33", "split.as_of=2026-01-31"]])
def test_the_plan_holds_every_variant_and_seed_with_its_whole_configuration_in_few_bytes(overrides):
    base = load_config(None, overrides)
    plan = plan_variants(base, ("no_history", "engagement_weight_0.1"), num_seeds=2)
    names = ["default", "no_history", "engagement_weight_0.1"]
    assert [(run["variant"], run["seed"]) for run in plan] == [(name, seed) for seed in "01" for name in names]
    for run in plan:
        assert stage_config(run["config_json"]) == variant_config(base, run["variant"], seed=int(run["seed"]))
        assert len(run["config_json"]) < 300


def test_a_variant_that_the_configuration_is_already_is_said_and_not_trained_as_one_without_effect(capsys):
    base = load_config(None, ["losses.hard_negatives=false", "losses.softmax=sampled"])
    names = ("no_hard_negatives", "sampled_softmax", "sampled_softmax_no_logq")
    assert [run["variant"] for run in plan_variants(base, names, num_seeds=1)] == ["default", "sampled_softmax_no_logq"]
    assert (
        "left out, as this configuration is that already: no_hard_negatives, sampled_softmax" in capsys.readouterr().err
    )
    assert [run["variant"] for run in plan_variants(load_config(), names, num_seeds=1)] == ["default", *names]
    assert not capsys.readouterr().err


def test_unknown_variants_are_refused_and_the_default_always_runs():
    assert select_variants(("no_history",)) == ("default", "no_history")
    with pytest.raises(UserError, match="'no_histroy'"):
        select_variants(("no_histroy",))
