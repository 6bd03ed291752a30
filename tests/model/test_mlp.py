"""Torch's own Sequential of the same layers is the oracle."""

import pytest
import torch
from torch import nn

from conversion_retrieval.model.mlp import Mlp


def gradients(mlp: Mlp, layers: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output and the gradients of ``x`` and all weights, of a loss that uses the output twice."""
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    output = layers(x)
    return output, list(torch.autograd.grad((output * output.cos()).sum(), [x, *mlp.parameters()]))


@pytest.mark.parametrize(("hidden_sizes", "dropout"), [([5], 0.0), ([9, 7, 5], 0.0), ([9, 7, 5], 0.4)])
def test_gradients_are_those_of_the_plain_layers(hidden_sizes, dropout):
    mlp = Mlp(6, hidden_sizes, dropout).double()
    x = torch.randn(11, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    output, found = gradients(mlp, mlp, x)
    expected_output, expected = gradients(mlp, nn.Sequential(*mlp), x)
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(found, expected)
    assert min(gradient.abs().max() for gradient in found) > 0


def test_the_gradient_that_comes_in_is_left_as_it_was():
    mlp = Mlp(4, [8, 3], 0.0)
    gradient = torch.randn(5, 3)
    before = gradient.clone()
    mlp(torch.randn(5, 4)).backward(gradient)
    assert torch.equal(gradient, before)


def test_without_layers_nothing_changes():
    x = torch.randn(5, 4)
    assert torch.equal(Mlp(4, [], 0.5)(x), x)


def test_nothing_is_dropped_outside_training():
    mlp = Mlp(4, [16, 8], 0.5).eval()
    x = torch.randn(5, 4)
    torch.testing.assert_close(mlp(x), nn.Sequential(*mlp)(x))


def test_autocast_multiplies_in_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        assert Mlp(4, [8, 3], 0.0)(torch.randn(5, 4)).dtype == torch.bfloat16
