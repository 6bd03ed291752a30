"""Node selectors; oracles: the expected labels by hand, and the schema of a pod."""

import kubernetes_validate
import pytest

from conversion_retrieval.errors import UserError
from conversion_retrieval.training.gpu_nodes import check_gpu_type, gpu_node_selector

GKE_LABEL = "cloud.google.com/gke-accelerator"
POOL = {"conversion-retrieval/pool": "gpu"}


@pytest.mark.parametrize(
    ("gpu_type", "label", "expected"),
    [
        ("", GKE_LABEL, {}),
        ("nvidia-l4", GKE_LABEL, {GKE_LABEL: "nvidia-l4"}),
        ("NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.product", {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}),
    ],
)
def test_the_type_is_added_to_the_pools_labels(gpu_type, label, expected):
    selector = gpu_node_selector(gpu_type, type_label=label, pool=POOL)
    assert selector == POOL | expected
    spec = {"nodeSelector": selector, "containers": [{"name": "main", "image": "x"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "train"}, "spec": spec}
    kubernetes_validate.validate(pod, "1.32", strict=True)


@pytest.mark.parametrize("gpu_type", ["nvidia l4", "-l4", "l4-", "x" * 64, "a/b", '{"a": "b"}', "l4\n"])
def test_a_type_that_no_label_can_have_is_refused(gpu_type):
    with pytest.raises(UserError, match="expected the type of GPU as its node label has it"):
        check_gpu_type(gpu_type)


@pytest.mark.parametrize("gpu_type", ["", "l4", "x" * 63, "Tesla_T4", "nvidia-h100-80gb"])
def test_a_label_value_passes(gpu_type):
    check_gpu_type(gpu_type)
