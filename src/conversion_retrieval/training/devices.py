"""Which device and which precision a run uses."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from conversion_retrieval.errors import UserError
from conversion_retrieval.training.config import TrainingConfig


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` names; ``UserError`` for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("expected a GPU for training.device=cuda, found none: use auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def uses_bf16(config: TrainingConfig, device: torch.device) -> bool:
    """Whether towers compute in bfloat16: with ``auto`` on GPUs that have it in hardware; older ones only emulate it.

    On CPUs ``auto`` stays in float32: even with AMX the conversions cost more than the products gain, unless batches
    encode tens of thousands of items (``benchmarks/training_throughput.py --precision bf16``).
    """
    if config.precision != "auto":
        return config.precision == "bf16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device, *, bf16: bool) -> AbstractContextManager[Any]:
    """The towers' arithmetic; scores and losses stay in float32 outside of it."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def prepare_backend(device: torch.device, *, bf16: bool) -> None:
    """On a GPU let float32 products (the scores) use TensorFloat-32 where bfloat16 was allowed for the rest."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = bf16


def compile_towers(config: TrainingConfig, device: torch.device, *towers: nn.Module) -> None:
    """``torch.compile`` them where that is asked for: with ``auto`` on GPUs only, where it pays for its minutes.

    What ``auto`` cannot compile (for want of a C compiler, on a GPU that Triton does not know) runs as it is written,
    with torch's warning; ``on`` ends the run.
    """
    if config.compile == "off" or (config.compile == "auto" and device.type != "cuda"):
        return
    from torch._dynamo import config as dynamo  # a second that no other start should take

    dynamo.suppress_errors = config.compile == "auto"
    for tower in towers:
        tower.compile()
