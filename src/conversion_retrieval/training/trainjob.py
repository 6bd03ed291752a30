"""Training on several nodes: a Kubeflow Trainer ``TrainJob``, started once, awaited, found again after a restart."""

import time
from pathlib import Path
from typing import Any, Final

from conversion_retrieval.errors import UserError
from conversion_retrieval.progress import say

RUNTIME: Final = "conversion-retrieval-torch"
JOB_VARIABLE: Final = "TRAINING_JOB"
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
POLL_SECONDS: Final = 15.0
COMPLETE, FAILED = "Complete", "Failed"


def run_train_job(
    name: str,
    *,
    job_path: Path,
    image: str,
    num_nodes: int,
    gpus_per_node: int,
    queue: str = "",
    client: Any = None,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Start the TrainJob ``name`` on the cluster's runtime, or find it running, and wait until it is complete.

    The caller's timeout is the limit: a stage that is stopped while waiting finds the job again under its name.
    Raises ``UserError`` when the job fails; a failed job of an earlier attempt is deleted and started again.
    """
    client = client or _client()
    status = _status(client, name)
    if status == FAILED:
        client.delete_job(name)
        _wait_until_gone(client, name, poll_seconds)
        status = None
    if status is None:
        _start(client, name, _trainer(job_path, image, num_nodes, gpus_per_node), queue)
    _wait(client, name, poll_seconds)


def _client() -> Any:
    try:
        from kubeflow.trainer import TrainerClient
    except ImportError:
        raise UserError(
            "expected the kubeflow SDK for training on several nodes, found none: install .[trainer]"
        ) from None
    return TrainerClient()


def _trainer(job_path: Path, image: str, num_nodes: int, gpus_per_node: int) -> Any:
    from kubeflow.trainer import CustomTrainerContainer

    return CustomTrainerContainer(
        image=image,
        num_nodes=num_nodes,
        resources_per_node={"gpu": gpus_per_node},
        env={JOB_VARIABLE: str(job_path)},
    )


def _start(client: Any, name: str, trainer: Any, queue: str) -> None:
    from kubeflow.trainer.options.common import Name
    from kubeflow.trainer.options.kubernetes import Labels

    options = [Name(name), *([Labels({QUEUE_LABEL: queue})] if queue else [])]
    say(f"train: TrainJob {name} on {trainer.num_nodes} nodes")
    client.train(runtime=RUNTIME, trainer=trainer, options=options)


def _status(client: Any, name: str) -> str | None:
    """The job's status, None if there is no such job."""
    job = next((job for job in client.list_jobs() if job.name == name), None)
    return None if job is None else str(job.status)


def _wait(client: Any, name: str, poll_seconds: float) -> None:
    last = ""
    while (status := _status(client, name)) != COMPLETE:
        if status == FAILED or status is None:
            raise UserError(f"expected TrainJob {name} to complete, found it {status or 'deleted'}: see its pods' logs")
        if status != last:
            say(f"train: TrainJob {name} is {status}")
            last = status
        time.sleep(poll_seconds)


def _wait_until_gone(client: Any, name: str, poll_seconds: float) -> None:
    while _status(client, name) is not None:
        time.sleep(poll_seconds)
