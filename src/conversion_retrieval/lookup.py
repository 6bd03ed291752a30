"""Rows of a table by index, and weighted sums of them, with fast backward passes on a CPU.

The backward pass of torch's embedding adds up one row at a time: for the 50,000 events of a batch's histories that
takes longer than all matrix products of a training step. What is used instead adds up many rows at once.
"""

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]``: rows of ``table`` [N, D] at ``index`` of any shape -> [..., D]."""
    if table.device.type != "cpu":
        return functional.embedding(index, table)
    # The gradient of ``index_select`` is ``index_add``, which spreads the table's rows over all cores; with
    # 32-bit indices it would take several times as long.
    rows = table.index_select(0, index.reshape(-1))
    # No view where none is needed: callers add in place, which torch differentiates for a view by copying all of it.
    return rows if index.dim() == 1 else rows.view(*index.shape, table.shape[1])


def look_up_sums(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """``sum_l weights[b, l] * table[index[b, l]]``: [N, D], [B, L] and [B, L] -> [B, D], never holding [B, L, D]."""
    if not index.shape[1]:
        return table.new_zeros(len(index), table.shape[1])
    if table.device.type != "cpu" or table.dtype != torch.float32:
        summed: Tensor = functional.embedding_bag(index, table, per_sample_weights=weights.to(table.dtype), mode="sum")
        return summed
    with torch.autocast("cpu", enabled=False):
        found: Tensor = _LookUpSums.apply(table, index, weights.float())  # type: ignore[no-untyped-call]  # torch declares it so
    return found


class _LookUpSums(torch.autograd.Function):
    """The gradient of ``weights[b, l]`` is ``gradient[b] . table[index[b, l]]``; that of the table a scatter."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(table, index, weights)
        return functional.embedding_bag(index, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, index, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_table = _scatter(gradient, index, weights, len(table)) if ctx.needs_input_grad[0] else None
        of_weights = _products(gradient, table, index) if ctx.needs_input_grad[2] else None
        return of_table, None, of_weights


def _scatter(values: Tensor, index: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    """``weights[b, l] * values[b]`` added up at row ``index[b, l]``: [B, D] -> [num_rows, D]."""
    bounds = np.arange(0, index.numel() + 1, index.shape[1])
    entries = (weights.detach().reshape(-1).numpy(), index.reshape(-1).numpy(), bounds)
    matrix = csr_matrix(entries, shape=(len(index), num_rows))
    return torch.from_numpy(matrix.T @ values.numpy())


def _products(values: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """``values[b] . table[index[b, l]]``, [B, L]: torch's own, which holds no [B, L, D] either."""
    with torch.enable_grad():
        weights = values.new_ones(index.shape).requires_grad_()
        summed = functional.embedding_bag(index, table.detach(), per_sample_weights=weights, mode="sum")
    (products,) = torch.autograd.grad(summed, weights, values)
    return products
