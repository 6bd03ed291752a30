import pytest
import torch
from torch.nn import functional

from conversion_retrieval.model.attention import attend_fixed

ROWS, POSITIONS, DIM = 5, 7, 6


def inputs(heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(heads)
    queries = torch.randn(heads, DIM, generator=generator, requires_grad=True)
    context = torch.randn(ROWS, POSITIONS, DIM, generator=generator, requires_grad=True)
    visible = torch.rand(ROWS, POSITIONS, generator=generator) < 0.6
    visible[0] = True
    return queries, context, visible


@pytest.mark.parametrize("heads", [1, 3])
def test_value_and_gradients_equal_torchs_own_norm_and_attention(heads):
    queries, context, visible = inputs(heads)
    visible[:, 0] = True
    normed = functional.layer_norm(context, (DIM,))
    expected = functional.scaled_dot_product_attention(
        queries.expand(ROWS, -1, -1), normed, normed, attn_mask=visible.unsqueeze(1), scale=1.0
    )
    weights = torch.linspace(-1, 2, ROWS * heads * DIM).view(ROWS, heads, DIM)
    found = attend_fixed(queries, context, visible)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((value * weights).sum(), (queries, context)) for value in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_row_without_visible_positions_is_the_mean_of_all_and_stays_finite():
    queries, context, visible = inputs(2)
    visible[1] = False
    found = attend_fixed(queries, context, visible)
    normed = functional.layer_norm(context[1], (DIM,))
    torch.testing.assert_close(found[1], normed.mean(0).expand(2, -1))
    found.sum().backward()
    assert torch.isfinite(context.grad).all()
