"""Where training runs; oracles: the plain stage's result, and a Trainer client that keeps what it was asked for."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend

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
        for job in self.jobs.values():
            job.status = self.states.pop(0) if self.states else job.status
        return list(self.jobs.values())

    def train(self, *, runtime, trainer, options) -> None:
        spec: dict = {}
        for option in options:
            option(spec, trainer, self)
        name = spec["metadata"]["name"]
        self.started.append(SimpleNamespace(name=name, runtime=runtime, trainer=trainer, metadata=spec["metadata"]))
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
    def run(cluster: Cluster, job_path: Path, queue: str = "") -> None:
        trainjob.run_train_job(
            "train-x",
            job_path=job_path,
            image="gpu@sha256:1",
            num_nodes=3,
            gpus_per_node=4,
            queue=queue,
            client=cluster,
            poll_seconds=0.0,
        )

    return run


def test_the_resume_key_changes_with_the_data_and_the_training_but_not_with_the_gate(inputs, tmp_path):
    key = launch.resume_key(**inputs, config=CONFIG)
    assert key == launch.resume_key(**inputs, config=replace(CONFIG, gate=replace(CONFIG.gate, k=7)))
    assert key != launch.resume_key(**inputs, config=replace(CONFIG, training=replace(CONFIG.training, seed=1)))
    with new_artifact(inputs["features_dir"], kind="features") as directory:
        (directory / "content").write_text("other")
    assert key != launch.resume_key(**inputs, config=CONFIG)


def test_one_process_trains_in_place_with_checkpoints_under_the_key(inputs, tmp_path, monkeypatch):
    called: dict = {}
    monkeypatch.setattr("conversion_retrieval.training.stage.train", lambda **given: called.update(given) or 0.5)
    recall = launch.launch_training(
        **inputs, model_dir=tmp_path / "model", config=CONFIG, checkpoint_root=tmp_path / "checkpoints"
    )
    assert recall == 0.5
    assert called["checkpoint_dir"] == tmp_path / "checkpoints" / launch.resume_key(**inputs, config=CONFIG)


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
    monkeypatch.setattr(trainjob.time, "sleep", lambda _: None)
    recall = launch.launch_training(
        **inputs,
        model_dir=tmp_path / "model",
        config=CONFIG,
        checkpoint_root=tmp_path / "shared",
        num_nodes=3,
        gpus_per_node=4,
    )
    assert recall == 0.25
    assert open_artifact(tmp_path / "model", kind="model").digest
    (started,) = cluster.started
    assert started.runtime == trainjob.RUNTIME
    assert (started.trainer.image, started.trainer.num_nodes) == ("gpu@sha256:1", 3)
    assert started.trainer.resources_per_node == {"gpu": 4}
    assert started.metadata["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    assert Path(started.trainer.env["TRAINING_JOB"]).is_relative_to(tmp_path / "shared")


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


def test_a_failing_job_is_a_user_error_that_names_it(start, tmp_path):
    cluster = Cluster(["Running", "Failed"], writes=False)
    with pytest.raises(UserError, match="TrainJob train-x to complete, found it Failed"):
        start(cluster, tmp_path / "job.json")


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
