"""The whole pipeline run from its compiled YAML, once per verdict; oracle: the registry's contents."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from conversion_retrieval.contracts import open_artifact
from conversion_retrieval.errors import UserError
from pipelines import cli, summary
from pipelines.local import LOG_FILE, SCRATCH, run_locally
from pipelines.stage_view import StageView
from tests.worlds import QUICK_RUN, tiny_world

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world") / "data")


def run(data_dir: Path, tmp_path: Path, *overrides: str, url: str = "", allow_first: bool = False):
    return run_locally(
        data_uri=str(data_dir),
        registry_uri=str(tmp_path / "registry"),
        output_dir=tmp_path / "runs",
        overrides=(*QUICK_RUN, *overrides),
        allow_first=allow_first,
        notification_url=url,
    )


def versions(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "registry" / "versions").glob("*"))


def test_a_good_candidate_becomes_the_champion_and_the_webhook_hears_of_it(data_dir, tmp_path, webhook):
    result = run(data_dir, tmp_path, "gate.min_conversions=1", url=webhook.url, allow_first=True)
    assert result.verdict == "promote"
    assert "secret-path" not in (result.run_dir / "run.log").read_text()
    shown = io.StringIO()
    summary.show(result, Console(file=shown, width=160))
    for expected in (
        "recall@10 ",
        "recall@100 ",
        "recall@1000",
        "popularity",
        "verdict: promote",
        str(result.report_path),
    ):
        assert expected in shown.getvalue()
    (version,) = versions(tmp_path)
    champion = json.loads((tmp_path / "registry" / "champion.json").read_text())
    manifest = open_artifact(version, kind="bundle")
    assert (champion["version"], champion["digest"]) == (version.name, manifest.digest)
    model = open_artifact(result.run_dir / "train" / "model", kind="model")
    assert {f"model/{name}": digest for name, digest in model.files.items()}.items() <= manifest.files.items()
    assert "</html>" in result.report_path.read_text()
    (message,) = webhook.received
    assert (message["ended"], message["verdict"], message["version"]) == ("promote", "promote", version.name)
    assert message["reason"] == result.reason
    assert message["recall"]["n"] > 0
    assert message["report"].endswith("/gate/page")


def test_a_candidate_below_the_floor_is_rejected_and_the_registry_keeps_no_version(data_dir, tmp_path):
    result = run(data_dir, tmp_path, "gate.min_conversions=1", "gate.min_recall=1.0", "gate.k=1", allow_first=True)
    assert result.verdict == "reject"
    assert not versions(tmp_path)
    assert not (tmp_path / "registry" / "champion.json").exists()


def test_too_few_conversions_decide_nothing_and_a_dead_webhook_does_not_fail_the_run(data_dir, tmp_path):
    # Port 9 (discard) of the loopback is closed everywhere.
    result = run(data_dir, tmp_path, "gate.min_conversions=1000000", url="http://127.0.0.1:9/", allow_first=True)
    assert result.verdict == "insufficient_data"
    assert not versions(tmp_path)
    assert not (tmp_path / "registry" / "champion.json").exists()


def test_invalid_data_stops_before_training_and_says_why(data_dir, tmp_path, webhook):
    shutil.copytree(data_dir, tmp_path / "data")
    (tmp_path / "data" / "items.parquet").unlink()
    result = run(tmp_path / "data", tmp_path, url=webhook.url, allow_first=True)
    assert result.verdict == "invalid"
    assert not (result.run_dir / "train").exists()
    assert not (result.run_dir / "promote").exists()
    assert not versions(tmp_path)
    (message,) = webhook.received
    assert (message["state"], message["verdict"]) == ("SUCCEEDED", "invalid")
    assert result.reason in message["text"]


def test_a_mistake_shows_at_once_as_the_last_line_and_the_exit_handler_still_tells(
    data_dir, tmp_path, webhook, monkeypatch, capsys
):
    """A retry's back-off alone would last 30 seconds: the stage that failed must have been started once."""
    options = {
        "--data": data_dir,
        "--registry": tmp_path / "registry",
        "--output": tmp_path / "runs",
        "--set": f"features.spec_path={tmp_path / 'no-such-spec.yaml'}",
        "--notification-url": webhook.url,
    }
    words = [str(word) for pair in options.items() for word in pair]
    monkeypatch.setattr("sys.argv", ["pipelines", "run", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: build_features: ")
    assert (tmp_path / "runs" / LOG_FILE).read_text().count("Traceback") == 1
    assert not (tmp_path / "runs" / SCRATCH).exists()
    (message,) = webhook.received
    assert (message["state"], message["ended"]) == ("FAILED", "failed")


def test_an_unwritable_registry_is_one_line_before_anything_is_trained(data_dir, tmp_path):
    (tmp_path / "registry").write_text("a file where the directory should be")
    with pytest.raises(
        UserError, match=r"^expected a directory for the registry .*, found a file at .*registry: choose"
    ):
        run(data_dir, tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("data_uri", "registry_uri", "says"),
    [
        ("data", "s3://bucket/registry", "found scheme 's3'"),
        ("s3://bucket/data", "registry", "found scheme 's3'"),
        ("data", "gs://", "found no bucket"),
        ("data", "", "found an empty text"),
        ("", "registry", "found an empty text"),
    ],
)
def test_an_address_that_names_no_store_is_refused_before_anything_is_written(tmp_path, data_uri, registry_uri, says):
    with pytest.raises(UserError, match=says):
        run_locally(data_uri=data_uri, registry_uri=registry_uri, output_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_two_runs_cannot_share_an_output_directory(data_dir, tmp_path):
    from filelock import FileLock

    (tmp_path / "runs").mkdir()
    with FileLock(tmp_path / "runs" / ".lock"), pytest.raises(UserError, match="another run writing there"):
        run(data_dir, tmp_path)


def test_a_tilde_that_the_shell_left_is_the_home_directory(data_dir, tmp_path, monkeypatch):
    """As of ``--output=~/runs``, for the output as for data and registry. Oracle: the lock of the directory meant."""
    from filelock import FileLock

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with FileLock(tmp_path / "runs" / ".lock"), pytest.raises(UserError, match="another run writing there"):
        run_locally(data_uri=str(data_dir), registry_uri="~/registry", output_dir=Path("~/runs"))
    assert not (tmp_path / "~").exists()


def test_a_full_disk_is_one_line_that_names_the_directory(data_dir, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / LOG_FILE).symlink_to("/dev/full")  # which has room for nothing
    with pytest.raises(UserError, match=r"^expected room for the run in .*runs, found the disk full; free some, or"):
        run(data_dir, tmp_path)


@pytest.fixture
def view(tmp_path) -> Iterator[StageView]:
    with (tmp_path / "shown").open("w") as file:
        stages = StageView(tmp_path / "log", stages=("train",), console=Console(file=file, width=200))
        yield stages
        stages.close()


def test_what_is_shown_is_the_stages_own_lines_and_the_log_keeps_everything(view, tmp_path):
    lines = [
        "04:16:00.036 - INFO - Executing task \x1b[96m'train'\x1b[0m",
        "    [KFP Executor 2026-11-23 04:16:00,291 INFO]: Looking for component",
        "    {",
        '        "inputs": {}',
        "    }",
        "    train: 20/50 steps, 3/s, 10 s left",
        "    Traceback (most recent call last):",
        '      File "x.py", line 1, in <module>',
        "    conversion_retrieval.errors.UserError: expected a, found b",
        "04:16:09.036 - INFO - Task \x1b[96m'train'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m",
    ]
    text = "\n".join(lines) + "\n"
    for start in range(0, len(text), 7):  # output arrives in pieces of any size
        view.write(text[start : start + 7])
    view.close()
    shown = (tmp_path / "shown").read_text().splitlines()
    assert [line.strip() for line in shown] == ["[1/1] train", "train: 20/50 steps, 3/s, 10 s left", "failed"]
    assert (view.failed_stage, view.failure, view.failure_is_users) == ("train", "expected a, found b", True)
    assert (tmp_path / "log").read_text() == text


def test_a_task_that_is_no_stage_is_shown_only_when_it_fails(view, tmp_path):
    for status in ("SUCCESS", "FAILURE"):
        view.write("00:00:00.000 - INFO - Executing task 'select-gpu-nodes'\n")
        view.write(f"00:00:01.000 - INFO - Task 'select-gpu-nodes' finished with status {status}\n")
    view.close()
    assert (tmp_path / "shown").read_text().split() == ["select_gpu_nodes", "failed"]
    assert view.failed_stage == "select_gpu_nodes"


TASK_STARTS = "04:16:00.036 - INFO - Executing task 'train'"
TASK_FAILS = "04:16:09.036 - INFO - Task 'train' finished with status FAILURE"


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        ("pyarrow.lib.ArrowInvalid: Failed to parse string: 'red'", "ArrowInvalid: Failed to parse string: 'red'"),
        ("urllib3.exceptions.MaxRetries", "MaxRetries"),
        ("struct.error: unpack requires 4 bytes", "error: unpack requires 4 bytes"),
        ("package.read.<locals>.Broken: a", "Broken: a"),
        ("MemoryError", "MemoryError"),
        ("StopIteration: 3", "StopIteration: 3"),
        ("ValueError: ", "ValueError"),
        ("__main__.Broken: a", "Broken: a"),
        ("ConfigError: a", "ConfigError: a"),
    ],
)
def test_the_line_after_a_tracebacks_frames_is_the_error_whatever_it_is_called(error, failure, view):
    """Log lines between the frames are none; oracle: Python's own format, a name with or without module and text."""
    traceback = [
        "Traceback (most recent call last):",
        '  File "x.py", line 1, in <module>',
        "INFO: read 3 files",
        "WARNING:root:slow",
        "2026-11-23 04:16:00 worker.Task: waits",
        "torch.load: reads weights",
        "Done",
        "    raise StopIteration: 3",
        error,
    ]
    view.write("\n".join([TASK_STARTS, *(f"    {line}" for line in traceback), TASK_FAILS]) + "\n")
    assert (view.failed_stage, view.failure, view.failure_is_users) == ("train", failure, False)


def test_a_traceback_that_an_earlier_task_survived_is_not_the_error(view):
    """Oracle: a task that is killed without a word has no error."""
    traceback = ["    Traceback (most recent call last):", "    ValueError: tried again"]
    survived = [TASK_STARTS, *traceback, TASK_FAILS.replace("FAILURE", "SUCCESS")]
    view.write("\n".join([*survived, TASK_STARTS, TASK_FAILS]) + "\n")
    assert (view.failed_stage, view.failure) == ("train", "")


def test_a_later_tasks_error_does_not_replace_the_failed_stages(view):
    """Oracle: the first of two failures."""
    for task, text in (("train", "first"), ("notify", "second")):
        lines = [TASK_STARTS, "    Traceback (most recent call last):", f"    ValueError: {text}", TASK_FAILS]
        view.write("\n".join(lines).replace("train", task) + "\n")
    assert (view.failed_stage, view.failure) == ("train", "ValueError: first")
