"""Advertisers as the mean of their items: an advertiser's conversions help where an item's are too few."""

from collections.abc import Callable

import torch
from torch import Tensor

Renormalize = Callable[[Tensor], Tensor]
"""Brings means of item vectors [A, D] back to the scale of item vectors (``TwoTower.renormalize``)."""


def advertiser_means(items: Tensor, group: Tensor) -> Tensor:
    """Mean vector of each advertiser's items, [A, D]; ``group`` [C] is each item's advertiser, numbered 0..A.

    The mean is of the served item vectors, so the gradient of the advertiser-level loss reaches the item tower.
    """
    num_groups = int(group.max()) + 1 if len(group) else 0
    sums = items.new_zeros(num_groups, items.shape[1]).index_add(0, group, items)
    counts = torch.bincount(group, minlength=num_groups).clamp(min=1)
    return sums / counts.unsqueeze(1)
