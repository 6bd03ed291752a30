"""Where training runs; oracles: the plain stage's result, and a Trainer client that keeps what it was asked for."""

import json
import os
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJobSpec

from conversion_retrieval.config import PipelineConfig, parse_config
from conversion_retrieval.contracts import new_artifact, open_artifact
from conversion_retrieval.errors import UserError
from conversion_retrieval.training import launch, trainjob

CONFIG = parse_config({"training": {"device": "cpu"}})


@pytest.fixture
def inputs(tmp_path) -> dict[str, Path]:
    """A features and a spec artifact that only have digests; no training looks into them here."""
    for kind in ("features", "spec"):
        with new_artifact(tmp_path / kind, kind=kind) as directory:
            (directory / "content").write_text(kind)
    return {"features_dir": tmp_path / "features", "spec_dir": tmp_path / "spec"}


class Cluster(KubernetesBackend):
    """A cluster whose jobs go through ``states`` and end by writing what a worker would.

    It is a Kubernetes backend because the SDK's options refuse any other.
    """

    def __init__(self, states: list[str], *, writes: bool = True) -> None:
        self.states, self.writes = states, writes
        self.jobs: dict[str, SimpleNamespace] = {}
        self.started: list[SimpleNamespace] = []
        self.deleted: list[str] = []

    def list_jobs(self) -> list[SimpleNamespace]:
        jobs = list(self.jobs.values())
        for job in jobs:
            job.status = self.states.pop(0) if self.states else job.status
        return jobs

    def train(self, *, runtime, trainer, options) -> None:
        spec: dict = {}
        for option in options:
            option(spec, trainer, self)
        name = spec["metadata"]["name"]
        self.started.append(SimpleNamespace(name=name, runtime=runtime, trainer=trainer, **spec))
        self.jobs[name] = SimpleNamespace(name=name, status="Created")
        if self.writes:
            self._work(Path(trainer.env["TRAINING_JOB"]))

    def delete_job(self, name: str) -> None:
        self.deleted.append(name)
        del self.jobs[name]

    def _work(self, job_path: Path) -> None:
        job = launch.TrainingJob.read(job_path)
        assert open_artifact(job.features_dir, kind="features").digest
        with new_artifact(job.model_dir, kind="model") as directory:
            (directory / "weights").write_text("w")
        job.result_path.write_text(json.dumps({"recall": 0.25}))


@pytest.fixture
def start():
    def run(cluster: Cluster, job_path: Path) -> None:
        request = trainjob.NodesRequest(
            name="train-x",
            job_path=job_path,
            result_path=job_path.with_name("result.json"),
            image="gpu@sha256:1",
            num_nodes=3,
            gpus_per_node=4,
        )
        trainjob.run_train_job(request, client=cluster, poll_seconds=0.0)

    return run


def test_the_resume_key_changes_with_the_data_and_the_training_but_not_with_the_gate(inputs, tmp_path):
    key = launch.resume_key(**inputs, config=CONFIG)
    assert key == launch.resume_key(**inputs, config=replace(CONFIG, gate=replace(CONFIG.gate, k=7)))
    assert key != launch.resume_key(**inputs, config=replace(CONFIG, training=replace(CONFIG.training, seed=1)))
    with new_artifact(inputs["features_dir"], kind="features") as directory:
        (directory / "content").write_text("other")
    assert key != launch.resume_key(**inputs, config=CONFIG)


def test_the_resume_key_stays_when_checkpoints_are_to_come_more_often(inputs):
    """Oracle: the key of before; who asks for more, having lost too much to preemptions, must not lose the rest."""
    often = {"checkpoint_every_steps": 7, "checkpoint_every_minutes": 1.0, "keep_checkpoints": 5}
    config = replace(CONFIG, training=replace(CONFIG.training, **often))
    assert launch.resume_key(**inputs, config=config) == launch.resume_key(**inputs, config=CONFIG)


def test_one_process_trains_in_place_with_checkpoints_under_the_key(inputs, tmp_path, monkeypatch):
    called: dict = {}
    monkeypatch.setattr("conversion_retrieval.training.stage.train", lambda **given: called.update(given) or 0.5)
    recall = launch.launch_training(
        **inputs, model_dir=tmp_path / "model", config=CONFIG, checkpoint_root=tmp_path / "checkpoints", run_id="1"
    )
    assert recall == 0.5
    assert called["checkpoint_dir"] == tmp_path / "checkpoints" / launch.resume_key(**inputs, config=CONFIG)


