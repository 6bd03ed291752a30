import torch

from conversion_retrieval.model.cross import CrossLayer, CrossNetwork


def test_cross_layer_follows_the_formula_computed_by_hand():
    layer = CrossLayer(2)
    with torch.no_grad():
        layer.weight.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layer.weight.bias.copy_(torch.tensor([0.5, -0.5]))
    first, x = torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, -1.0]])
    # W x + b = [1 - 2 + 0.5, 3 - 4 - 0.5] = [-0.5, -1.5]; times x0 = [-1, -4.5]; plus x = [0, -5.5]
    assert layer(first, x).tolist() == [[0.0, -5.5]]


def test_low_rank_layer_equals_the_full_layer_with_the_product_of_its_matrices():
    low, full = CrossLayer(5, rank=2), CrossLayer(5)
    down, up = low.weight
    with torch.no_grad():
        full.weight.weight.copy_(up.weight @ down.weight)
        full.weight.bias.copy_(up.bias)
    first, x = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(low(first, x), full(first, x))


def test_two_layers_make_crosses_of_third_order():
    network = CrossNetwork(1, layers=2)
    for layer in network.layers:
        torch.nn.init.ones_(layer.weight.weight)
        torch.nn.init.zeros_(layer.weight.bias)
    # x1 = x² + x, x2 = x (x² + x) + x² + x = x³ + 2x² + x
    assert network(torch.tensor([[3.0]])).item() == 27 + 18 + 3


def test_no_layers_leave_the_input_alone():
    x = torch.randn(2, 3)
    assert CrossNetwork(3, layers=0)(x) is x
