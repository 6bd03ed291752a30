import torch

from conversion_retrieval.model.config import TowerConfig
from conversion_retrieval.model.tower import Tower


def test_parallel_tower_concatenates_two_readings_of_the_same_input():
    tower = Tower(6, TowerConfig(hidden_sizes=(8, 4)))
    x = torch.randn(3, 6)
    torch.testing.assert_close(tower(x), torch.cat([tower.cross(x), tower.mlp(x)], dim=1))
    assert tower.output_dim == 10


def test_sequential_mlp_reads_only_what_the_cross_network_made():
    tower = Tower(6, TowerConfig(layout="sequential", hidden_sizes=(8, 4)))
    x = torch.randn(3, 6)
    torch.testing.assert_close(tower(x), tower.mlp(tower.cross(x)))
    assert tower.output_dim == 4


def test_mlp_has_one_layer_a_hidden_size():
    linear = [m for m in Tower(6, TowerConfig(hidden_sizes=(8, 5, 4))).mlp if isinstance(m, torch.nn.Linear)]
    assert [layer.weight.shape for layer in linear] == [(8, 6), (5, 8), (4, 5)]
