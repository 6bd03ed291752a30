"""A tower's MLP, whose backward pass on a CPU needs no second gradient of a hidden layer's size.

Over a whole catalogue such a gradient is tens of megabytes: the step's memory peak, and time to map its pages.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Mlp(nn.Sequential):
    """Linear, ReLU and dropout a layer: [M, input_dim] -> [M, the last hidden size]."""

    def __init__(self, input_dim: int, hidden_sizes: Sequence[int], dropout: float) -> None:
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise((input_dim, *hidden_sizes)):
            layers += [nn.Linear(size_in, size_out), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        super().__init__(*layers)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x`` [M, input_dim]."""
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            encoded: Tensor = super().forward(x)  # type: ignore[no-untyped-call]  # torch declares it so
            return encoded
        linear = [layer for layer in self if isinstance(layer, nn.Linear)]
        for number, layer in enumerate(linear, start=1):
            # Between two layers the gradient is a fresh product that nobody else reads.
            inner = number < len(linear)
            x = _LinearReLU.apply(x, layer.weight, layer.bias, inner)  # type: ignore[no-untyped-call]  # torch declares it so
            x = functional.dropout(x, self.dropout, self.training)
        return x


class _LinearReLU(torch.autograd.Function):
    """``relu(x W^T + b)``; the backward pass of an ``inner`` layer writes into the gradient that it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, inner: bool) -> Tensor:
        result = functional.linear(x, weight, bias).relu_()
        ctx.save_for_backward(x, weight, result)
        ctx.inner = inner
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight, result = ctx.saved_tensors
        if ctx.inner:
            torch.ops.aten.threshold_backward.grad_input(gradient, result, 0, grad_input=gradient)
        else:
            gradient = torch.ops.aten.threshold_backward(gradient, result, 0)
        of_x = gradient @ weight if ctx.needs_input_grad[0] else None
        return of_x, gradient.t() @ x, gradient.sum(0), None
