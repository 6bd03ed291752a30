"""Start training where it was asked to run: in this process, on all GPUs of this node, or on several nodes.

``torchrun`` starts a process for each GPU; across nodes a Kubeflow ``TrainJob`` does. Both run ``training.worker`` on a
job file that names the same directories, so all three ways train the same model on the same inputs.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from conversion_retrieval.config import PipelineConfig, config_values, parse_config
from conversion_retrieval.contracts import MANIFEST, read_manifest, replace_directory, write_json
from conversion_retrieval.errors import UserError
from conversion_retrieval.progress import say
from conversion_retrieval.training.interruption import run_and_forward_sigterm

IMAGE_VARIABLE: Final = "TRAINING_IMAGE"
QUEUE_VARIABLE: Final = "TRAINING_QUEUE"
SPOT_VARIABLE: Final = "TRAINING_SPOT"
COST_CENTER_VARIABLE: Final = "TRAINING_COST_CENTER"
TIMEOUT_VARIABLE: Final = "TRAINING_TIMEOUT_SECONDS"
RESULT_FILE: Final = "result.json"
JOB_FILE: Final = "job.json"
FINISHED_FILE: Final = "finished.json"
PREPARING_JOB: Final = "conversion-retrieval-prepare-checkpoints"
KEEP_FINISHED_SECONDS: Final = 24 * 60 * 60
SECTIONS: Final = ("losses", "model", "training")


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """The arguments of the ``train`` stage as they travel to other processes; paths are absolute there and here."""

    features_dir: Path
    spec_dir: Path
    model_dir: Path
    checkpoint_dir: Path
    config: PipelineConfig

    @property
    def result_path(self) -> Path:
        """Where the first process writes what ``train`` returned."""
        return self.checkpoint_dir / RESULT_FILE

    def write(self) -> Path:
        """Write the job file beside the checkpoints."""
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {name: str(getattr(self, name)) for name in _PATHS}
        path = self.checkpoint_dir / JOB_FILE
        write_json(path, values | {"config": config_values(self.config)})
        return path

    @classmethod
    def read(cls, path: Path) -> "TrainingJob":
        """Read a job file; ``UserError`` if it is none."""
        try:
            values = json.loads(path.read_text())
            paths = {name: Path(values[name]) for name in _PATHS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"expected a training job at {path}, found: {error!r}") from None
        return cls(**paths, config=parse_config(values["config"], where=str(path)))

    def result(self) -> float:
        """What ``train`` returned in the worker; ``UserError`` if it ended without."""
        try:
            return float(json.loads(self.result_path.read_text())["recall"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"expected the training's result at {self.result_path}, found: {error!r}") from None


_PATHS: Final = ("features_dir", "spec_dir", "model_dir", "checkpoint_dir")


def launch_training(
    *,
    features_dir: Path,
    spec_dir: Path,
    model_dir: Path,
    config: PipelineConfig,
    checkpoint_root: Path,
    run_id: str,
    num_nodes: int = 1,
    gpus_per_node: int = 1,
    node_selector: Mapping[str, str] | None = None,
) -> float:
    """The ``train`` stage on whatever is there; returns the best step's validation recall.

    Checkpoints go below ``checkpoint_root`` under a name made of the inputs' digests and the configuration: a training
    that was interrupted finds its own, in whichever run, a changed one starts afresh. One that another run finished
    is no reason to skip this one: it is removed, and training starts anew. With ``num_nodes`` above 1,
    ``checkpoint_root`` must be a volume that all nodes mount at the same path; ``node_selector`` chooses those nodes.
    Raises ``UserError`` at once where nothing can be written there.
    """
    check_writable(checkpoint_root)
    job = TrainingJob(
        features_dir=features_dir,
        spec_dir=spec_dir,
        model_dir=model_dir,
        checkpoint_dir=checkpoint_root / resume_key(features_dir, spec_dir, config),
        config=config,
    )
    forget_finished(job.checkpoint_dir, run_id)
    recall = _train(job, num_nodes, gpus_per_node, node_selector or {})
    job.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    write_json(job.checkpoint_dir / FINISHED_FILE, {"run_id": run_id})
    return recall


def check_writable(checkpoint_root: Path) -> None:
    """Raise ``UserError`` unless a directory can be made below ``checkpoint_root``: hours before the first one is.

    A relative one, or an address, would be a directory of the pod, and gone with it.
    """
    if not checkpoint_root.is_absolute():
        raise UserError(f"expected an absolute path for the checkpoints, found {str(checkpoint_root)!r}")
    try:
        checkpoint_root.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(prefix=".probe-", dir=checkpoint_root)).rmdir()
    except OSError as error:
        raise UserError(
            f"expected a checkpoint directory that user {os.getuid()}, group {os.getgid()} may write to, found: "
            f"{error.strerror} at {checkpoint_root}; on a cluster see the log of the Job {PREPARING_JOB}, "
            "elsewhere give another checkpoint directory"
        ) from None


def forget_finished(checkpoint_dir: Path, run_id: str) -> None:
    """Remove the checkpoints of trainings that other runs finished: of this training at once, of others after a day.

    Those of this run stay: its own pod, started again after the training, takes the result from there.
    """
    for marker in checkpoint_dir.parent.glob(f"*/{FINISHED_FILE}"):
        is_ours = marker.parent == checkpoint_dir
        try:
            if json.loads(marker.read_text())["run_id"] == run_id:
                continue
            is_old = time.time() - marker.stat().st_mtime > KEEP_FINISHED_SECONDS
        except (OSError, ValueError, KeyError):  # another run is removing it
            continue
        if is_ours:
            say("train: an earlier run finished this training; starting anew")
        if is_ours or is_old:
            shutil.rmtree(marker.parent, ignore_errors=True)


def _train(job: TrainingJob, num_nodes: int, gpus_per_node: int, node_selector: Mapping[str, str]) -> float:
    if num_nodes > 1:
        return _train_on_nodes(job, num_nodes, gpus_per_node, node_selector)
    if (processes := local_gpus(job.config)) > 1:
        return _train_on_gpus(job, processes)
    from conversion_retrieval.training.stage import train

    return train(
        features_dir=job.features_dir,
        spec_dir=job.spec_dir,
        model_dir=job.model_dir,
        config=job.config,
        checkpoint_dir=job.checkpoint_dir,
        log_dir=job.checkpoint_dir / "tensorboard",
    )


def resume_key(features_dir: Path, spec_dir: Path, config: PipelineConfig) -> str:
    """A name for everything that decides the weights: two trainings with equal keys may continue each other."""
    values = config_values(replace(config, training=config.training.of_weights))
    parts = [
        read_manifest(features_dir, kind="features").digest,
        read_manifest(spec_dir, kind="spec").digest,
        *(json.dumps(values[section], sort_keys=True) for section in SECTIONS),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def local_gpus(config: PipelineConfig) -> int:
    """How many GPUs of this machine the configuration lets training use."""
    import torch

    return 0 if config.training.device == "cpu" else torch.cuda.device_count()


def torchrun_command(job_path: Path, processes: int) -> list[str]:
    """The command that trains on ``processes`` processes of this node."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
        *("-m", "conversion_retrieval.training.worker", str(job_path)),
    ]


