"""What the CPU image would hold, made here: its pip steps replayed in an empty environment, a component run in it."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from kfp import local

from components.validate_data import validate_data
from conversion_retrieval.contracts import open_artifact
from tests.worlds import tiny_world

from .test_dockerfiles import CONTAINERS, arguments

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def replayed(step: str, python: Path, wheels: Path) -> str:
    """A RUN step with the image's paths and commands replaced by this environment's."""
    step = step.replace("/opt/locks", str(CONTAINERS)).replace("/opt/wheels", str(wheels))
    # Byte code saves the image seconds at each start; here it would only cost them. What pip kept of the set-up is
    # the same file that it would download again.
    pip = f"{sys.executable} -m pip --python {python} install --quiet --no-compile"
    step = step.replace("--no-cache-dir", "").replace("pip install", pip)
    step = step.replace(" python -c", f" {python} -c")
    return step.replace("&& conversion-retrieval ", f"&& {python.with_name('conversion-retrieval')} ")


@pytest.fixture(scope="module")
def image_python(wheel_path, tmp_path_factory) -> Path:
    """The interpreter of a clean environment after every RUN step of the CPU image, in an empty directory."""
    directory = tmp_path_factory.mktemp("image")
    venv.create(directory / "venv")
    python = directory / "venv" / "bin" / "python3"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for run in arguments("cpu", "RUN"):
        command = replayed(run, python, wheel_path.parent)
        subprocess.run(["bash", "-euc", command], check=True, cwd=directory, env={**environment, "TORCH_INDEX_URL": ""})
    return python


def test_the_image_holds_the_wheel_and_not_the_sources(image_python):
    command = [str(image_python), "-c", "import conversion_retrieval; print(conversion_retrieval.__file__)"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=image_python.parent).stdout
    assert Path(found.strip()).is_relative_to(image_python.parents[1])


def test_a_component_runs_in_what_the_image_holds(image_python, tmp_path, monkeypatch):
    tiny_world(tmp_path / "data")
    monkeypatch.setenv("PATH", os.pathsep.join((str(image_python.parent), os.environ["PATH"])))
    monkeypatch.setenv("_KFP_RUNTIME", "true")  # as the cluster's launcher sets it
    monkeypatch.chdir(tmp_path)
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "local"))
    task = validate_data(
        data_uri=str(tmp_path / "data"), registry_uri=str(tmp_path / "registry"), as_of="", config_json="{}", run_id="r"
    )
    assert task.outputs["Output"] == "valid"
    assert open_artifact(task.outputs["snapshot"].path, kind="snapshot").digest