@contextmanager
def ordinary_user():
    """Root may write anywhere: for as long as this lasts, the process is somebody else."""
    if os.geteuid():
        yield
        return
    os.seteuid(10001)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_checkpoint_volume_that_belongs_to_root_is_one_line_before_any_training(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("conversion_retrieval.training.stage.train", lambda **_: pytest.fail("trained"))
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o555)
    given = {**inputs, "model_dir": tmp_path / "model", "config": CONFIG, "run_id": "1"}
    with (
        ordinary_user(),
        pytest.raises(UserError, match=r"expected a checkpoint directory .* found: Permission denied") as error,
    ):
        launch.launch_training(**given, checkpoint_root=volume)
    assert str(volume) in str(error.value)
    assert launch.PREPARING_JOB in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_in_the_place_of_the_checkpoint_volume_is_one_line(tmp_path):
    (tmp_path / "volume").write_text("")
    with pytest.raises(UserError, match=f"found: File exists at {tmp_path}/volume"):
        launch.check_writable(tmp_path / "volume")


@pytest.mark.parametrize("path", ["", "checkpoints", "gs://bucket/checkpoints"])
def test_checkpoints_that_would_go_with_the_pod_are_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="expected an absolute path for the checkpoints"):
        launch.check_writable(Path(path))
    assert not list(tmp_path.iterdir())


def test_trying_a_checkpoint_volume_leaves_nothing_there(tmp_path):
    launch.check_writable(tmp_path / "volume")
    assert list((tmp_path / "volume").iterdir()) == []


def test_a_job_file_brings_the_same_job_to_another_process(inputs, tmp_path):
    job = launch.TrainingJob(**inputs, model_dir=tmp_path / "m", checkpoint_dir=tmp_path / "c", config=CONFIG)
    assert launch.TrainingJob.read(job.write()) == job


def test_a_damaged_job_file_is_a_user_error(tmp_path):
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(UserError, match="expected a training job"):
        launch.TrainingJob.read(tmp_path / "job.json")


def test_torchrun_starts_a_worker_for_each_gpu_that_reads_the_job(tmp_path):
    """The command is run for real with a worker that fails on its job: both processes must have got that far."""
    (tmp_path / "job.json").write_text("{}")
    completed = subprocess.run(
        launch.torchrun_command(tmp_path / "job.json", 2), capture_output=True, text=True, check=False
    )
    assert completed.returncode != 0
    assert "expected a training job at" in completed.stderr


