"""Look-ups and their gradients against plain indexing, differentiated by torch."""

import pytest
import torch

from conversion_retrieval.lookup import look_up, look_up_sums

NUM_ROWS, DIM = 6, 3


def table(dtype=torch.float32):
    values = torch.randn(NUM_ROWS, DIM, generator=torch.Generator().manual_seed(0))
    return values.to(dtype).requires_grad_()


def index(*shape):
    return torch.randint(0, NUM_ROWS, shape, generator=torch.Generator().manual_seed(1))


def gradients(output, *inputs):
    """Of a sum with different factors everywhere."""
    factors = torch.arange(output.numel(), dtype=output.dtype).reshape(output.shape) + 1
    return torch.autograd.grad((output * factors).sum(), inputs)


@pytest.mark.parametrize("shape", [(), (1,), (9,), (4, 5), (0,), (3, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_and_their_gradient_equal_indexing(shape, dtype):
    values, places = table(dtype), index(*shape)
    expected, found = values[places], look_up(values, places)
    assert torch.equal(found, expected)
    torch.testing.assert_close(gradients(found, values), gradients(expected, values), rtol=0.02, atol=1e-6)


def test_a_list_of_rows_can_be_added_to_in_place():
    """As a view it could be as well, but its gradient would be copied whole."""
    assert not look_up(table(), index(9))._is_view()


@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (2, 30), (4, 0), (0, 5)])
def test_weighted_sums_and_both_gradients_equal_the_sum_of_products(shape):
    values, places = table(), index(*shape)
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(2)).requires_grad_()
    expected = (values[places] * weights.unsqueeze(-1)).sum(1)
    found = look_up_sums(values, places, weights)
    torch.testing.assert_close(found, expected)
    if found.requires_grad:
        torch.testing.assert_close(gradients(found, values, weights), gradients(expected, values, weights))


def test_a_table_that_is_not_trained_gets_no_gradient():
    weights = torch.ones(2, 4, requires_grad=True)
    look_up_sums(table().detach(), index(2, 4), weights).sum().backward()
    assert weights.grad is not None


def test_no_gradient_is_made_without_need():
    with torch.no_grad():
        assert not look_up_sums(table(), index(2, 4), torch.ones(2, 4)).requires_grad


def test_a_second_derivative_is_refused_rather_than_wrong():
    """Numpy computes the first, so torch could not see how it depends on anything."""
    values, weights = table(), torch.ones(2, 4)
    summed = look_up_sums(values, index(2, 4), weights).pow(2).sum()
    (first,) = torch.autograd.grad(summed, values, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
