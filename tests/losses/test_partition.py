import pytest
import torch

from conversion_retrieval.losses.partition import Pairs, log_partition

ROWS, CANDIDATES, DIM = 7, 23, 4


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, DIM, generator=generator, requires_grad=True)
    candidates = torch.randn(CANDIDATES, DIM, generator=generator, requires_grad=True)
    offsets = torch.randn(CANDIDATES, generator=generator)
    mask = torch.rand(ROWS, CANDIDATES, generator=generator) < 0.2
    return rows, candidates, offsets, mask


def pairs(mask: torch.Tensor) -> Pairs:
    return Pairs.sorted(*mask.nonzero(as_tuple=True))


def dense(rows: torch.Tensor, candidates: torch.Tensor, offsets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp((rows @ candidates.T + offsets).masked_fill(mask, -torch.inf), dim=1)


@pytest.mark.parametrize("block", [1, 5, 23, 100])
def test_value_and_gradients_equal_the_dense_softmax_whatever_the_block(block):
    rows, candidates, offsets, mask = inputs()
    weights = torch.linspace(-1, 2, ROWS)
    expected = dense(rows, candidates, offsets, mask)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), (rows, candidates))
    found = log_partition(rows, candidates, offsets=offsets, excluded=pairs(mask), block=block)
    torch.testing.assert_close(found, expected)
    found_gradients = torch.autograd.grad((found * weights).sum(), (rows, candidates))
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_exclusions_and_offsets_it_is_the_plain_logsumexp():
    rows, candidates, *_ = inputs()
    torch.testing.assert_close(log_partition(rows, candidates), torch.logsumexp(rows @ candidates.T, dim=1))


def test_a_row_that_sees_nothing_is_minus_infinity_and_gives_no_gradient():
    rows, candidates, offsets, mask = inputs()
    mask[2] = True
    found = log_partition(rows, candidates, offsets=offsets, excluded=pairs(mask), block=5)
    assert found[2] == -torch.inf
    torch.nn.functional.softplus(found).sum().backward()
    assert torch.isfinite(rows.grad).all()
    assert not rows.grad[2].any()


def test_large_scores_do_not_overflow():
    rows = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    candidates = torch.tensor([[1.0], [0.5], [-1.0]])
    found = log_partition(rows, candidates, block=1)
    torch.testing.assert_close(found, torch.tensor([1000.0, 1000.0]))
    found.sum().backward()
    torch.testing.assert_close(rows.grad, torch.tensor([[1.0], [-1.0]]))
