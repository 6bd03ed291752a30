"""Which nodes may train, as a Kubernetes node selector: the pool's labels and, where asked for, the type of GPU."""

import re
from collections.abc import Mapping
from typing import Final

from conversion_retrieval.errors import UserError

# The syntax of a label's value: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/
LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
GPU_COUNT: Final = re.compile("[1-9][0-9]{0,2}")
LABEL_KEY: Final = re.compile(rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{LABEL_VALUE.pattern}")


def gpu_node_selector(gpu_type: str, *, type_label: str, pool: Mapping[str, str]) -> dict[str, str]:
    """The labels that a node must have; an empty ``gpu_type`` is any GPU of the pool.

    ``type_label`` is the label by which the cluster tells types of GPU apart. Raises ``UserError`` for a type that no
    label can have.
    """
    if gpu_type:
        check_gpu_type(gpu_type)
        return {**pool, type_label: gpu_type}
    return dict(pool)


def check_gpu_count(gpu_count: str) -> None:
    """``UserError`` unless ``gpu_count`` is a whole number from 1."""
    if not GPU_COUNT.fullmatch(gpu_count):
        raise UserError(f"expected a whole number from 1 for parameter gpu_count, found {gpu_count!r}")


def check_gpu_type(gpu_type: str) -> None:
    """``UserError`` unless ``gpu_type`` is empty or can be a node label's value."""
    if gpu_type and not LABEL_VALUE.fullmatch(gpu_type):
        raise UserError(
            f"expected the type of GPU as its node label has it, such as nvidia-l4 or nvidia-h100-80gb, found "
            f"{gpu_type!r}: see `kubectl get nodes --show-labels`"
        )
