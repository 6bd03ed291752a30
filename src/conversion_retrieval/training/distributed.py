"""Data parallel training under ``torchrun``: one process a device, negatives shared by all, gradients included.

Every process derives the same global batch from the seed, encodes its share of the items and its share of the queries,
and gathers the item vectors. The gather's backward pass sums what all processes want from a vector, so that summed
parameter gradients equal those of one process with the whole batch.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from conversion_retrieval.training.shard import Shard

# Popularity and memory are fitted by the first process, under torchrun on one thread, while the others wait for what it
# found: with a large catalogue and a memory of hundreds of dimensions that may be longer than NCCL's ten minutes.
TIMEOUT: Final = timedelta(hours=1)


@contextmanager
def process_group(device_type: str) -> Iterator[Shard]:
    """Join the processes that ``torchrun`` started, if it did; yields this one's shard."""
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield current_shard()
        return
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield current_shard()
    finally:
        dist.destroy_process_group()


def current_shard() -> Shard:
    """Rank and world size, or the only process."""
    return Shard(rank=dist.get_rank(), world_size=dist.get_world_size()) if dist.is_initialized() else Shard()


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor], shard: Shard) -> None:
    """Give every process the first one's values: what is computed twice need not come out alike to the last bit."""
    if shard.world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def gather_rows(part: Tensor, shard: Shard, total: int) -> Tensor:
    """All processes' parts, in order: [total, D]; gradients flow back to the process that made a row."""
    if shard.world_size == 1:
        return part
    gathered: Tensor = _Gather.apply(part, shard, total)  # type: ignore[no-untyped-call]  # torch declares it so
    return gathered


class _Gather(torch.autograd.Function):
    """Parts differ in length by at most one row, so they are padded to the longest."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, shard: Shard, total: int) -> Tensor:
        ctx.shard, ctx.total = shard, total
        lengths = [_length(Shard(rank=r, world_size=shard.world_size), total) for r in range(shard.world_size)]
        padded = part.new_zeros(max(lengths), part.shape[1])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([rows[:length] for rows, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.shard.slice(ctx.total)], None, None


def _length(shard: Shard, total: int) -> int:
    own = shard.slice(total)
    return int(own.stop - own.start)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up the gradients of all processes; a parameter that a process's part did not touch counts as zero."""
    if not dist.is_initialized():
        return
    touched = list(parameters)
    dense = [_dense_gradient(parameter) for parameter in touched]
    flat = torch.cat([gradient.flatten() for gradient in dense])
    dist.all_reduce(flat)
    for parameter, summed in zip(touched, torch.split(flat, [g.numel() for g in dense]), strict=True):
        gradient = summed.view_as(parameter)
        sparse = parameter.grad is not None and parameter.grad.is_sparse
        parameter.grad = gradient.to_sparse(1) if sparse else gradient


def _dense_gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad


def sum_numbers(values: list[float], device: torch.device) -> list[float]:
    """Sums over all processes of a few numbers."""
    if not dist.is_initialized():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def of_the_first(value: float, shard: Shard, device: torch.device) -> float:
    """The first process's value."""
    return sum_numbers([0.0 if shard.rank else value], device)[0]


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether any process says so: all must stop at the same step."""
    return sum_numbers([float(flag)], device)[0] > 0


def wait_for_all() -> None:
    """Return when every process got here."""
    if dist.is_initialized():
        dist.barrier()
