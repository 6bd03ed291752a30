"""The Dockerfiles by hadolint's rules and this project's own, and the lock files that they install."""

import re
from pathlib import Path

import pytest

from containers.lock import IMAGES, IN_BASE, RUNTIME_ONLY, lock_text
from pipelines import cluster

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"


def instructions(image: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continuation lines joined, comments dropped."""
    lines = [line for line in (CONTAINERS / f"{image}.Dockerfile").read_text().splitlines() if not line.startswith("#")]
    logical = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in logical if line.strip()]


def arguments(image: str, name: str) -> list[str]:
    return [text for instruction, text in instructions(image) if instruction == name]


def locked(image: str) -> dict[str, str]:
    lines = [line for line in (CONTAINERS / f"{image}.lock").read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


@pytest.fixture(params=sorted(IMAGES))
def image(request) -> str:
    return request.param


def test_the_base_is_pinned_by_a_digest_that_must_be_given(image):
    assert arguments(image, "ARG")[0] == "BASE_DIGEST"
    (base,) = arguments(image, "FROM")
    assert base.endswith("@${BASE_DIGEST}")
    assert ":latest" not in base


def test_no_step_needs_a_compiler_a_system_package_or_a_download_of_its_own(image):
    text = " ".join(arguments(image, "RUN"))
    assert not re.search(r"\b(apt-get|apk|curl|wget|gcc|git|sudo)\b", text)
    assert not arguments(image, "ADD")


def test_every_install_is_locked_cacheless_and_the_dependencies_are_binary_only(image):
    installs = [step for run in arguments(image, "RUN") for step in run.split("&&") if "pip install" in step]
    assert installs
    for step in installs:
        assert "--no-cache-dir" in step
        assert "--no-deps" in step
        assert "--only-binary :all:" in step or "/opt/wheels/*.whl" in step


def test_the_wheel_comes_in_the_last_layer_and_its_import_is_checked_there(image):
    names = [name for name, _ in instructions(image)]
    last_run = arguments(image, "RUN")[-1]
    assert "/opt/wheels/*.whl" in last_run
    assert "python -c" in last_run
    assert arguments(image, "COPY")[-1].startswith("dist/")
    assert names.index("USER") > len(names) - 1 - names[::-1].index("RUN")


def test_the_image_runs_as_the_user_that_the_pipeline_and_the_manifests_name(image):
    assert arguments(image, "USER") == [f"{cluster.USER_ID}:{cluster.USER_ID}"]
    (working_dir,) = arguments(image, "WORKDIR")
    assert working_dir.startswith("/")


def test_no_secret_is_baked_into_the_image(image):
    assert not re.search(r"(?i)token|password|secret|credential", " ".join(t for _, t in instructions(image)))


def test_the_builder_gets_the_locks_and_the_wheel_and_nothing_else(image):
    ignored = (CONTAINERS / f"{image}.Dockerfile.dockerignore").read_text().splitlines()
    assert [line for line in ignored if not line.startswith("#")] == ["*", "!containers/*.lock", "!dist/*.whl"]


def test_the_lock_file_is_what_is_resolved_here(image):
    assert (CONTAINERS / f"{image}.lock").read_text() == lock_text(image), "run `python containers/lock.py`"


def test_the_lock_agrees_with_the_constraints_that_the_tests_run_with(image):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"]
    constraints = {
        re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)
    }
    for name, version in locked(image).items():
        assert constraints[name] == version


def test_an_image_holds_what_a_task_needs_at_run_time_and_no_development_tool(image):
    names = set(locked(image)) | IN_BASE[image]
    assert {"torch", "faiss-cpu", "great-expectations", *(line.partition("==")[0] for line in RUNTIME_ONLY)} <= names
    assert not {"pytest", "ruff", "mypy", "kfp-kubernetes", "kfp-server-api", "hypothesis"} & names
