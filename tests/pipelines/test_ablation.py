"""The ablation run from its compiled YAML: a fan-out over variants and seeds, collected into one table."""

import builtins
import contextlib
import json
import os
import sys
from pathlib import Path

import pytest
from kfp import components, local

from conversion_retrieval.config import changed_values, load_config
from conversion_retrieval.contracts import open_artifact
from pipelines.compile import compile_pipeline, placement
from tests.worlds import QUICK_RUN, tiny_world

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    # What a process on this machine does not have: requests, limits, accelerators.
    pytest.mark.filterwarnings("ignore:Task .* have no effect:UserWarning"),
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """Two variants with one seed each, run to the end."""
    directory = tmp_path_factory.mktemp("ablation")
    compiled = compile_pipeline(directory / "ablation.yaml", placement(), pipeline_name="ablation")
    with pytest.MonkeyPatch.context() as patch, (directory / "log").open("w") as log:
        patch.setenv("PATH", os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
        # kfp.local indents ``print`` while a task runs; threads of a loop put back each other's, not the original.
        patch.setattr(builtins, "print", builtins.print)
        root = directory / "runs"
        local.init(
            runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root), workspace_root=str(directory / "w")
        )
        with contextlib.redirect_stdout(log):
            components.load_component_from_file(str(compiled.path))(
                data_uri=str(tiny_world(directory / "data")),
                variants="no_history",
                num_seeds=1,
                config_json=json.dumps(changed_values(load_config(None, QUICK_RUN))),
                checkpoint_dir=str(directory / "checkpoints"),
            )
    (found,) = root.glob("conversion-retrieval-ablation-*")
    return found


def test_every_variant_is_trained_with_its_own_configuration(run_dir):
    trained = [json.loads(path.read_text()) for path in run_dir.glob("for-loop-*/train/model/config.json")]
    assert sorted(config["model"]["history"]["encoder"] for config in trained) == ["none", "recency_mean"]
    assert {config["training"]["max_steps"] for config in trained} == {4}


def test_all_variants_are_collected_into_one_table_with_the_default(run_dir):
    ablation_dir = run_dir / "compare-variants" / "ablation"
    open_artifact(ablation_dir, kind="ablation")
    rows = json.loads((ablation_dir / "comparisons.json").read_text())
    assert [(row["variant"], row["k"]) for row in rows if row["k"] == 100] == [("default", 100), ("no_history", 100)]
    by_variant = {row["variant"]: row for row in rows if row["k"] == 100}
    change = by_variant["no_history"]["recall"]["value"] - by_variant["default"]["recall"]["value"]
    assert by_variant["no_history"]["difference"]["value"] == pytest.approx(change)
    assert "| no_history |" in (ablation_dir / "ablation.md").read_text()
    assert "</html>" in (run_dir / "compare-variants" / "page").read_text()
