import math

import pytest
import torch
from torch import nn

from conversion_retrieval.training.config import TrainingConfig
from conversion_retrieval.training.optimizer import (
    MAX_DENSE_ROWS,
    choose_optimizer,
    learning_rate_factor,
    make_optimizer,
)


def test_learning_rate_warms_up_and_decays_by_a_cosine():
    config = TrainingConfig(warmup_steps=4)
    factors = [learning_rate_factor(step, 12, config) for step in (0, 3, 4, 8, 12)]
    assert factors == pytest.approx([0.25, 1.0, 1.0, 0.5, 0.0])


def test_constant_rate_stays():
    assert learning_rate_factor(100, 12, TrainingConfig(warmup_steps=4, decay="constant")) == 1.0


class Model(nn.Module):
    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 3, sparse=sparse)
        self.linear = nn.Linear(3, 1)
        for parameter in self.parameters():
            nn.init.ones_(parameter)


def take_step(optimizer_name: str, **options: float) -> tuple[Model, Model]:
    model = Model(sparse=optimizer_name == "adamw_sparse")
    config = TrainingConfig(optimizer=optimizer_name, warmup_steps=0, decay="constant", **options)
    optimizer = make_optimizer([("model", model)], config, total_steps=10)
    model.linear(model.table(torch.tensor([2, 5]))).sum().backward()
    optimizer.clip()
    optimizer.step(0)
    return model


def test_sparse_optimizer_touches_only_the_rows_of_the_batch():
    table = take_step("adamw_sparse", weight_decay=0.1).table.weight
    assert [row for row in range(10) if not torch.equal(table[row], torch.ones(3))] == [2, 5]


def test_tables_have_a_rate_of_their_own():
    model = take_step("adamw", learning_rate=0.1, embedding_learning_rate=0.01, weight_decay=0.0)
    # The first step of Adam moves every touched weight by its learning rate.
    torch.testing.assert_close(model.table.weight[2], torch.full((3,), 0.99))
    torch.testing.assert_close(model.linear.weight, torch.full((1, 3), 0.9))


def test_biases_do_not_decay():
    model = Model(sparse=False)
    config = TrainingConfig(warmup_steps=0, decay="constant", learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer([("model", model)], config, total_steps=10)
    (0 * sum(p.sum() for p in model.parameters())).backward()
    optimizer.step(0)
    assert model.linear.bias.item() == 1.0
    torch.testing.assert_close(model.linear.weight, torch.full((1, 3), 0.95))


@pytest.mark.parametrize("name", ["adamw", "adamw_sparse"])
def test_gradients_are_clipped_to_their_common_norm(name):
    model = Model(sparse=name == "adamw_sparse")
    optimizer = make_optimizer([("model", model)], TrainingConfig(max_gradient_norm=0.5), total_steps=10)
    model.linear(model.table(torch.tensor([2, 5, 2]))).sum().backward()
    # Table rows: three twos, three ones; linear weight: three threes; bias: one three.
    assert optimizer.clip().item() == pytest.approx(math.sqrt(12 + 3 + 27 + 9))
    gradients = [g.to_dense() for p in model.parameters() if (g := p.grad) is not None]
    assert math.sqrt(sum(g.square().sum().item() for g in gradients)) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "device", "processes", "full_softmax", "rows", "expected"),
    [
        ("auto", "cpu", 1, False, MAX_DENSE_ROWS + 1, "adamw_sparse"),
        ("auto", "cpu", 1, False, MAX_DENSE_ROWS, "adamw"),
        ("auto", "cpu", 1, True, MAX_DENSE_ROWS + 1, "adamw"),
        ("auto", "cpu", 2, False, MAX_DENSE_ROWS + 1, "adamw"),
        ("auto", "cuda", 1, False, MAX_DENSE_ROWS + 1, "adamw"),
        ("adamw", "cpu", 1, False, MAX_DENSE_ROWS + 1, "adamw"),
        ("adamw_sparse", "cuda", 2, True, 2, "adamw_sparse"),
    ],
)
def test_large_tables_of_sampled_softmaxes_are_updated_sparsely_on_a_cpu(
    optimizer, device, processes, full_softmax, rows, expected
):
    found = choose_optimizer(
        TrainingConfig(optimizer=optimizer),
        torch.device(device),
        processes=processes,
        full_softmax=full_softmax,
        table_rows=rows,
    )
    assert found == expected
