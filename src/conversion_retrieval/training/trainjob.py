"""Training on several nodes: a Kubeflow Trainer ``TrainJob``, started once, awaited, found again after a restart."""

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from conversion_retrieval.errors import UserError
from conversion_retrieval.progress import say
from conversion_retrieval.training.interruption import Interrupted, StopRequest, stop_on_sigterm

RUNTIME: Final = "conversion-retrieval-torch"
REPLICATED_JOB: Final = "node"
JOB_VARIABLE: Final = "TRAINING_JOB"
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
COST_CENTER_LABEL: Final = "conversion-retrieval/cost-center"
GPU_TOLERATION: Final = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
POLL_SECONDS: Final = 5.0
POLL_ATTEMPTS: Final = 24
COMPLETE, FAILED = "Complete", "Failed"


@dataclass(frozen=True, kw_only=True)
class NodesRequest:
    """What is asked of the cluster: ``num_nodes`` pods of ``image``, each with ``gpus_per_node`` GPUs.

    The pods read ``job_path``, and the first one writes ``result_path`` when all is done. ``timeout_seconds`` is the
    cluster's limit on the job, 0 for none. ``spot`` is the label of spot nodes, ``key=value``, which are then preferred
    and whose taint of that name is tolerated; empty keeps the pods off them. An empty ``cost_center`` is the runtime's.
    """

    name: str
    job_path: Path
    result_path: Path
    image: str
    num_nodes: int
    gpus_per_node: int
    node_selector: Mapping[str, str] = field(default_factory=dict)
    queue: str = ""
    spot: str = ""
    cost_center: str = ""
    timeout_seconds: int = 0


def run_train_job(request: NodesRequest, *, client: Any = None, poll_seconds: float = POLL_SECONDS) -> None:
    """Start the TrainJob on the cluster's runtime, or find it running, and wait until it is complete.

    A stage that vanishes while waiting finds the job again under its name; one that is told to stop (SIGTERM: the run
    was terminated, or its pod evicted) deletes the job first, because nobody would free its GPUs: the checkpoints
    stay. Raises ``UserError`` when the job fails, ``Interrupted`` after SIGTERM. A failed job of an earlier attempt,
    and a complete one whose result is gone, are deleted and started again.
    """
    client = client or _client()
    status = _status(client, request.name)
    if status == FAILED or (status == COMPLETE and not request.result_path.exists()):
        client.delete_job(request.name)
        _wait_until_gone(client, request.name, poll_seconds)
        status = None
    deletion = _Deletion(client, request.name)
    with stop_on_sigterm(deletion.begin) as stop:
        if status is None:
            _start(client, request)
        _wait(client, request.name, poll_seconds, stop, deletion)


class _Deletion:
    """Deletes the job from the moment of the signal on: a pod's launcher may be gone a second later, and we with it.

    In a thread of its own, as the signal may come while the main one is inside the client.
    """

    def __init__(self, client: Any, name: str) -> None:
        self._client, self._name = client, name
        self.ended, self.succeeded = threading.Event(), False

    def begin(self) -> None:
        """Return at once; ``ended`` is set when the cluster has answered."""
        threading.Thread(target=self._delete, daemon=True).start()

    def pause(self, seconds: float) -> None:
        """Wait so long, or until the deletion has ended."""
        self.ended.wait(seconds)

    def _delete(self) -> None:
        with contextlib.suppress(Exception):  # of any kind: ``_wait`` tries again and tells
            self._client.delete_job(self._name)
            self.succeeded = True
        self.ended.set()


def _client() -> Any:
    try:
        from kubeflow.trainer import TrainerClient
    except ImportError:
        raise UserError(
            "expected the kubeflow SDK for training on several nodes, found none: install .[trainer]"
        ) from None
    return TrainerClient()


def _start(client: Any, request: NodesRequest) -> None:
    from kubeflow.trainer import CustomTrainerContainer

    trainer = CustomTrainerContainer(
        image=request.image,
        num_nodes=request.num_nodes,
        resources_per_node={"gpu": request.gpus_per_node},
        env={JOB_VARIABLE: str(request.job_path)},
    )
    say(f"train: TrainJob {request.name} on {request.num_nodes} nodes")
    client.train(runtime=RUNTIME, trainer=trainer, options=_options(request))


def _options(request: NodesRequest) -> list[Any]:
    from kubeflow.trainer.options.common import Name
    from kubeflow.trainer.options.kubernetes import ActiveDeadlineSeconds, Labels

    options: list[Any] = [Name(request.name)]
    if request.queue:
        options.append(Labels({QUEUE_LABEL: request.queue}))
    if request.node_selector or request.spot or request.cost_center:
        options.append(_of_pods(request))
    if request.timeout_seconds:
        options.append(ActiveDeadlineSeconds(request.timeout_seconds))
    return options


def _of_pods(request: NodesRequest) -> Any:
    """The runtime's pods with the request's node labels added to its own, on spot nodes and paid for as it says."""
    from kubeflow.trainer.options import kubernetes as options

    spot_fields = _on_spot(*request.spot.split("=")) if request.spot else {}
    pod = options.PodTemplatePatch(
        metadata={"labels": {COST_CENTER_LABEL: request.cost_center}} if request.cost_center else None,
        spec=options.PodSpecPatch(node_selector=dict(request.node_selector) or None, **spot_fields),
    )
    job = options.ReplicatedJobPatch(
        name=REPLICATED_JOB, template=options.JobTemplatePatch(spec=options.JobSpecPatch(template=pod))
    )
    job_set = options.JobSetTemplatePatch(spec=options.JobSetSpecPatch(replicated_jobs=[job]))
    return options.RuntimePatch(training_runtime_spec=options.TrainingRuntimeSpecPatch(template=job_set))


def _on_spot(key: str, value: str) -> dict[str, Any]:
    """A pod's preference and toleration; the list replaces the runtime's, so it has that one's toleration too."""
    preference = {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}
    preferred = [{"weight": 100, "preference": preference}]
    return {
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}},
        "tolerations": [GPU_TOLERATION, {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}],
    }


def _status(client: Any, name: str) -> str | None:
    """The job's status, None if there is no such job."""
    job = next((job for job in client.list_jobs() if job.name == name), None)
    return None if job is None else str(job.status)


def _wait(client: Any, name: str, poll_seconds: float, stop: StopRequest, deletion: _Deletion) -> None:
    last = ""
    # A training takes hours: an API server that restarts must cost no attempt, the last of which leaves the job behind.
    patient = Retrying(
        retry=retry_if_exception_type((RuntimeError, TimeoutError)),  # all that the SDK raises
        stop=stop_after_attempt(POLL_ATTEMPTS),
        wait=wait_fixed(poll_seconds),
        sleep=deletion.pause,
        reraise=True,
    )
    while (status := patient(_status, client, name)) != COMPLETE:
        if stop.received:
            deletion.ended.wait()
            if not deletion.succeeded and status is not None:  # the signal came before the job, or nobody answered
                client.delete_job(name)
            say(f"train: stopped by SIGTERM; TrainJob {name} is deleted, its checkpoints stay")
            raise Interrupted
        if status == FAILED or status is None:
            raise UserError(f"expected TrainJob {name} to complete, found it {status or 'deleted'}: see its pods' logs")
        if status != last:
            say(f"train: TrainJob {name} is {status}")
            last = status
        deletion.pause(poll_seconds)


def _wait_until_gone(client: Any, name: str, poll_seconds: float) -> None:
    while _status(client, name) is not None:
        time.sleep(poll_seconds)
