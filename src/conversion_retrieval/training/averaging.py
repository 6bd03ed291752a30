"""The moving average of the weights over the last steps, which is what is validated and kept.

Steps on few and noisy conversions scatter the weights around what they have in common, and their average generalises
better than most of them (Polyak and Juditsky, 1992; Izmailov et al., 2018).
"""

import copy
from typing import Final

import torch
from torch import Tensor, nn

from conversion_retrieval.model.two_tower import TwoTower

# The decay after step t is at most (1 + t) / (10 + t), so that a short run's average forgets its random start.
_RAMP: Final = 10


class WeightAverage:
    """``average = d average + (1 - d) weights`` after each step, with decay d.

    ``model`` is a second model that holds the average. It shares with the first what is not averaged: buffers, which
    are not trained, and sparse tables, of which a step touches only a few rows. With decay 0 both are the same. Frozen
    parameters are averaged to what they are.
    """

    def __init__(self, model: TwoTower, decay: float) -> None:
        self.decay = decay
        shared = {id(tensor): tensor for tensor in (*model.buffers(), *_sparse_tables(model))}
        averaged = {name: p for name, p in model.named_parameters() if decay and id(p) not in shared}
        self.model = copy.deepcopy(model, shared) if decay else model
        self._weights: list[Tensor] = list(averaged.values())
        self._averages: dict[str, Tensor] = {name: self.model.get_parameter(name) for name in averaged}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number ``step``, counted from 1."""
        if self._weights:
            decay = min(self.decay, (1 + step) / (_RAMP + step))
            torch._foreach_lerp_(list(self._averages.values()), self._weights, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return {name: parameter.detach() for name, parameter in self._averages.items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``; raises ``KeyError`` for a missing name."""
        for name, parameter in self._averages.items():
            parameter.copy_(state[name])


def _sparse_tables(model: TwoTower) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse]
