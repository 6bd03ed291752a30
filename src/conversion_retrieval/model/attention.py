"""Attention of a few fixed queries over every row's positions, with a backward pass that makes one large tensor.

Autograd would make three of the context's size (one a use, and their sum); in training on histories nothing else is
as large.
"""

from typing import Any

import torch
from torch import Tensor


def attend_fixed(queries: Tensor, context: Tensor, visible: Tensor) -> Tensor:
    """``softmax(queries @ context.T) @ context`` a row, in float32: [B, H, D].

    ``queries`` [H, D] are the same for all rows, ``context`` [B, L, D]; only positions with ``visible`` [B, L] count,
    and all of them where none does.
    """
    with torch.autocast(context.device.type, enabled=False):
        attended: Tensor = _AttendFixed.apply(queries.float(), context.float(), visible)  # type: ignore[no-untyped-call]  # torch declares it so
    return attended


class _AttendFixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        scores = (context @ queries.T).transpose(1, 2)
        shares = scores.masked_fill(~visible.unsqueeze(1), torch.finfo(scores.dtype).min).softmax(-1)
        ctx.save_for_backward(queries, context, shares)
        return shares @ context

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        queries, context, shares = ctx.saved_tensors
        of_shares = gradient @ context.transpose(1, 2)
        of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True))
        of_queries = of_scores.transpose(0, 1).flatten(1) @ context.flatten(0, 1)
        # shares' g + scores' q, both [L, H] @ [H, D], as one product of twice the inner length.
        factors = torch.cat([shares, of_scores], 1).transpose(1, 2)
        of_context = factors @ torch.cat([gradient, queries.expand_as(gradient)], 1)
        return of_queries, of_context, None
