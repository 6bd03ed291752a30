"""Where each stage runs and what it may use: pools, requests and limits, timeouts, retries, labels, identity."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kfp import dsl, kubernetes

from pipelines import cluster

MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
BACKOFF_SECONDS: Final = 30
# What pods may wait for nodes or in a queue, over all attempts.
PENDING_SECONDS: Final = 24 * HOUR


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a stage's pod asks for. Limits stop a leak, requests find a node; memory is where stages differ."""

    cpu_request: str
    cpu_limit: str
    memory_request: str
    memory_limit: str
    timeout_seconds: int
    retries: int = 2

    @property
    def retry_window_seconds(self) -> int:
        """Time for every attempt to reach its limit, with the pauses between, which double, and the waiting for nodes.

        The backend stops retrying, and the attempt that runs, this long after the first attempt's start: kfp calls it
        the backoff's maximum duration, but it is no bound on a pause.
        """
        pauses = sum(BACKOFF_SECONDS << attempt for attempt in range(self.retries))
        return (self.retries + 1) * self.timeout_seconds + pauses + PENDING_SECONDS


# Sized for a hundred million events and a million items; the README's demo needs two cores and 6 GB at its peak.
STAGE_RESOURCES: Final[Mapping[str, Resources]] = {
    "validate_data": Resources(
        cpu_request="2", cpu_limit="4", memory_request="8Gi", memory_limit="16Gi", timeout_seconds=2 * HOUR
    ),
    "build_features": Resources(
        cpu_request="4", cpu_limit="8", memory_request="16Gi", memory_limit="32Gi", timeout_seconds=4 * HOUR
    ),
    # A vanished spot node is a failed pod: training goes on from its checkpoint, so retries are cheap.
    "train": Resources(
        cpu_request="6",
        cpu_limit="12",
        memory_request="24Gi",
        memory_limit="48Gi",
        timeout_seconds=12 * HOUR,
        retries=5,
    ),
    "evaluate": Resources(
        cpu_request="4", cpu_limit="8", memory_request="16Gi", memory_limit="32Gi", timeout_seconds=4 * HOUR
    ),
    "build_index": Resources(
        cpu_request="4", cpu_limit="8", memory_request="8Gi", memory_limit="16Gi", timeout_seconds=2 * HOUR
    ),
    "gate": Resources(
        cpu_request="1", cpu_limit="2", memory_request="4Gi", memory_limit="8Gi", timeout_seconds=30 * MINUTE
    ),
    "promote": Resources(
        cpu_request="1", cpu_limit="2", memory_request="2Gi", memory_limit="4Gi", timeout_seconds=30 * MINUTE
    ),
    "notify": Resources(
        cpu_request="100m", cpu_limit="500m", memory_request="256Mi", memory_limit="512Mi", timeout_seconds=5 * MINUTE
    ),
    "select_gpu_nodes": Resources(
        cpu_request="100m", cpu_limit="500m", memory_request="256Mi", memory_limit="512Mi", timeout_seconds=5 * MINUTE
    ),
    "plan_variants": Resources(
        cpu_request="100m", cpu_limit="1", memory_request="256Mi", memory_limit="1Gi", timeout_seconds=5 * MINUTE
    ),
    "name_variant": Resources(
        cpu_request="100m", cpu_limit="1", memory_request="1Gi", memory_limit="2Gi", timeout_seconds=30 * MINUTE
    ),
    "compare_variants": Resources(
        cpu_request="1", cpu_limit="2", memory_request="4Gi", memory_limit="8Gi", timeout_seconds=HOUR
    ),
}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Choices made at compile time: images, which stages use the GPU pool, spot capacity, who pays, Dask's volume.

    ``retry`` is off for a run on one machine: nothing is pre-empted there, and a mistake should show at once.
    """

    image_cpu: str
    image_gpu: str
    evaluate_on_gpu: bool = False
    spot: bool = False
    train_nodes: int = 1
    queue: str = ""
    cost_center: str = "conversion-retrieval"
    gpu_type_label: str = cluster.GPU_TYPE_LABEL
    dask: bool = False
    retry: bool = True

    @property
    def gpu_stages(self) -> frozenset[str]:
        """The stages whose own pod asks for a GPU."""
        train = {"train"} if self.train_nodes == 1 else set()
        return frozenset(train | ({"evaluate"} if self.evaluate_on_gpu else set()))

    def train(self, task: dsl.PipelineTask, *, gpu_count: Any, node_selector: Any) -> dsl.PipelineTask:
        """On the GPU pool; with several nodes the task only awaits a TrainJob, whose own pods ask for the GPUs."""
        if self.train_nodes == 1:
            self.on_gpu(task, "train", gpu_count=gpu_count, node_selector=node_selector)
        else:
            self.on_cpu(task, "train").set_container_image(self.image_gpu)
            task.set_cpu_request("1").set_cpu_limit("2").set_memory_request("2Gi").set_memory_limit("4Gi")
            task.set_env_variable("TRAINING_COST_CENTER", self.cost_center)
            if self.spot:
                task.set_env_variable("TRAINING_SPOT", f"{cluster.CAPACITY_LABEL}={cluster.SPOT_CAPACITY}")
        task.set_env_variable("TRAINING_IMAGE", self.image_gpu)
        task.set_env_variable("TRAINING_TIMEOUT_SECONDS", str(STAGE_RESOURCES["train"].timeout_seconds))
        if self.queue:
            task.set_env_variable("TRAINING_QUEUE", self.queue)
        kubernetes.mount_pvc(task, cluster.CHECKPOINT_CLAIM, cluster.CHECKPOINT_DIR)
        return task

    def on_cpu(self, task: dsl.PipelineTask, stage: str) -> dsl.PipelineTask:
        """Prefer the general pool; the GPU pool's taint keeps the task off it either way."""
        task.set_container_image(self.image_cpu)
        _prefer(task, cluster.POOL_LABEL, cluster.GENERAL_POOL)
        return self._limit(task, stage)

    def build_features(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """On the general pool; with ``dask`` on the volume that the workers of a Dask cluster mount, too."""
        if self.dask:
            kubernetes.mount_pvc(task, cluster.FEATURES_CLAIM, cluster.FEATURES_DIR)
        return self.on_cpu(task, "build_features")

    def on_gpu(self, task: dsl.PipelineTask, stage: str, *, gpu_count: Any, node_selector: Any) -> dsl.PipelineTask:
        """Ask for ``gpu_count`` GPUs on the nodes that ``node_selector`` names, tolerating their taint."""
        task.set_container_image(self.image_gpu)
        task.set_accelerator_type(cluster.GPU_RESOURCE).set_accelerator_limit(gpu_count)
        kubernetes.add_node_selector_json(task, node_selector)
        kubernetes.add_toleration(task, key=cluster.GPU_RESOURCE, operator="Exists", effect="NoSchedule")
        # Data loaders and NCCL pass tensors through shared memory; a container's default is 64 MB.
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="8Gi")  # noqa: S108
        if self.queue:
            kubernetes.add_pod_label(task, cluster.QUEUE_LABEL, self.queue)
        if self.spot:
            _prefer(task, cluster.CAPACITY_LABEL, cluster.SPOT_CAPACITY)
            kubernetes.add_toleration(
                task, key=cluster.CAPACITY_LABEL, operator="Equal", value=cluster.SPOT_CAPACITY, effect="NoSchedule"
            )
        return self._limit(task, stage)

    def _limit(self, task: dsl.PipelineTask, stage: str) -> dsl.PipelineTask:
        resources = STAGE_RESOURCES[stage]
        task.set_cpu_request(resources.cpu_request).set_cpu_limit(resources.cpu_limit)
        task.set_memory_request(resources.memory_request).set_memory_limit(resources.memory_limit)
        if self.retry:
            task.set_retry(
                resources.retries,
                backoff_duration=f"{BACKOFF_SECONDS}s",
                backoff_factor=2.0,
                backoff_max_duration=f"{resources.retry_window_seconds}s",
            )
        # The cache key knows names and arguments, never bytes: a daily run on one URI would reuse yesterday's model.
        task.set_caching_options(enable_caching=False)
        kubernetes.set_timeout(task, resources.timeout_seconds)
        kubernetes.set_security_context(
            task, run_as_user=cluster.USER_ID, run_as_group=cluster.USER_ID, run_as_non_root=True
        )
        kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "conversion-retrieval")
        kubernetes.add_pod_label(task, "conversion-retrieval/stage", stage.replace("_", "-"))
        kubernetes.add_pod_label(task, "conversion-retrieval/cost-center", self.cost_center)
        return task


def _prefer(task: dsl.PipelineTask, label: str, value: str) -> None:
    expression = {"key": label, "operator": "In", "values": [value]}
    kubernetes.add_node_affinity(task, match_expressions=[expression], weight=100)
