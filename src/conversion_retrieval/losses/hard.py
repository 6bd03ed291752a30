"""Hard negatives: items that were served to the query and not wanted. They belong to their own query alone."""

import math

import torch
from torch import Tensor

from conversion_retrieval.lookup import look_up
from conversion_retrieval.losses.partition import Pairs


def add_hard_negatives(log_z: Tensor, rows: Tensor, items: Tensor, hard: Pairs, weight: float) -> Tensor:
    """``log(exp(log_z) + weight * sum_h exp(s_h))`` over each row's hard negatives, [R].

    A row always sees all of its hard negatives, so their Q is 1 and needs no correction. ``log_z`` keeps their
    ordinary share (in the full softmax they are items as all others), ``weight`` says how many times that they count
    on top: 0 is the same as having none.
    """
    if weight == 0 or len(hard.row) == 0:
        return log_z
    chosen = look_up(items, hard.candidate)
    scores = (look_up(rows, hard.row) * chosen).sum(-1) + math.log(weight)
    highest = log_z.detach().scatter_reduce(0, hard.row, scores.detach(), "amax")
    highest = highest.clamp(min=torch.finfo(torch.float32).min)
    total = (log_z - highest).exp().index_add(0, hard.row, (scores - highest[hard.row]).exp())
    # A row without any negative stays at (about) minus infinity instead of giving 0 * inf in its gradient.
    return highest + total.clamp(min=torch.finfo(torch.float32).tiny).log()