def test_training_on_nodes_shares_inputs_fetches_the_model_and_returns_its_recall(inputs, tmp_path, monkeypatch):
    cluster = Cluster(["Created", "Running", "Complete"])
    monkeypatch.setattr(trainjob, "_client", lambda: cluster)
    monkeypatch.setenv("TRAINING_IMAGE", "gpu@sha256:1")
    monkeypatch.setenv("TRAINING_QUEUE", "gpus")
    monkeypatch.setenv("TRAINING_TIMEOUT_SECONDS", "43200")
    monkeypatch.setenv("TRAINING_COST_CENTER", "ads")
    monkeypatch.setattr(trainjob.time, "sleep", lambda _: None)
    recall = launch.launch_training(
        **inputs,
        model_dir=tmp_path / "model",
        config=CONFIG,
        checkpoint_root=tmp_path / "shared",
        run_id="run-1",
        num_nodes=3,
        gpus_per_node=4,
        node_selector={"accelerator": "nvidia-l4"},
    )
    assert recall == 0.25
    assert open_artifact(tmp_path / "model", kind="model").digest
    (started,) = cluster.started
    assert started.runtime == trainjob.RUNTIME
    assert (started.trainer.image, started.trainer.num_nodes) == ("gpu@sha256:1", 3)
    assert started.trainer.resources_per_node == {"gpu": 4}
    assert started.metadata["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    assert Path(started.trainer.env["TRAINING_JOB"]).is_relative_to(tmp_path / "shared")
    job_spec = TrainerV1alpha1TrainJobSpec.from_dict({**started.spec, "runtimeRef": {"name": started.runtime}})
    assert job_spec.active_deadline_seconds == 43200
    (job,) = job_spec.runtime_patches[0].training_runtime_spec.template.spec.replicated_jobs
    assert job.name == "node"
    assert job.template.spec.template.metadata.labels == {"conversion-retrieval/cost-center": "ads"}
    pod = job.template.spec.template.spec
    assert pod.node_selector == {"accelerator": "nvidia-l4"}
    assert not pod.tolerations


def test_training_on_nodes_goes_to_spot_nodes_where_asked_for(inputs, tmp_path, monkeypatch):
    cluster = Cluster(["Created", "Complete"])
    monkeypatch.setattr(trainjob, "_client", lambda: cluster)
    monkeypatch.setenv("TRAINING_IMAGE", "gpu@sha256:1")
    monkeypatch.setenv("TRAINING_SPOT", "example.com/capacity=spot")
    launch.launch_training(
        **inputs, model_dir=tmp_path / "model", config=CONFIG, checkpoint_root=tmp_path, run_id="run-1", num_nodes=2
    )
    (started,) = cluster.started
    job_spec = TrainerV1alpha1TrainJobSpec.from_dict({**started.spec, "runtimeRef": {"name": started.runtime}})
    (job,) = job_spec.runtime_patches[0].training_runtime_spec.template.spec.replicated_jobs
    pod = job.template.spec.template.spec
    # The list takes the place of the runtime's: it must hold what that one does.
    assert {(t.key, t.operator, t.value, t.effect) for t in pod.tolerations} == {
        ("nvidia.com/gpu", "Exists", None, "NoSchedule"),
        ("example.com/capacity", "Equal", "spot", "NoSchedule"),
    }
    (term,) = pod.affinity.node_affinity.preferred_during_scheduling_ignored_during_execution
    (expression,) = term.preference.match_expressions
    assert (expression.key, expression.operator, expression.values) == ("example.com/capacity", "In", ["spot"])


@pytest.fixture
def trainings(inputs, tmp_path, monkeypatch):
    """Trains with a stage that only leaves a checkpoint, as the run of the given id; what it found there before."""

    def train(**given) -> float:
        found.append(sorted(path.name for path in given["checkpoint_dir"].glob("step-*")))
        (given["checkpoint_dir"] / f"step-{len(found)}").mkdir(parents=True)
        return 0.5

    def run(run_id: str, config: PipelineConfig = CONFIG) -> list[str]:
        launch.launch_training(
            **inputs,
            model_dir=tmp_path / "model",
            config=config,
            checkpoint_root=tmp_path / "checkpoints",
            run_id=run_id,
        )
        return found[-1]

    found: list[list[str]] = []
    monkeypatch.setattr("conversion_retrieval.training.stage.train", train)
    return run


def test_another_run_does_not_take_a_finished_training_for_its_own(trainings, capsys):
    assert trainings("run-1") == []
    assert trainings("run-2") == []
    assert "an earlier run finished this training; starting anew" in capsys.readouterr().err


def test_the_same_run_finds_the_training_that_it_finished(trainings):
    """Its pod was lost after the training and before the model was stored."""
    trainings("run-1")
    assert trainings("run-1") == ["step-1"]


def test_another_run_goes_on_from_a_training_that_was_interrupted(trainings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(launch, "FINISHED_FILE", "killed-before-this-was-written")
        trainings("run-1")
    assert trainings("run-2") == ["step-1"]


def test_finished_trainings_of_other_data_are_removed_after_a_day(trainings, tmp_path):
    other = replace(CONFIG, training=replace(CONFIG.training, seed=1))
    trainings("run-1", other)
    trainings("run-2")
    (marker,) = [
        p for p in tmp_path.glob("checkpoints/*/finished.json") if json.loads(p.read_text())["run_id"] == "run-1"
    ]
    two_days_ago = marker.stat().st_mtime - 2 * 24 * 60 * 60
    os.utime(marker, (two_days_ago, two_days_ago))
    trainings("run-3")
    assert not marker.parent.exists()
    assert len(list(tmp_path.glob("checkpoints/*"))) == 1


def test_a_restarted_stage_awaits_the_job_that_runs_already(start, tmp_path):
    cluster = Cluster(["Running", "Running", "Complete"], writes=False)
    cluster.jobs["train-x"] = SimpleNamespace(name="train-x", status="Running")
    start(cluster, tmp_path / "job.json")
    assert not cluster.started
    assert not cluster.deleted


def test_a_failed_job_of_an_earlier_attempt_is_replaced(start, tmp_path):
    cluster = Cluster(["Failed", "Complete"], writes=False)
    cluster.jobs["train-x"] = SimpleNamespace(name="train-x", status="Failed")
    start(cluster, tmp_path / "job.json")
    assert cluster.deleted == ["train-x"]
    assert [job.name for job in cluster.started] == ["train-x"]


def test_a_complete_job_of_an_earlier_attempt_is_taken_while_its_result_is_there(start, tmp_path):
    cluster = Cluster([], writes=False)
    cluster.jobs["train-x"] = SimpleNamespace(name="train-x", status="Complete")
    (tmp_path / "result.json").write_text("{}")
    start(cluster, tmp_path / "job.json")
    assert not cluster.started
    (tmp_path / "result.json").unlink()
    cluster.states += ["Complete", "Complete"]
    start(cluster, tmp_path / "job.json")
    assert cluster.deleted == ["train-x"]
    assert [job.name for job in cluster.started] == ["train-x"]


@pytest.mark.parametrize("answered", [True, False])
def test_sigterm_deletes_the_job_whose_gpus_nobody_else_would_free(start, tmp_path, answered):
    """At once, while the stage still waits for another answer: its pod may be gone a second later."""

    class Terminated(Cluster):
        tried = threading.Event()

        def list_jobs(self) -> list[SimpleNamespace]:
            found = super().list_jobs()
            if self.jobs and not self.tried.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                assert self.tried.wait(60)
            return found

        def delete_job(self, name: str) -> None:
            first = not self.tried.is_set()
            if answered or not first:
                super().delete_job(name)
            self.tried.set()
            if first and not answered:
                raise TimeoutError

    cluster = Terminated(["Running", "Running"], writes=False)
    with pytest.raises(SystemExit) as exit_:
        start(cluster, tmp_path / "job.json")
    assert exit_.value.code == 128 + signal.SIGTERM
    assert cluster.deleted == ["train-x"]


def test_a_failing_job_is_a_user_error_that_names_it(start, tmp_path):
    cluster = Cluster(["Running", "Failed"], writes=False)
    with pytest.raises(UserError, match="TrainJob train-x to complete, found it Failed"):
        start(cluster, tmp_path / "job.json")


@pytest.mark.parametrize("error", [RuntimeError, TimeoutError])  # as the SDK calls whatever the API server answers
@pytest.mark.parametrize("failures", [trainjob.POLL_ATTEMPTS - 1, trainjob.POLL_ATTEMPTS])
def test_an_api_server_that_is_away_for_a_while_does_not_end_the_waiting(start, tmp_path, error, failures):
    class Restarting(Cluster):
        left = failures

        def list_jobs(self) -> list[SimpleNamespace]:
            if self.jobs and self.left:
                self.left -= 1
                raise error("Failed to list TrainJobs")
            return super().list_jobs()

    cluster = Restarting(["Running", "Complete"], writes=False)
    expected = pytest.raises(error, match="Failed to list") if failures == trainjob.POLL_ATTEMPTS else nullcontext()
    with expected:
        start(cluster, tmp_path / "job.json")
    assert len(cluster.started) == 1
    assert not cluster.deleted


def test_a_half_copied_input_is_never_taken_for_a_whole_one(inputs, tmp_path):
    target = tmp_path / "shared" / "features"
    target.mkdir(parents=True)
    (target / "content").write_text("half")
    launch._shared_copy(inputs["features_dir"], target)
    assert (
        open_artifact(target, kind="features").digest == open_artifact(inputs["features_dir"], kind="features").digest
    )
    shutil.rmtree(tmp_path / "shared")


def test_the_default_configuration_is_a_job_too(inputs, tmp_path):
    job = launch.TrainingJob(**inputs, model_dir=tmp_path / "m", checkpoint_dir=tmp_path / "c", config=PipelineConfig())
    assert launch.TrainingJob.read(job.write()).config == PipelineConfig()
