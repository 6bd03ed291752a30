"""Stage ``select_gpu_nodes``: the type of GPU that a person chose, as the node selector of the training pods."""

from typing import Dict  # noqa: UP035 - kfp reads this spelling only

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def select_gpu_nodes(
    gpu_type: str,
    gpu_count: str,
    type_label: str,
    pool: Dict[str, str],  # noqa: UP006
) -> Dict[str, str]:  # noqa: UP006
    """Labels of the nodes to train on: the backend takes a node selector whole, and only from a parameter.

    A number of GPUs that is none ends the run here, before anything is read.
    """
    from conversion_retrieval.training.gpu_nodes import check_gpu_count
    from conversion_retrieval.training.gpu_nodes import gpu_node_selector as stage

    check_gpu_count(gpu_count)
    return stage(gpu_type, type_label=type_label, pool=pool)
