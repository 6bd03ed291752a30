"""Each component alone: its body through ``python_func``, its compiled form in a process of its own.

Oracle: the artifacts that the library's own reader accepts. The body that compiles but uses a module's name dies only
in a process of its own, so both are tested.
"""

import ast
import builtins
import dis
import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from types import CodeType

import pytest
from kfp import dsl, local

from conversion_retrieval.contracts import open_artifact
from conversion_retrieval.errors import UserError
from conversion_retrieval.registry.registry import Registry
from tests.worlds import tiny_world

COMPONENTS = Path(__file__).parents[2] / "components"
STAGES = ("validate_data", "build_features", "train", "evaluate", "build_index", "gate", "promote", "notify")
FILES = sorted({path.stem for path in COMPONENTS.glob("*.py")} - {"__init__", "images"})
CONFIG = json.dumps(
    {
        "training": {"max_steps": 2, "batch_size": 256},
        "model": {"embedding_dim": 8, "feature_dim": 4, "history": {"encoder": "recency_mean"}},
        "evaluation": {"num_resamples": 40, "baselines": ["popularity"]},
        "gate": {"num_resamples": 40, "min_conversions": 1, "min_queries": 1, "must_beat": [], "guardrail_slices": []},
        "split": {"max_evaluation_queries": 100},
    }
)
pytestmark = pytest.mark.long


def component(stage: str):
    return getattr(importlib.import_module(f"components.{stage}"), stage)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stages")


def artifact(root: Path, name: str, kind: type = dsl.Artifact):
    return kind(name=name, uri=str(root / name))


@pytest.fixture(scope="module")
def done(root) -> dict[str, object]:
    """Every body called in order through ``python_func``; returns what each returned."""
    tiny_world(root / "data")
    registry, here = str(root / "registry"), {}

    def given(*names: str) -> dict[str, dsl.Artifact]:
        return {name: here.setdefault(name, artifact(root, name)) for name in names}

    (root / "pages").mkdir()
    pages = {s: artifact(root / "pages", s, dsl.HTML) for s in ("validate_data", "evaluate", "gate")}
    models = ("features", "spec", "model")
    returned: dict[str, object] = {}

    def call(stage: str, **arguments: object) -> None:
        returned[stage] = component(stage).python_func(**arguments)

    with_config = {"config_json": CONFIG}
    call(
        "validate_data",
        data_uri=str(root / "data"),
        registry_uri=registry,
        as_of="",
        run_id="run-1",
        page=pages["validate_data"],
        **with_config,
        **given("snapshot", "report"),
    )
    call("build_features", as_of="", **with_config, **given("snapshot", "features", "spec"))
    call(
        "train",
        as_of="",
        checkpoint_dir=str(root / "checkpoints"),
        num_nodes=1,
        gpus_per_node="1",
        node_selector={},
        run_id="run-1",
        **with_config,
        **given(*models),
    )
    metrics = artifact(root, "metrics", dsl.Metrics)
    call(
        "evaluate",
        registry_uri=registry,
        metrics=metrics,
        page=pages["evaluate"],
        **with_config,
        **given(*models, "evaluation"),
    )
    returned["metrics"] = metrics.metadata
    call("build_index", **with_config, **given(*models, "index"))
    call(
        "gate",
        registry_uri=registry,
        min_recall=-1.0,
        min_conversions=-1,
        allow_first=True,
        run_id="run-1",
        page=pages["gate"],
        **with_config,
        **given(*models, "report", "evaluation", "index", "decision"),
    )
    call("promote", registry_uri=registry, run_id="run-1", **given(*models, "evaluation", "index", "decision"))
    return returned


def test_there_is_a_component_for_every_stage_and_its_name_is_the_files_and_the_functions():
    assert set(STAGES) <= set(FILES)
    for name in FILES:
        assert component(name).name == name.replace("_", "-")