def _train_on_gpus(job: TrainingJob, processes: int) -> float:
    say(f"train: {processes} GPUs, one process each")
    job.result_path.unlink(missing_ok=True)
    if code := run_and_forward_sigterm(torchrun_command(job.write(), processes)):
        raise UserError(f"expected {processes} training processes to end well, found exit code {code}")
    return job.result()


def _train_on_nodes(job: TrainingJob, num_nodes: int, gpus_per_node: int, node_selector: Mapping[str, str]) -> float:
    """Share the inputs through the checkpoint volume, let the TrainJob train there, and fetch the model."""
    from conversion_retrieval.training.trainjob import NodesRequest, run_train_job

    if not (image := os.environ.get(IMAGE_VARIABLE, "")):
        raise UserError(f"expected the training image in {IMAGE_VARIABLE}, found none: compile with --train-nodes")
    workspace = job.checkpoint_dir
    shared = TrainingJob(
        features_dir=_shared_copy(job.features_dir, workspace / "features"),
        spec_dir=_shared_copy(job.spec_dir, workspace / "spec"),
        model_dir=workspace / "model",
        checkpoint_dir=workspace,
        config=job.config,
    )
    job_path = shared.write()
    request = NodesRequest(
        name=f"train-{workspace.name}",
        job_path=job_path,
        result_path=shared.result_path,
        image=image,
        num_nodes=num_nodes,
        gpus_per_node=gpus_per_node,
        node_selector=node_selector,
        queue=os.environ.get(QUEUE_VARIABLE, ""),
        spot=os.environ.get(SPOT_VARIABLE, ""),
        cost_center=os.environ.get(COST_CENTER_VARIABLE, ""),
        timeout_seconds=int(os.environ.get(TIMEOUT_VARIABLE, "0")),
    )
    run_train_job(request)
    recall = shared.result()
    _shared_copy(shared.model_dir, job.model_dir)
    return recall


def _shared_copy(source: Path, target: Path) -> Path:
    """Copy an artifact so that it appears whole; an equal one from an earlier attempt is kept."""
    if (target / MANIFEST).exists() and (target / MANIFEST).read_bytes() == (source / MANIFEST).read_bytes():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.copy")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    replace_directory(temporary, target)
    return target
