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


def test_gradients_equal_autograds_without_visible_positions_too():
    queries, context, visible = inputs(2)
    visible[1] = False
    normed = functional.layer_norm(context, (DIM,))
    scores = (queries @ normed.transpose(1, 2)).masked_fill(~visible.unsqueeze(1), torch.finfo(torch.float32).min)
    expected = scores.softmax(-1) @ normed
    weights = torch.linspace(-1, 2, expected.numel()).view_as(expected)
    found = attend_fixed(queries, context, visible)
    gradients = [torch.autograd.grad((value * weights).sum(), (queries, context)) for value in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_positions_ten_deviations_from_zero_are_normed_to_a_thousandth():
    queries, context, visible = inputs(2)
    visible[:, 0] = True
    far = attend_fixed(queries, context.detach() + 10, visible)
    torch.testing.assert_close(far, attend_fixed(queries, context, visible), rtol=0, atol=1e-3)


def test_positions_that_say_nothing_stay_finite():
    queries, _, visible = inputs(2)
    same = torch.full((ROWS, POSITIONS, DIM), 0.1).requires_grad_()  # the squares' mean is below the mean's square
    found = attend_fixed(queries, same, visible)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(same.grad).all()


def test_bfloat16_positions_are_attended_to_in_float32():
    queries, context, visible = inputs(2)
    rounded = context.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = attend_fixed(queries, rounded, visible)
    torch.testing.assert_close(found, attend_fixed(queries, rounded.float(), visible))
