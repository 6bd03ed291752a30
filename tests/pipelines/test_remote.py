"""submit, status and terminate against a server with the real endpoints; oracle: the server's state."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conversion_retrieval.errors import UserError
from pipelines import cli, remote
from pipelines.compile import compile_pipeline, placement
from pipelines.connection import connect

from .conftest import DIGEST, PARAMS


def run_command(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pipelines", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def test_submit_uploads_the_version_once_and_creates_a_run_with_typed_parameters(server, host, pipeline_path):
    submission = remote.prepare(pipeline_path, (*PARAMS, "min_conversions=200", "allow_first=true"))
    first = remote.submit(connect(host), submission)
    second = remote.submit(connect(host), submission)
    assert first != second
    (version,) = server.versions.values()
    assert version["display_name"] == submission.version_name
    assert server.contents[version["pipeline_version_id"]] == pipeline_path.read_bytes()
    run = server.runs[first]
    assert run["runtime_config"]["parameters"] == {
        "data_uri": "gs://bucket/data",
        "registry_uri": "gs://bucket/registry",
        "min_conversions": 200,
        "allow_first": True,
    }
    assert run["service_account"] == "conversion-retrieval-pipeline"
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]


@pytest.fixture(scope="module")
def ablation_path(tmp_path_factory):
    place = placement(image_cpu=f"example.com/cpu@{DIGEST}", image_gpu=f"example.com/gpu@{DIGEST}")
    path = tmp_path_factory.mktemp("compiled") / "ablation.yaml"
    return compile_pipeline(path, place, pipeline_name="ablation").path


def test_an_ablation_is_submitted_by_the_same_command(server, host, ablation_path):
    submission = remote.prepare(ablation_path, ("data_uri=gs://bucket/data", "variants=no_history", "num_seeds=2"))
    run = server.runs[remote.submit(connect(host), submission)]
    expected = {"data_uri": "gs://bucket/data", "variants": "no_history", "num_seeds": 2}
    assert run["runtime_config"]["parameters"] == expected
    assert submission.version_name.startswith("conversion-retrieval-ablation-")


@pytest.mark.parametrize(("param", "says"), [("variants=no_histroy", "found 'no_histroy'"), ("num_seeds=0", "found 0")])
def test_an_ablation_that_would_fail_is_refused_before_it_is_sent(ablation_path, param, says):
    with pytest.raises(UserError, match=says):
        remote.prepare(ablation_path, ("data_uri=gs://bucket/data", param))


def test_a_named_run_is_made_once_however_often_it_is_submitted(server, host, submission):
    ids = {remote.submit(connect(host), submission, run_name="nightly-2026-01-01") for _ in range(3)}
    assert len(ids) == len(server.runs) == 1


def test_a_version_of_other_content_is_added_to_the_same_pipeline(server, host, submission, tmp_path):
    place = placement(image_cpu=f"example.com/cpu@{DIGEST}", image_gpu=f"example.com/gpu@{DIGEST}", spot=True)
    other = remote.prepare(compile_pipeline(tmp_path / "p.yaml", place).path, PARAMS)
    for given in (submission, other, submission):
        remote.submit(connect(host), given)
    assert len(server.pipelines) == 1
    assert {v["display_name"] for v in server.versions.values()} == {submission.version_name, other.version_name}
    assert len(server.versions) == 2


def test_racing_submitters_leave_one_pipeline_one_version_and_a_run_each(server, host, submission):
    clients = [connect(host) for _ in range(8)]
    with ThreadPoolExecutor(len(clients)) as pool:
        runs = set(pool.map(lambda client: remote.submit(client, submission), clients))
    assert set(server.runs) == runs
    assert len(runs) == 8
    assert (len(server.pipelines), len(server.versions), len(server.experiments)) == (1, 1, 1)


def test_a_pipeline_that_another_made_between_look_and_creation_is_used(server, host, submission):
    rival = {"name": submission.pipeline_name, "display_name": submission.pipeline_name}
    server.before_create.append(lambda: server.create_pipeline(rival))
    remote.submit(connect(host), submission)
    assert ("POST", "/apis/v2beta1/pipelines") in server.requests
    assert (len(server.pipelines), len(server.versions)) == (1, 1)


def test_a_profile_gets_its_own_pipeline_and_experiment(server, host, submission):
    remote.submit(connect(host, namespace="team-a"), submission)
    (pipeline,), (experiment,) = server.pipelines.values(), server.experiments.values()
    assert (pipeline["namespace"], experiment["namespace"]) == ("team-a", "team-a")


def test_a_name_that_another_run_has_is_refused(server, host, pipeline_path, submission):
    remote.submit(connect(host), submission, run_name="nightly")
    other = remote.prepare(pipeline_path, (*PARAMS, "allow_first=true"))
    with pytest.raises(UserError, match="choose another --run-name"):
        remote.submit(connect(host), other, run_name="nightly")
    assert len(server.runs) == 1


def test_a_name_that_a_run_from_a_file_has_is_refused(server, host, submission):
    run_id = remote.submit(connect(host), submission, run_name="nightly")
    for name in ("pipeline_version_reference", "runtime_config"):
        del server.runs[run_id][name]
    with pytest.raises(UserError, match="choose another --run-name"):
        remote.submit(connect(host), submission, run_name="nightly")


@pytest.mark.parametrize("path", ["pipelines", "pipelines/upload_version", "experiments", "runs"])
def test_a_submit_that_broke_off_is_completed_by_the_same_command(server, host, submission, path):
    server.fail_next.append(("POST", f"/apis/v2beta1/{path}", 503))
    with pytest.raises(UserError, match=r"503.*try again later"):
        remote.submit(connect(host), submission)
    assert not server.runs
    remote.submit(connect(host), submission)
    assert len(server.runs) == 1
    assert [v["display_name"] for v in server.versions.values()] == [submission.version_name]


def test_wait_ends_on_every_final_state_and_shows_each_change_once(server, host, submission, capsys):
    run_id = remote.submit(connect(host), submission)
    server.next_states[run_id] = ["RUNNING", "RUNNING", "CANCELING", "CANCELED"]
    assert remote.wait(connect(host), run_id, poll_seconds=0.0) == "CANCELED"
    assert capsys.readouterr().err.splitlines() == ["train: running", "train: canceling", "train: canceled"]


def test_waiting_outlasts_a_restarting_server(server, host, submission):
    run_id = remote.submit(connect(host), submission)
    server.next_states[run_id] = ["RUNNING", "SUCCEEDED"]
    server.fail_next += [("GET", f"/apis/v2beta1/runs/{run_id}", status) for status in (503, 502, 429)]
    assert remote.wait(connect(host), run_id, poll_seconds=0.0) == "SUCCEEDED"


def test_the_printed_address_is_the_runs_page(server, host, pipeline_path, monkeypatch, capsys):
    options = [word for text in PARAMS for word in ("--param", text)]
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", host)
    monkeypatch.setattr(sys, "argv", ["pipelines", "submit", "--pipeline", str(pipeline_path), *options])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    (run_id,) = server.runs
    assert capsys.readouterr().out == f"run {run_id}: {host}/#/runs/details/{run_id}\n"


def test_terminate_stops_a_running_run_and_leaves_a_finished_one(server, host, submission):
    run_id = remote.submit(connect(host), submission)
    assert remote.terminate(connect(host), run_id) == "CANCELING"
    server.runs[run_id]["state"] = "SUCCEEDED"
    assert remote.terminate(connect(host), run_id) == "SUCCEEDED"
    assert server.runs[run_id]["state"] == "SUCCEEDED"


def test_an_expired_token_is_one_line_with_a_remedy_and_nothing_is_created(
    server, host, pipeline_path, tmp_path, monkeypatch, capsys
):
    server.token = "right"
    (tmp_path / "token").write_text("stale")
    options = [word for text in PARAMS for word in ("--param", text)]
    arguments = ("submit", "--host", host, "--pipeline", str(pipeline_path), "--token-file", str(tmp_path / "token"))
    assert run_command(monkeypatch, *arguments, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "401" in line
    assert "log in again" in line
    assert not server.pipelines


def test_a_wrong_host_is_one_line(pipeline_path, monkeypatch, capsys):
    options = [word for text in PARAMS for word in ("--param", text)]
    # Port 9 (discard) of the loopback is closed everywhere.
    arguments = ("submit", "--host", "http://127.0.0.1:9", "--pipeline", str(pipeline_path), *options)
    assert run_command(monkeypatch, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "could not reach" in line
    assert "--host" in line


def test_terminate_tells_the_runs_webhook(server, host, pipeline_path, webhook):
    given = remote.prepare(pipeline_path, (*PARAMS, f"notification_url={webhook.url}"))
    run_id = remote.submit(connect(host), given)
    remote.terminate(connect(host), run_id)
    (message,) = webhook.received
    assert (message["run_id"], message["ended"]) == (run_id, "canceling")
    server.runs[run_id]["state"] = "CANCELED"
    remote.terminate(connect(host), run_id)
    assert len(webhook.received) == 1


def test_terminate_tells_the_webhook_that_it_is_given(server, host, submission, webhook, monkeypatch, capsys):
    run_id = remote.submit(connect(host), submission)
    monkeypatch.setattr(sys, "argv", ["pipelines", "terminate", run_id, "--host", host])
    monkeypatch.setenv("NOTIFICATION_URL", webhook.url)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    assert capsys.readouterr().out == f"run {run_id}: canceling\n"
    assert server.runs[run_id]["state"] == "CANCELING"
    assert [message["ended"] for message in webhook.received] == ["canceling"]


def test_a_dead_webhook_does_not_keep_a_run_from_being_terminated(server, host, submission):
    run_id = remote.submit(connect(host), submission)
    # Port 9 (discard) of the loopback is closed everywhere.
    assert remote.terminate(connect(host), run_id, webhook_url="http://127.0.0.1:9/") == "CANCELING"
    assert server.runs[run_id]["state"] == "CANCELING"


def test_an_unknown_run_is_one_line(host, monkeypatch, capsys):
    assert run_command(monkeypatch, "status", "no-such-run", "--host", host) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "404" in line
    assert "no-such-run" in line


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--param", "datauri=gs://x"], "did you mean data_uri?"),
        (["--param", "min_recall=high"], "expected a number for parameter min_recall, found 'high'"),
        (["--param", "allow_first=1"], "expected true or false"),
        (["--param", 'config_json={"gate": {"minrecall": 1}}'], "did you mean gate.min_recall?"),
        (["--param", 'config_json={"evaluation": {"baselines": ["popularty"]}}'], "did you mean popularity?"),
        (["--param", 'config_json={"gate": {"max_regression": NaN}}'], "max_regression"),
        (["--param", "as_of=yesterday"], "as_of must be an ISO date or time such as 2026-11-23, found 'yesterday'"),
        (["--param", "data_uri=gs://"], "found no bucket in gs://"),
        (["--param", "registry_uri=gs:///registry"], "found no bucket in gs:///registry"),
        (["--param", "registry_uri=gs://bucket/a//b"], "expected a relative key"),
        (["--param", "registry_uri=/tmp/registry"], "pods share no local directory"),
        (["--param", "gpu_count=two"], "whole number from 1 for parameter gpu_count"),
        (["--param", "gpu_count=0"], "whole number from 1 for parameter gpu_count"),
        (["--param", "min_recall=nan"], "expected a number for parameter min_recall"),
        (["--param", "min_recall=50"], "min_recall must be between 0 and 1"),
        (["--param", "min_conversions=0"], "min_conversions must be at least 1, found 0"),
        (["--param", "notification_url=hooks.example.com/secret"], "expected an http:// or https:// address"),
        (["--param", "checkpoint_dir="], "expected /checkpoints or a directory below it for checkpoint_dir, found '.'"),
        (["--param", "checkpoint_dir=gs://bucket/checkpoints"], "expected /checkpoints or a directory below it"),
        (["--param", "checkpoint_dir=/checkpoints/../tmp"], "expected /checkpoints or a directory below it"),
        (["--param", 'config_json={"gate": "x"}', "--param", "min_recall=0.1"], "expected a section of settings"),
        (["--param", 'config_json={"split": [1]}', "--param", "as_of=2026-01-01"], "expected a section of settings"),
        (["--cookies", "a\nb"], "expected cookies of printable ASCII characters on one line"),
        (["--param", "gpu_type=nvidia l4"], "expected the type of GPU as its node label has it"),
    ],
)
def test_a_wrong_parameter_is_one_line_and_nothing_is_sent(
    server, host, pipeline_path, monkeypatch, capsys, extra, expected
):
    options = [word for text in PARAMS for word in ("--param", text)]
    arguments = ("submit", "--host", host, "--pipeline", str(pipeline_path), *options, *extra)
    assert run_command(monkeypatch, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not server.requests


@pytest.mark.parametrize("command", ["submit", "status"])
def test_ctrl_c_while_waiting_tells_that_the_run_goes_on(host, pipeline_path, monkeypatch, capsys, command):
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    options = [word for text in PARAMS for word in ("--param", text)]
    assert run_command(monkeypatch, "submit", "--host", host, "--pipeline", str(pipeline_path), *options) == 0
    run_id = capsys.readouterr().out.split()[1].rstrip(":")
    monkeypatch.setattr(remote, "wait", interrupted)
    again = {"submit": ("--pipeline", str(pipeline_path), *options), "status": (run_id,)}[command]
    assert run_command(monkeypatch, command, *again, "--host", host, "--wait") == 130
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: interrupted; the run goes on: `status ")
    assert "starts again" not in told


def test_a_missing_parameter_is_named_and_nothing_is_sent(server, host, pipeline_path, monkeypatch, capsys):
    arguments = ("submit", "--host", host, "--pipeline", str(pipeline_path), "--param", PARAMS[0])
    assert run_command(monkeypatch, *arguments) == 2
    assert "registry_uri" in capsys.readouterr().err
    assert not server.requests


def test_a_pipeline_with_mutable_images_is_refused_unless_allowed(tmp_path):
    path = compile_pipeline(tmp_path / "p.yaml", placement()).path
    with pytest.raises(UserError, match="pinned by digest"):
        remote.prepare(path, PARAMS)
    assert remote.prepare(path, PARAMS, allow_mutable_image=True).parameters["data_uri"] == "gs://bucket/data"


@pytest.mark.parametrize("content", ["", "a: 1", "{", "\x00"])
def test_a_file_that_is_no_pipeline_is_refused_by_name(tmp_path: Path, content):
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(UserError, match=r"expected a compiled pipeline at .*p\.yaml"):
        remote.prepare(tmp_path / "p.yaml", ())
