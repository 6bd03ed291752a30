import torch

from conversion_retrieval.losses.hard import add_hard_negatives
from conversion_retrieval.losses.partition import Pairs

ROWS = torch.tensor([[1.0], [2.0], [0.5]])
ITEMS = torch.tensor([[0.3], [-0.2], [0.7]])
HARD = Pairs(row=torch.tensor([1, 0, 1]), candidate=torch.tensor([0, 1, 2]))


def test_hard_negatives_join_their_own_rows_denominator_with_their_weight():
    log_z = torch.tensor([0.1, 0.2, 0.3])
    found = add_hard_negatives(log_z, ROWS, ITEMS, HARD, weight=3.0)
    # Row 0 sees item 1 (score -0.2), row 1 items 0 and 2 (0.6 and 1.4), row 2 none.
    expected = torch.log(log_z.exp() + 3 * torch.tensor([torch.e**-0.2, torch.e**0.6 + torch.e**1.4, 0.0]))
    torch.testing.assert_close(found, expected)


def test_weight_zero_is_the_same_as_no_hard_negatives():
    log_z = torch.tensor([0.1, 0.2, 0.3])
    assert torch.equal(add_hard_negatives(log_z, ROWS, ITEMS, HARD, weight=0.0), log_z)


def test_rows_without_any_negative_keep_finite_gradients():
    rows = ROWS.clone().requires_grad_()
    log_z = torch.full((3,), -torch.inf, requires_grad=True)
    found = add_hard_negatives(log_z, rows, ITEMS, HARD, weight=1.0)
    torch.testing.assert_close(found[0], torch.tensor(-0.2))
    torch.nn.functional.softplus(found - 1).sum().backward()
    assert torch.isfinite(rows.grad).all()


def test_large_scores_do_not_overflow():
    found = add_hard_negatives(torch.zeros(3), 1000 * ROWS, ITEMS, HARD, weight=1.0)
    torch.testing.assert_close(found, torch.tensor([0.0, 1400.0, 0.0]))