@pytest.mark.parametrize("stage", FILES)
def test_a_component_is_short_and_has_no_logic(stage):
    source = (COMPONENTS / f"{stage}.py").read_text()
    assert len(source.splitlines()) <= 62
    (function,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    logic = (ast.If, ast.For, ast.While, ast.Try, ast.With, ast.FunctionDef, ast.Lambda)
    assert not [node for node in ast.walk(function) if isinstance(node, logic) and node is not function]


@pytest.mark.parametrize("name", ["snapshot", "report", "features", "spec", "model", "evaluation", "index", "decision"])
def test_every_stage_writes_the_artifact_that_its_output_names(done, root, name):
    assert open_artifact(root / name, kind=name).kind == name


def test_a_registry_that_keeps_no_records_changes_no_verdict_and_no_promotion(done, root):
    """Oracle: the champion that the registry's own reader finds."""
    registry = root / "without-records"
    registry.mkdir()
    (registry / "runs").write_text("records would go below this")
    names = ("features", "spec", "model", "evaluation", "index")
    stages = {name: artifact(root, name) for name in names}
    shared = {"registry_uri": str(registry), "run_id": "run-2"}
    verdict = component("gate").python_func(
        config_json=CONFIG,
        min_recall=-1.0,
        min_conversions=-1,
        allow_first=True,
        report=artifact(root, "report"),
        decision=artifact(root, "decision-without-records"),
        page=artifact(root / "pages", "gate-without-records", dsl.HTML),
        **stages,
        **shared,
    )
    assert verdict == "promote"
    version = component("promote").python_func(decision=artifact(root, "decision-without-records"), **stages, **shared)
    champion = Registry.open(registry).champion()
    assert champion is not None
    assert champion.version == version


def test_another_run_on_the_same_data_trains_anew(done, root, capsys):
    """Oracle: the same steps give the same recall; a run that took a finished checkpoint would say that it resumes."""
    models = {name: artifact(root, name) for name in ("features", "spec")}
    recall = component("train").python_func(
        as_of="",
        config_json=CONFIG,
        checkpoint_dir=str(root / "checkpoints"),
        num_nodes=1,
        gpus_per_node="1",
        node_selector={},
        run_id="run-2",
        model=artifact(root, "model-again"),
        **models,
    )
    assert recall == done["train"]
    said = capsys.readouterr().err
    assert "an earlier run finished this training; starting anew" in said
    assert "resuming from" not in said


def test_verdicts_and_numbers_are_returned_as_single_values(done):
    assert done["validate_data"] == "valid"
    assert done["gate"] == "promote"
    assert 0 <= done["train"] <= 1
    assert done["metrics"] == {"conversion_recall_at_100": done["evaluate"]}
    assert done["build_index"] == 1.0


def test_promotion_returns_the_name_of_the_champion(done, root):
    assert json.loads((root / "registry" / "champion.json").read_text())["version"] == done["promote"]


def test_the_runs_record_holds_the_gates_verdict_and_recall_and_the_version(done, root):
    record = json.loads((root / "registry" / "runs" / "run-1.json").read_text())
    assert record["verdict"] == "promote"
    assert record["recall"]["value"] is not None
    assert record["version"] == done["promote"]


def test_the_type_of_gpu_becomes_a_node_selector(in_processes):
    pool = {"conversion-retrieval/pool": "gpu"}
    task = component("select_gpu_nodes")(gpu_type="nvidia-l4", gpu_count="2", type_label="accelerator", pool=pool)
    assert task.output == {"conversion-retrieval/pool": "gpu", "accelerator": "nvidia-l4"}


def test_what_the_uis_form_lets_pass_ends_a_run_before_its_data_are_read(root, monkeypatch):
    with pytest.raises(UserError, match="expected a whole number from 1 for parameter gpu_count, found 'two'"):
        component("select_gpu_nodes").python_func(gpu_type="", gpu_count="two", type_label="accelerator", pool={})
    validate = partial(
        component("validate_data").python_func,
        data_uri="gs://bucket/data",
        as_of="",
        config_json="{}",
        run_id="x",
        snapshot=artifact(root, "unused", dsl.Dataset),
        report=artifact(root, "unused", dsl.Artifact),
        page=artifact(root, "unused", dsl.HTML),
    )
    with pytest.raises(UserError, match="min_recall must be between 0 and 1, found 5"):
        validate(registry_uri="gs://bucket/registry", min_recall=5.0)
    monkeypatch.setenv("KFP_POD_NAME", "validate-data-1")
    with pytest.raises(UserError, match="expected a gs:// prefix for registry_uri, found 'bucket/registry': pods"):
        validate(registry_uri="bucket/registry")


@pytest.fixture
def in_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "local"))


def test_a_component_without_artifact_inputs_runs_in_a_process_of_its_own(in_processes, done, root, tmp_path):
    task = component("validate_data")(
        data_uri=str(root / "data"), registry_uri=str(tmp_path / "registry"), as_of="", config_json="{}", run_id="x"
    )
    assert task.outputs["Output"] == "valid"
    open_artifact(task.outputs["snapshot"].path, kind="snapshot")


@pytest.mark.parametrize("stage", FILES)
def test_a_body_uses_no_name_of_its_module(stage):
    """The process that runs a body has only the body: a global beyond the builtins is a NameError there."""
    assert globals_of(component(stage).python_func.__code__) <= set(dir(builtins))


def globals_of(code: CodeType) -> set[str]:
    """The global names that a body loads, comprehensions included."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    own = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return own.union(*(globals_of(const) for const in inner))


def test_the_check_of_globals_sees_them_in_comprehensions_too():
    assert globals_of((lambda: [json.dumps(x) for x in COMPONENTS]).__code__) == {"json", "COMPONENTS"}
