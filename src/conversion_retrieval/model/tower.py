"""One tower's body: explicit crosses and an MLP on the same input, side by side or one after the other."""

import torch
from torch import Tensor, nn

from conversion_retrieval.model.config import TowerConfig
from conversion_retrieval.model.cross import CrossNetwork
from conversion_retrieval.model.mlp import Mlp


class Tower(nn.Module):
    """[M, input_dim] -> [M, ``output_dim``].

    ``parallel``: cross network and MLP read the same input and are concatenated, so neither loses what the other
    made of it. ``sequential``: the MLP reads the cross network's output.
    """

    def __init__(self, input_dim: int, config: TowerConfig) -> None:
        super().__init__()
        self.parallel = config.layout == "parallel"
        self.cross = CrossNetwork(input_dim, config.cross_layers, config.cross_rank)
        self.mlp = Mlp(input_dim, config.hidden_sizes, config.dropout)
        hidden = config.hidden_sizes[-1] if config.hidden_sizes else input_dim
        self.output_dim = input_dim + hidden if self.parallel else hidden

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x`` [M, input_dim]."""
        crossed = self.cross(x)
        encoded: Tensor = torch.cat([crossed, self.mlp(x)], dim=-1) if self.parallel else self.mlp(crossed)
        return encoded
