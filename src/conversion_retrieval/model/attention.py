"""Attention of a few fixed queries over every row's normed positions, with a backward pass that makes one large tensor.

In training on histories nothing else is as large as the context: a layer norm of its own would make three more of its
size, and autograd another three, one a use and their sum.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def attend_fixed(queries: Tensor, context: Tensor, visible: Tensor, eps: float = 1e-5) -> Tensor:
    """``softmax(queries @ n.T) @ n`` a row, with ``n`` the layer norm of ``context``, in float32: [B, H, D].

    ``queries`` [H, D] are the same for all rows, ``context`` [B, L, D]; only positions with ``visible`` [B, L] count,
    and all of them where none does. The norm has no weight and no bias: a weight belongs into the queries and the
    result, and a bias moves every score of a row by the same and the result by itself. As ``x - mean(x)`` is never
    made, digits are lost where the mean of a position is many times its deviation.
    """
    with torch.autocast(context.device.type, enabled=False):
        attended: Tensor = _AttendFixed.apply(queries.float(), context.float(), visible, eps)  # type: ignore[no-untyped-call]  # torch declares it so
    return attended


class _AttendFixed(torch.autograd.Function):
    """Never makes ``n = r (x - m)``: for any centred vector v, ``v n = r (v x)``, so queries are centred instead."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, context: Tensor, visible: Tensor, eps: float) -> Tensor:
        mean = context.mean(-1).unsqueeze(1)  # m, [B, 1, L]
        # Not ``torch.var_mean``, which takes fifty times as long on a CPU.
        squares = torch.linalg.vector_norm(context, dim=-1).square().unsqueeze(1) / context.shape[-1]
        inverse = torch.rsqrt((squares - mean.square()).clamp(min=0) + eps)  # r, [B, 1, L]
        scores = (context @ _centred(queries).T).transpose(1, 2) * inverse
        shares = scores.masked_fill(~visible.unsqueeze(1), torch.finfo(scores.dtype).min).softmax(-1)
        ctx.save_for_backward(queries, context, visible, mean, inverse, scores, shares)
        return _pooled(shares * inverse, context, mean)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        queries, context, visible, mean, inverse, scores, shares = ctx.saved_tensors
        gradient, queries = _centred(gradient), _centred(queries)
        of_shares = gradient @ context.transpose(1, 2) * inverse
        of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True)) * visible.unsqueeze(1)
        of_queries = _pooled(of_scores * inverse, context, mean).sum(0)
        # The gradient of n is g = shares' gradient + of_scores' queries; that of x is r (g - mean(g) - n mean(g n)).
        along = (shares * of_shares + of_scores * scores).sum(1, keepdim=True) / context.shape[-1] * inverse.square()
        # All that is [L, H] @ [H, D] as one product.
        factors = torch.cat([shares * inverse, of_scores * inverse, along * mean], 1).transpose(1, 2)
        vectors = torch.cat([gradient, queries.expand_as(gradient), torch.ones_like(gradient[:, :1])], 1)
        of_context = (factors @ vectors).addcmul_(context, along.transpose(1, 2), value=-1)
        return of_queries, of_context, None, None


def _centred(vectors: Tensor) -> Tensor:
    return vectors - vectors.mean(-1, keepdim=True)


def _pooled(weights: Tensor, context: Tensor, mean: Tensor) -> Tensor:
    """``weights @ (context - mean)``: [B, H, L] and [B, L, D] -> [B, H, D]."""
    return weights @ context - (weights * mean).sum(-1, keepdim=True)
