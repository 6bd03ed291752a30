"""A memory of what the user already had: a frozen linear map from histories to items, beside the trained vectors.

A trained vector of a few dozen numbers cannot hold which of many thousand items a user bought again and again, yet for
everyday purchases that is the strongest signal of all. A linear map of low rank, fitted to all of the data at once
before training and anew after it (``training.factors``), holds much of it; appended to both towers it leaves training
untouched and is one more part of the same score.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from conversion_retrieval.lookup import look_up, look_up_sums
from conversion_retrieval.model.config import ModelConfig
from conversion_retrieval.model.inputs import QueryInputs


class Memory(nn.Module):
    """Item side: the item's factors. Query side: the factors of the history, weighted by decayed log counts.

    Both sides have the same factors where they are those of histories alone (``memory_fit: svd``). ``scale`` is what
    the loss divides scores by, so that ``ModelConfig.memory_weight`` is in logits.
    """

    factors: Tensor
    history_factors: Tensor

    def __init__(self, num_ids: int, config: ModelConfig, *, scale: float = 1.0) -> None:
        super().__init__()
        self.weight, self.half_life_days = scale * config.memory_weight, config.memory_half_life_days
        self.shared = config.memory_fit == "svd"
        self.register_buffer("factors", torch.zeros(num_ids, config.memory_dim))
        if not self.shared:
            self.register_buffer("history_factors", torch.zeros(num_ids, config.memory_dim))

    def items(self, id_code: Tensor) -> Tensor:
        """[M] id codes -> [M, memory_dim]; zero for an id unseen in training."""
        return look_up(self.factors, id_code)

    def queries(self, queries: QueryInputs, id_code: Tensor) -> Tensor:
        """[B] queries -> [B, memory_dim]; ``id_code`` [I + 1] of the items that histories refer to.

        The history as a vector x over items, ``x_i = log(1 + sum of 2^(-age / half-life) over events on i)``, scaled
        to length one, times the history factors.
        """
        if not queries.history_item.shape[1]:
            return self.factors.new_zeros(len(queries), self.factors.shape[1])
        codes, order = id_code[queries.history_item].sort(dim=1)
        decayed = torch.exp2(-queries.history_age_days.clamp(min=0) / self.half_life_days)
        decayed = (decayed * (queries.history_action > 0)).gather(1, order)
        # Events on one item stand side by side now; each run of them becomes one entry.
        starts = functional.pad(codes[:, 1:] != codes[:, :-1], (1, 0), value=True)
        run = starts.long().cumsum(1) - 1
        counts = torch.zeros_like(decayed).scatter_add(1, run, decayed)
        items = torch.zeros_like(codes).scatter(1, run, codes)
        shares = unit_rows(counts.log1p() * (items > 0))
        factors = self.factors if self.shared else self.history_factors
        return self.weight * look_up_sums(factors, items, shares)


def unit_rows(values: Tensor) -> Tensor:
    """Rows scaled to length one; rows of zeros stay."""
    scaled: Tensor = values / values.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return scaled
