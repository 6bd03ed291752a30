"""Configurations are checked before anything runs, and mistakes are named with the nearest right answer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conversion_retrieval.config import (
    PipelineConfig,
    config_digest,
    config_values,
    load_config,
    parse_config,
    stage_config,
)
from conversion_retrieval.errors import UserError


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("training: {batch_size: 7, max_epochs: 3}\n")
    config = load_config(path, ["training.batch_size=9", "model.query_tower.hidden_sizes=[8, 4]"])
    assert (config.training.batch_size, config.training.max_epochs, config.training.patience) == (
        9,
        3,
        PipelineConfig().training.patience,
    )
    assert config.model.query_tower.hidden_sizes == (8, 4)


def test_resolved_values_parse_back_to_the_same_configuration():
    config = load_config(None, ["losses.task_weights={conversion: 1.0, engagement: 0.5}"])
    again = parse_config(config_values(config))
    assert again == config
    assert config_digest(again) == config_digest(config) != config_digest(PipelineConfig())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.batchsize=3", "unknown key training.batchsize; did you mean training.batch_size?"),
        ("max_epochs=3", "unknown key max_epochs; did you mean training.max_epochs?"),
        ("model.learning_rate=1", "unknown key model.learning_rate; did you mean training.learning_rate?"),
        ("encoder=none", "unknown key encoder; did you mean model.history.encoder?"),
        ("trainin.batch_size=3", "unknown key trainin; did you mean training?"),
        ("model.query_tower.layouts=parallel", "did you mean model.query_tower.layout?"),
        ("model.query_tower.layout=diagonal", "model.query_tower.layout: .*'diagonal'"),
        ("training.batch_size=many", "training.batch_size: .*'many'"),
        ("training.batch_size=0", "must be positive"),
        ("training.batch_size", "expected section.key=value"),
        ("training=3", "training: .*"),
        ("losses.task_weights={views: 1}", "task_weights knows conversion and engagement"),
        ("evaluation.baselines=[popularty]", "evaluation: baselines .* 'popularty'; did you mean popularity?"),
        ("gate.must_beat=[nosuch]", "gate: must_beat .* 'nosuch'; known: popularity, .*, engagement_only"),
        ("gate.guardrail_slices=[surfaces]", "gate: guardrail_slices .*'surfaces'; did you mean surface?"),
        (
            "evaluation.baselines=[item_knn]",
            "gate.must_beat needs .* out of evaluation.baselines, item_knn; .*popularity",
        ),
        ("split.as_of=2026-02-30", "expected a YAML value in 'split.as_of=2026-02-30', found: day is out of range"),
        ("split.as_of=yesterday", "split: as_of must be an ISO date or time such as 2026-11-23, found 'yesterday'$"),
        ("gate.confidence_level=0", "confidence_level must be between 0 and 1, found 0"),
        ("gate.num_resamples=39", "num_resamples must be at least 40 at a confidence_level of 0.95, found 39"),
        ("evaluation.confidence_level=0.999", "num_resamples must be at least 2000 .* of 0.999, found 1000"),
        ("gate.min_slice_conversions=0", "min_slice_conversions must be at least 1, found 0"),
        ("gate.max_regression=-0.1", "max_regression must be between 0 and 1, found -0.1"),
        ("training.weight_decay=-1", "weight_decay must be at least 0, found -1"),
        ("validation.max_drift_psi=-1", "max_drift_psi must be at least 0, found -1"),
        ("features.history_length=-1", "history_length must not be negative, found -1"),
        ("features.aggregate_windows_days=[7, 1, 7.0]", r"_days must differ .*found \(7.0, 1.0, 7.0\)"),
        ("features.new_buyer_half_lives_days=[7, 7.000001]", "_lives_days must differ in their first six"),
        ("gate.must_beat=popularity", "gate.must_beat: expected a list, found 'popularity'"),
        ("model.item_hash_buckets=-1", "item_hash_buckets must be at least 0, found -1"),
        ("model.seed=-1", "seed must be at least 0, found -1"),
        ("gate.seed=-1", "seed must be at least 0, found -1"),
        ("index.seed=-1", "seed must be at least 0, found -1"),
        ("evaluation.seed=-1", "seed must be at least 0, found -1"),
        ("split.seed=-1", "seed must be at least 0, found -1"),
        ("training.seed=-1", "seed must be at least 0, found -1"),
    ],
)
def test_mistakes_are_refused_in_one_line(override, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(None, [override])
    assert "\n" not in str(caught.value)


NUMBERS = [
    *("gate.max_regression", "gate.max_slice_regression", "gate.min_recall", "gate.confidence_level"),
    *("index.max_latency_ms", "validation.max_drift_psi", "training.learning_rate", "split.test_days"),
    *("evaluation.popularity_half_lives_days", "losses.task_weights", "model.query_tower.dropout"),
]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "nan"])  # the last is a text that reads as a number
@pytest.mark.parametrize("name", NUMBERS)
def test_no_section_takes_a_number_that_is_not_finite(name, value):
    collections = {"half_lives_days": f"[7.0, {value}]", "task_weights": f"{{conversion: {value}}}"}
    given = next((text for end, text in collections.items() if name.endswith(end)), value)
    with pytest.raises(UserError, match=r"found .*(nan|inf)") as caught:
        load_config(None, [f"{name}={given}"])
    assert name.split(".")[0] in str(caught.value)
    with pytest.raises(UserError):
        stage_config(json.dumps({"gate": {"max_regression": float("nan")}}))


def test_a_history_may_have_no_length_and_an_ablation_no_baselines():
    assert load_config(None, ["features.history_length=0"]).features.history_length == 0
    assert load_config(None, ["evaluation.baselines=[]"]).gate.must_beat == ("popularity",)


@pytest.mark.parametrize("content", ["training: [", "- a\n- b\n", "\x00", "split: {as_of: 2026-31-01}"])
def test_a_broken_file_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"broken\.yaml") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", ["conversion_retrieval.cli", "conversion_retrieval.config"])
def test_command_line_modules_import_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'kfp', 'pandas', 'faiss', 'dask') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_library_never_imports_kfp():
    code = (
        "import importlib, pkgutil, sys, conversion_retrieval as package\n"
        "for module in pkgutil.walk_packages(package.__path__, 'conversion_retrieval.'):\n"
        "    importlib.import_module(module.name)\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'kfp'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("text", ["2026-01-31", "2026-01-31T12:00:00"])
def test_a_date_needs_no_quotes_in_a_file_or_an_override(tmp_path, text):
    (tmp_path / "c.yaml").write_text(f"split:\n  as_of: {text}\n")
    assert load_config(tmp_path / "c.yaml").split.as_of == text
    assert load_config(overrides=[f"split.as_of={text}"]).split.as_of == text


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")), ids=lambda path: path.name
)
def test_configurations_that_come_with_the_project_load_and_change_something(path):
    assert load_config(path) != PipelineConfig()


def test_a_stages_parameters_go_over_the_json_and_absent_ones_leave_it():
    text = '{"gate": {"min_recall": 0.1, "min_conversions": 7}}'
    assert stage_config(text, min_recall=0.0).gate.min_recall == 0.0
    assert stage_config(text).gate == parse_config({"gate": {"min_recall": 0.1, "min_conversions": 7}}).gate
    assert stage_config("", as_of="2026-01-31").split.as_of == "2026-01-31"
    with pytest.raises(UserError, match="min_recall"):
        stage_config("", min_recall=float("nan"))


@pytest.mark.parametrize("text", ["[]", "{", '"x"', '{"gate": {"min_recal": 1}}'])
def test_a_stage_refuses_json_that_is_no_configuration(text):
    with pytest.raises(UserError, match=r"config_json"):
        stage_config(text)


def test_a_section_or_key_that_is_there_twice_is_refused(tmp_path):
    """YAML and JSON alike would take the last one, and leave out the first without a word."""
    path = tmp_path / "config.yaml"
    path.write_text("training:\n  max_epochs: 3\nmodel: {}\ntraining:\n  batch_size: 7\n")
    with pytest.raises(UserError, match=r"config\.yaml, found: 'training' is there twice$"):
        load_config(path)
    with pytest.raises(UserError, match="'engagement' is there twice"):
        load_config(None, ["losses.task_weights={engagement: 1, engagement: 2}"])
    with pytest.raises(UserError, match="config_json, found: 'gate' is there twice"):
        stage_config('{"gate": {"k": 10}, "gate": {"min_recall": 0.1}}')


def test_a_section_that_takes_anothers_values_may_override_them(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "model:\n  query_tower: &tower {layout: sequential, hidden_sizes: [8]}\n"
        "  item_tower: {<<: *tower, hidden_sizes: [4]}\n"
    )
    model = load_config(path).model
    assert (model.item_tower.layout, model.item_tower.hidden_sizes) == ("sequential", (4,))
    assert model.query_tower.hidden_sizes == (8,)


def test_a_section_that_was_commented_out_is_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("training:\n  # max_epochs: 3\n")
    assert load_config(path, ()) == load_config(None, ())
    assert load_config(path, ["training.max_epochs=3"]).training.max_epochs == 3
    with pytest.raises(UserError, match="expected a section of settings, found 3"):
        load_config(None, ["model.history=3"])
