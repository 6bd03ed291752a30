import dataclasses

import pytest
import torch

from conversion_retrieval.model.config import ModelConfig
from conversion_retrieval.model.embedding import (
    CategoricalEmbedding,
    HashedIdEmbedding,
    IdEmbedding,
    ItemEmbedding,
    id_embedding,
    id_table_rows,
    unit_length,
)
from tests.model.inputs import NUM_ITEMS, SIZES, catalogue


def test_columns_of_one_table_do_not_share_rows():
    embedding = CategoricalEmbedding((4, 3), dim=2)
    found = embedding(torch.tensor([[0, 0], [3, 2]]))
    torch.testing.assert_close(found[:, 1], embedding.table.weight[[4, 6]])
    torch.testing.assert_close(found[:, 0], embedding.table.weight[[0, 3]])


def test_unknown_id_starts_at_zero_plain_and_hashed():
    code = torch.tensor([0])
    assert not IdEmbedding(10, 4)(code).any()
    assert not HashedIdEmbedding(10, 4)(code).any()


def test_hashed_ids_tell_apart_more_ids_than_rows():
    embedding = HashedIdEmbedding(1001, 8, buckets=250)
    vectors = embedding(torch.arange(1, 1001))
    assert embedding.table.weight.shape == (251, 8)
    # Of 1000 ids in 250 rows each shares its row with three others; a pair of rows is almost always its own.
    assert len(torch.unique(vectors, dim=0)) > 950


def test_hashed_id_is_the_sum_of_two_rows_that_are_never_the_unknown_one():
    embedding = HashedIdEmbedding(1001, 2, buckets=5)
    torch.nn.init.ones_(embedding.table.weight)
    with torch.no_grad():
        embedding.table.weight[0] = 100
    assert (embedding(torch.arange(1, 1001)) == 2).all()


@pytest.mark.parametrize("buckets", [0, 7])
@pytest.mark.parametrize("kind", ["plain", "hashed"])
def test_the_rows_of_an_id_table_are_known_before_it_is_made(kind, buckets):
    config = ModelConfig(item_id_embedding=kind, item_hash_buckets=buckets)
    assert id_table_rows(41, config) == len(id_embedding(41, config, sparse=False).table.weight)


def test_without_ids_there_is_no_table():
    assert id_table_rows(41, ModelConfig(item_id_embedding="none")) == 0
    assert id_table_rows(1, ModelConfig()) == 0


def test_id_dropout_hides_ids_in_training_only():
    embedding = IdEmbedding(10, 4, dropout=0.5)
    codes = torch.randint(1, 10, (1000,))
    hidden = (embedding.train()(codes) == 0).all(1).float().mean()
    assert 0.4 < hidden < 0.6
    assert not (embedding.eval()(codes) == 0).all(1).any()


def test_an_item_is_the_sum_of_its_id_categories_and_content():
    embedding = ItemEmbedding(SIZES.items, ModelConfig(embedding_dim=8)).eval()
    items = catalogue().rows(slice(NUM_ITEMS))
    expected = (
        embedding.ids.table.weight[items.id_code]
        + embedding.categories.table.weight[items.categorical[:, 0]]
        + embedding.categories.table.weight[items.categorical[:, 1] + 4]
        + items.embeddings["visual"] @ embedding.content["visual"].weight.T
    )
    torch.testing.assert_close(embedding(items), expected)


def test_zero_vector_stays_zero_and_has_a_finite_gradient():
    vectors = torch.zeros(1, 3, requires_grad=True)
    scaled = unit_length(vectors)
    scaled.sum().backward()
    assert not scaled.any()
    assert torch.isfinite(vectors.grad).all()


def test_unit_length_is_one_for_ordinary_vectors():
    lengths = unit_length(torch.randn(5, 16)).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(5), rtol=1e-5, atol=1e-5)


def test_ids_start_short_only_beside_content():
    """Oracle: rows drawn with standard deviation dim ** -0.5, a tenth of it where embedding columns describe items."""
    many = dataclasses.replace(SIZES.items, num_ids=2001)
    for sizes, expected in ((many, 0.1), (dataclasses.replace(many, embeddings={}), 1.0)):
        torch.manual_seed(0)
        rows = ItemEmbedding(sizes, ModelConfig(embedding_dim=16)).ids.table.weight[1:]
        assert float(rows.detach().std()) == pytest.approx(expected * 16**-0.5, rel=0.05)


def test_unit_length_has_the_gradient_of_its_formula_and_is_zero_at_zero():
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    vectors[2] = 0
    found, formula = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    scaled = unit_length(found)
    expected = formula * torch.rsqrt(formula.square().sum(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(scaled, expected)
    assert not scaled[2].any()
    for value in (scaled, expected):
        (value * torch.arange(15.0).view(5, 3)).sum().backward()
    torch.testing.assert_close(found.grad, formula.grad)
