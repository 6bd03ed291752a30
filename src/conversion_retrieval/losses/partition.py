"""The log of a softmax's denominator over many candidates, without ever holding the scores of all of them.

Scores are recomputed in the backward pass, block by block, so memory is one block whatever the catalogue's size
(the idea of Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867, applied to the candidates' axis). Where all
candidates fit into one block, it is kept instead.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

# One block of scores: about the size of a core's cache on a CPU, large enough to fill a GPU.
BLOCK_BYTES: Final = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """(row, candidate) pairs, both [E] int64, sorted by candidate."""

    row: Tensor
    candidate: Tensor

    @classmethod
    def sorted(cls, row: Tensor, candidate: Tensor) -> "Pairs":
        """Pairs in the order that ``log_partition`` wants."""
        order = torch.argsort(candidate)
        return cls(row=row[order], candidate=candidate[order])


def log_partition(
    rows: Tensor, candidates: Tensor, *, excluded: Pairs | None = None, offsets: Tensor | None = None, block: int = 0
) -> Tensor:
    """``logsumexp_c(rows @ candidates.T + offsets)`` over the candidates that a row does not exclude: [R].

    ``rows`` [R, D] and ``candidates`` [C, D] get gradients, ``offsets`` [C] do not. ``block`` is the number of
    candidates scored at once, 0 chooses. A row that excludes every candidate gives -inf and no gradient.
    """
    if excluded is None:
        none = torch.empty(0, dtype=torch.int64, device=rows.device)
        excluded = Pairs(row=none, candidate=none)
    block = block or max(256, BLOCK_BYTES[rows.device.type] // (4 * max(len(rows), 1)))
    function = _LogPartitionOfOneBlock if 0 < len(candidates) <= block else _LogPartition
    result: Tensor = function.apply(  # type: ignore[no-untyped-call]  # torch declares it so
        rows.float(), candidates.float(), offsets, excluded, block
    )
    return result


class _LogPartitionOfOneBlock(torch.autograd.Function):
    """Keeps ``e = exp(scores - highest)``, of which the softmax is a row's share: no second pass over the scores."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, candidates: Tensor, offsets: Tensor | None, excluded: Pairs, block: int
    ) -> Tensor:
        ((_, scores),) = _blocks(rows, candidates, offsets, excluded, block)
        highest = scores.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
        total = scores.sub_(highest).exp_().sum(1, keepdim=True)
        ctx.save_for_backward(rows, candidates, scores, total)
        log_total: Tensor = (total.log() + highest).squeeze(1)
        return log_total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        rows, candidates, scores, total = ctx.saved_tensors
        # Scaling the narrow matrices by a row's gradient and total is cheaper than scaling every score.
        scale = torch.where(total > 0, gradient.unsqueeze(1) / total, 0.0)
        return (scores @ candidates) * scale, scores.T @ (rows * scale), None, None, None


class _LogPartition(torch.autograd.Function):
    """Running maximum and sum over blocks; the gradient is the softmax, recomputed a block at a time."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, candidates: Tensor, offsets: Tensor | None, excluded: Pairs, block: int
    ) -> Tensor:
        highest = rows.new_full((len(rows), 1), -torch.inf)
        total = rows.new_zeros(len(rows), 1)
        for _, scores in _blocks(rows, candidates, offsets, excluded, block):
            new_highest = torch.maximum(highest, scores.amax(1, keepdim=True))
            finite = new_highest.clamp(min=torch.finfo(torch.float32).min)
            total = total * (highest - finite).exp_() + scores.sub_(finite).exp_().sum(1, keepdim=True)
            highest = new_highest
        log_total = (total.log() + highest).squeeze(1)
        log_total = torch.where(total.squeeze(1) > 0, log_total, -torch.inf)
        ctx.save_for_backward(rows, candidates, log_total, excluded.row, excluded.candidate)
        ctx.offsets, ctx.block = offsets, block
        return log_total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        rows, candidates, log_total, excluded_row, excluded_candidate = ctx.saved_tensors
        reached = log_total > -torch.inf
        log_total = torch.where(reached, log_total, 0.0).unsqueeze(1)
        gradient = torch.where(reached, gradient, 0.0)
        # (P * g)ᵀ rows = Pᵀ (g * rows): scaling the narrow matrix is cheaper than scaling every score.
        scaled = rows * gradient.unsqueeze(1)
        row_gradient, candidate_gradient = torch.zeros_like(rows), torch.empty_like(candidates)
        excluded = Pairs(row=excluded_row, candidate=excluded_candidate)
        for start, scores in _blocks(rows, candidates, ctx.offsets, excluded, ctx.block):
            shares = scores.sub_(log_total).exp_()
            chosen = slice(start, start + shares.shape[1])
            row_gradient.addmm_(shares, candidates[chosen])
            torch.mm(shares.T, scaled, out=candidate_gradient[chosen])
        return row_gradient * gradient.unsqueeze(1), candidate_gradient, None, None, None


def _blocks(
    rows: Tensor, candidates: Tensor, offsets: Tensor | None, excluded: Pairs, block: int
) -> Any:  # an iterator of (start, scores [R, at most block]); the scores share one buffer
    starts = range(0, len(candidates), block)
    bounds = torch.tensor([*starts, len(candidates)], device=rows.device)
    ends = torch.searchsorted(excluded.candidate, bounds).tolist()
    buffer = rows.new_empty(len(rows) * min(block, len(candidates)))
    for number, start in enumerate(starts):
        part = candidates[start : start + block]
        scores = buffer[: len(rows) * len(part)].view(len(rows), len(part))
        torch.mm(rows, part.T, out=scores)
        if offsets is not None:
            scores += offsets[start : start + block]
        pairs = slice(ends[number], ends[number + 1])
        scores[excluded.row[pairs], excluded.candidate[pairs] - start] = -torch.inf
        yield start, scores
