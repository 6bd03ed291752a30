"""The whole ``train`` stage in two real processes; oracle: one process with the same global batch."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.contracts import open_artifact
from conversion_retrieval.model.sizes import InputSizes
from conversion_retrieval.model.two_tower import make_model
from conversion_retrieval.training.checkpoint import Checkpoints, read_checkpoint
from conversion_retrieval.training.launch import TrainingJob, torchrun_command
from conversion_retrieval.training.load import load_model
from conversion_retrieval.training.stage import train
from tests.training.runs import built_config

pytestmark = pytest.mark.long

# Masks of dropout are each process's own, so equal weights need none.
CONFIG: PipelineConfig = built_config(
    model={"history": {"dropout": 0.0}, "memory_dim": 4}, max_steps=9, checkpoint_every_steps=3, validate_every_steps=6
)


def torchrun(job: TrainingJob, fault: str = "") -> "subprocess.CompletedProcess[str]":
    """Two gloo processes on ``job``; ``fault`` as ``faulty_worker`` knows it."""
    command = torchrun_command(job.write(), 2)
    command[command.index("conversion_retrieval.training.worker")] = "tests.training.faulty_worker"
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "FAULT": fault, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def job(built: dict[str, Path], directory: Path) -> TrainingJob:
    return TrainingJob(**built, model_dir=directory / "model", checkpoint_dir=directory / "checkpoints", config=CONFIG)


@pytest.fixture(scope="module")
def alone(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of one process."""
    directory = tmp_path_factory.mktemp("alone")
    train(**built, model_dir=directory / "model", config=CONFIG)
    return directory / "model"


@pytest.fixture(scope="module")
def interrupted(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingJob, str]:
    """A job whose second worker was killed at step 4 and whose torchrun was terminated at step 7; its last words."""
    interrupted = job(built, tmp_path_factory.mktemp("interrupted"))
    killed = torchrun(interrupted, "kill:4")
    assert killed.returncode == 1, killed.stderr
    assert steps_saved(interrupted) == [3]
    terminated = torchrun(interrupted, "terminate:7")
    assert terminated.returncode != 0, terminated.stderr
    assert steps_saved(interrupted)[0] == 8
    return interrupted, terminated.stderr


def steps_saved(job: TrainingJob) -> list[int]:
    paths = Checkpoints(directory=job.checkpoint_dir, fingerprint="", keep=9).paths()
    return [read_checkpoint(path).position.step for path in paths]


def curve(model_dir: Path, split: str, metric: str) -> list[float]:
    rows = pq.read_table(model_dir / "training_curve.parquet").to_pylist()
    return [row["value"] for row in rows if (row["split"], row["metric"]) == (split, metric)]


def assert_same_model(one: Path, other: Path) -> None:
    """Equal but for rounding: sums over processes have another order, which Adam magnifies where gradients vanish."""
    losses = [curve(path, "train", "conversion/loss") for path in (one, other)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    found, expected = (load_file(path / "weights.safetensors") for path in (one, other))
    loaded = load_model(other)
    start = make_model(InputSizes.of(loaded.spec), CONFIG.model).state_dict()
    apart = sum(np.square(found[name] - values).sum() for name, values in expected.items())
    moved = sum(np.square(start[name].numpy() - values).sum() for name, values in expected.items())
    assert apart < 1e-4 * moved


def test_two_processes_train_the_model_of_one_with_the_whole_batch(built, alone, tmp_path):
    both = job(built, tmp_path)
    completed = torchrun(both)
    assert completed.returncode == 0, completed.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "model"]
    assert open_artifact(both.model_dir, kind="model").digest
    assert_same_model(both.model_dir, alone)
    # The shares of the towers are validated by both processes together, too.
    one, other = (json.loads((path / "metrics.json").read_text()) for path in (both.model_dir, alone))
    assert one["tower_share"] == other["tower_share"]
    assert one["share_values"] == {share: pytest.approx(v, abs=0.01) for share, v in other["share_values"].items()}
    assert both.result() == max(one["share_values"].values())
    np.testing.assert_allclose(
        curve(both.model_dir, "validation", "conversion/recall@10"),
        curve(alone, "validation", "conversion/recall@10"),
        atol=0.01,
    )


def test_a_killed_worker_fails_the_run_and_a_terminated_torchrun_saves(interrupted):
    job, terminated = interrupted
    assert "resuming from" in terminated
    assert "stopped by SIGTERM after step 8" in terminated
    assert not job.model_dir.exists()


def test_what_two_processes_began_one_finishes(interrupted, alone, tmp_path):
    job, _ = interrupted
    train(
        features_dir=job.features_dir,
        spec_dir=job.spec_dir,
        model_dir=tmp_path / "model",
        config=CONFIG,
        checkpoint_dir=job.checkpoint_dir,
    )
    assert_same_model(tmp_path / "model", alone)
