"""The commands that documents and workflows tell people to type; oracle: the programs' own parsers and the Makefile."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from conversion_retrieval import cli as library_cli
from pipelines import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/operations.md", "docs/serving.md", "docs/datasets.md", "docs/experiments.md")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
PROGRAMS = {
    "pipelines": (r"(?:^|\s|/)python -m pipelines ", cli.app),
    "conversion-retrieval": (r"(?:^|/)conversion-retrieval ", library_cli.app),
}


def blocks(document: str) -> Iterator[str]:
    """Every fenced block of a document, continuation lines joined, and every whole command within its text."""
    text = (ROOT / document).read_text()
    for block in re.findall(r"^\s*```\w*\n(.*?)^\s*```", text, re.MULTILINE | re.DOTALL):
        yield block.replace("\\\n", " ")
    yield from re.findall(r"`(conversion-retrieval [^`\n]+)`", text)


def steps(workflow: Path) -> Iterator[str]:
    """Every shell step of a workflow, continuation lines joined."""
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        for step in job["steps"]:
            yield step.get("run", "").replace("\\\n", " ")


def commands(texts: Iterator[str]) -> Iterator[tuple[str, list[str]]]:
    """(program, arguments) of every line that calls one of ours: with all options, of alternatives the first."""
    for line in (line.strip() for text in texts for line in text.splitlines()):
        for program, (pattern, _) in PROGRAMS.items():
            if found := re.search(pattern, line):
                words = re.sub(r"\s*\|[^\]\s]*(?: [^\]]*(?=\]))?", "", line[found.end() :])
                yield program, shlex.split(re.sub(r"[\[\]]", "", words), comments=True)


DOCUMENTED = sorted({(program, *arguments) for d in DOCUMENTS for program, arguments in commands(blocks(d))})
IN_WORKFLOWS = sorted({(program, *arguments) for w in WORKFLOWS for program, arguments in commands(steps(w))})


def parse(app: typer.Typer, program: str, arguments: list[str]) -> None:
    """Parse down to the last subcommand; raises for an unknown option or a missing argument."""
    command = typer.main.get_command(app)
    while True:
        context = command.make_context(program, list(arguments))
        if not hasattr(command, "commands"):
            return
        program, *arguments = [*context._protected_args, *context.args]
        command = command.commands[program]


@pytest.mark.parametrize("line", [*DOCUMENTED, *IN_WORKFLOWS], ids=" ".join)
def test_what_people_are_told_to_type_is_a_command(line):
    program, *arguments = line
    parse(PROGRAMS[program][1], program, arguments)


def test_the_search_for_commands_finds_every_command_of_the_operations_page():
    found = {arguments[1] for arguments in DOCUMENTED if arguments[0] == "pipelines"}
    assert {"compile", "submit", "schedule", "run"} <= found


def test_an_option_that_there_is_not_would_be_found():
    with pytest.raises(Exception, match="--no-such-option"):
        parse(cli.app, "pipelines", ["submit", "--no-such-option"])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_make_targets_that_there_are(workflow):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {target for step in steps(workflow) for target in re.findall(r"\bmake ([a-z]+)", step)}
    assert called <= targets


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_bounded_and_may_write_no_more_than_they_need(workflow):
    content = yaml.safe_load(workflow.read_text())
    assert content["permissions"]["contents"] == "read"
    assert all(job["timeout-minutes"] <= 60 for job in content["jobs"].values())


def test_both_images_hold_the_one_wheel_that_was_tested():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "images.yaml").read_text())["jobs"]
    (builder,) = [name for name, job in jobs.items() if any("pip wheel" in s.get("run", "") for s in job["steps"])]
    done = jobs[builder]["steps"]
    tested, uploaded = (
        next(position for position, step in enumerate(done) if words in str(step))
        for words in ("clean/bin/conversion-retrieval", "actions/upload-artifact")
    )
    assert tested < uploaded
    (images,) = [job for job in jobs.values() if "docker/build-push-action" in str(job)]
    assert images["needs"] == builder
    (taken,) = [s["with"] for s in images["steps"] if s.get("uses", "").startswith("actions/download-artifact")]
    assert taken == {"name": done[uploaded]["with"]["name"], "path": "dist"}  # where the Dockerfiles look


def test_images_are_pushed_under_a_name_that_registries_take_whoever_owns_the_repository(tmp_path):
    """An owner may have capitals, an image's name may not: the step is run as the runner would."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "images.yaml").read_text())["jobs"]
    (build,) = [job["steps"] for job in jobs.values() if "docker/build-push-action" in str(job)]
    naming, *_ = [step["run"] for step in build if "GITHUB_ENV" in step.get("run", "")]
    runner = {
        "GITHUB_REPOSITORY": "Some-Owner/Shop.Ads",
        "GITHUB_ENV": str(tmp_path / "env"),
        "PATH": os.environ["PATH"],
    }
    subprocess.run(["bash", "-e", "-c", naming], check=True, env=runner)
    assert (tmp_path / "env").read_text() == "REGISTRY=ghcr.io/some-owner/shop.ads\n"
    (pushed,) = [step["with"]["tags"] for step in build if "build-push-action" in step.get("uses", "")]
    assert pushed.startswith("${{ env.REGISTRY }}-")


def test_the_workflows_cover_what_users_run():
    said = "\n".join(step for workflow in WORKFLOWS for step in steps(workflow))
    for command in ("make lint", "make types", "make tests", "make wheel", "make golden", "kubectl kustomize"):
        assert command in said, f"no workflow runs {command}"
    assert "git diff --exit-code -- pipelines/golden" in said
    assert "docker/build-push-action" in (ROOT / ".github" / "workflows" / "images.yaml").read_text()
