"""The cross network of DCN V2 (Wang et al. 2021, https://arxiv.org/abs/2008.13535)."""

import torch
from torch import Tensor, nn


class CrossLayer(nn.Module):
    """``x0 * (W x + b) + x`` with a full matrix W, or ``W = U V`` of rank ``rank``; [M, dim] -> [M, dim]."""

    def __init__(self, dim: int, rank: int = 0) -> None:
        super().__init__()
        self.weight: nn.Module = nn.Linear(dim, dim)
        if 0 < rank < dim:
            self.weight = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim))

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """``first`` is the network's input x0, ``x`` the layer below's output."""
        return torch.addcmul(x, first, self.weight(x))


class CrossNetwork(nn.Module):
    """Stacked cross layers: feature crosses up to order ``layers + 1``, [M, dim] -> [M, dim]."""

    def __init__(self, dim: int, layers: int, rank: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CrossLayer(dim, rank) for _ in range(layers))

    def forward(self, first: Tensor) -> Tensor:
        """Apply the layers in order."""
        x = first
        for layer in self.layers:
            x = layer(first, x)
        return x
