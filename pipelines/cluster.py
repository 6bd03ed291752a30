"""Names that the pipeline and the manifests share; a test holds the two against each other."""

from typing import Final

NAMESPACE: Final = "conversion-retrieval"
SERVICE_ACCOUNT: Final = "conversion-retrieval-pipeline"
NOTIFICATION_SECRET: Final = "conversion-retrieval-notification"  # noqa: S105 - the secret's name, not its content
NOTIFICATION_SECRET_KEY: Final = "url"  # noqa: S105 - as above
CHECKPOINT_CLAIM: Final = "conversion-retrieval-checkpoints"
CHECKPOINT_DIR: Final = "/checkpoints"
FEATURES_CLAIM: Final = "conversion-retrieval-features"
FEATURES_DIR: Final = "/features"
TRAINING_RUNTIME: Final = "conversion-retrieval-torch"

POOL_LABEL: Final = "conversion-retrieval/pool"
GENERAL_POOL: Final = "general"
GPU_POOL: Final = "gpu"
CAPACITY_LABEL: Final = "conversion-retrieval/capacity"
SPOT_CAPACITY: Final = "spot"
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
QUEUE: Final = "conversion-retrieval"
GPU_RESOURCE: Final = "nvidia.com/gpu"
# GKE sets it on its nodes; NVIDIA's feature discovery sets "nvidia.com/gpu.product" on any.
GPU_TYPE_LABEL: Final = "cloud.google.com/gke-accelerator"
USER_ID: Final = 10001
