"""What the CPU image would hold, made here: its pip steps replayed in an empty environment, a component run in it."""

import os
import subprocess
from pathlib import Path

import pytest
from kfp import local

from components.validate_data import validate_data
from conversion_retrieval.contracts import open_artifact
from tests.worlds import tiny_world

from .replay import replay

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def image_python(wheel_path, tmp_path_factory) -> Path:
    return replay("cpu", wheel_path.parent, tmp_path_factory.mktemp("image"))


def test_the_image_holds_the_wheel_and_not_the_sources(image_python):
    command = [str(image_python), "-c", "import conversion_retrieval; print(conversion_retrieval.__file__)"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=image_python.parent).stdout
    assert Path(found.strip()).is_relative_to(image_python.parents[1])


def test_a_component_runs_in_what_the_image_holds(image_python, tmp_path, monkeypatch):
    tiny_world(tmp_path / "data")
    monkeypatch.setenv("PATH", os.pathsep.join((str(image_python.parent), "/usr/bin", "/bin")))
    monkeypatch.setenv("_KFP_RUNTIME", "true")  # as the cluster's launcher sets it
    monkeypatch.chdir(tmp_path)
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "local"))
    task = validate_data(
        data_uri=str(tmp_path / "data"), registry_uri=str(tmp_path / "registry"), as_of="", config_json="{}", run_id="r"
    )
    assert task.outputs["Output"] == "valid"
    assert open_artifact(task.outputs["snapshot"].path, kind="snapshot").digest
