import torch

from conversion_retrieval.losses.advertiser import advertiser_means


def test_an_advertiser_is_the_mean_of_its_items_and_the_gradient_reaches_them_all():
    items = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]], requires_grad=True)
    means = advertiser_means(items, torch.tensor([0, 0, 1]))
    assert means.tolist() == [[2.0, 1.0], [5.0, 5.0]]
    means[0, 0].backward()
    assert items.grad.tolist() == [[0.5, 0.0], [0.5, 0.0], [0.0, 0.0]]
