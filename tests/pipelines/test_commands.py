"""The commands as a person types them, each a process, against a server process; oracle: what the server then holds."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOKEN = "a-token"


@dataclass(frozen=True)
class Server:
    """A server process that asks for a token."""

    address: str
    token_path: Path

    def state(self) -> dict[str, list[dict[str, Any]]]:
        request = urllib.request.Request(
            f"{self.address}/apis/v2beta1/state", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    (tmp_path / "token").write_text(TOKEN)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pipelines.kfp_server"],
        cwd=ROOT,
        env={**os.environ, "KFP_SERVER_TOKEN": TOKEN},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield Server(process.stdout.readline().strip(), tmp_path / "token")
    process.communicate(timeout=30)


@pytest.fixture
def command(server, pipeline_path, tmp_path):
    """Runs one command, connected to the server where it takes a server; returns the finished process."""
    home = tmp_path / "home"
    home.mkdir()

    def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
        arguments = [name, *options, "--host", server.address, "--token-file", str(server.token_path)]
        if name in {"submit", "schedule"}:
            arguments += ["--pipeline", str(pipeline_path)]
        return subprocess.run(
            [sys.executable, "-m", "pipelines", *arguments],
            cwd=ROOT,
            env={**os.environ, "HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


PARAMS = ("--param", "data_uri=gs://bucket/data", "--param", "registry_uri=gs://bucket/registry")


def test_a_run_is_submitted_looked_at_and_terminated(server, command):
    submitted = command("submit", *PARAMS, "--param", "gpu_type=nvidia-l4")
    assert (submitted.returncode, submitted.stderr) == (0, "")
    (run,) = server.state()["runs"]
    assert submitted.stdout == f"run {run['run_id']}: {server.address}/#/runs/details/{run['run_id']}\n"
    assert run["runtime_config"]["parameters"]["gpu_type"] == "nvidia-l4"
    looked_at = command("status", run["run_id"])
    assert looked_at.stdout == f"{run['display_name']}: pending\n"
    terminated = command("terminate", run["run_id"])
    assert terminated.stdout == f"run {run['run_id']}: canceling\n"
    assert server.state()["runs"][0]["state"] == "CANCELING"
    assert len(server.state()["versions"]) == 1


def test_a_schedule_is_made_paused_and_resumed(server, command):
    assert command("schedule", "--cron", "0 0 3 * * *", *PARAMS).returncode == 0
    assert command("schedule", "--cron", "0 0 3 * * *", "--pause", *PARAMS).returncode == 0
    assert [run["status"] for run in server.state()["recurring_runs"]] == ["DISABLED"]
    resumed = command("schedule", "--cron", "0 0 3 * * *", "--resume", *PARAMS)
    assert [run["status"] for run in server.state()["recurring_runs"]] == ["ENABLED"]
    assert "running, version conversion-retrieval-training-" in resumed.stdout
    assert "03:00:00 UTC" in resumed.stdout


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("schedule", ("--cron", "0 3 * * *", *PARAMS), "write '0 0 3 * * *'"),
        ("submit", (*PARAMS, "--param", "min_recall=high"), "expected a number for parameter min_recall"),
        ("status", ("no-such-run",), "answered 404"),
    ],
)
def test_a_mistake_is_one_line_with_an_exit_code_and_creates_nothing(server, command, name, options, says):
    failed = command(name, *options)
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not any(server.state().values())


def test_an_expired_token_creates_nothing(server, command):
    server.token_path.write_text("expired")
    failed = command("submit", *PARAMS)
    assert failed.returncode == 2
    assert "log in again" in failed.stderr
    server.token_path.write_text(TOKEN)
    assert not any(server.state().values())
