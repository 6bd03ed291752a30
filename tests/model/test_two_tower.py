import dataclasses

import numpy as np
import pytest
import torch

from conversion_retrieval.model.config import HistoryConfig, ModelConfig, TowerConfig
from conversion_retrieval.model.inputs import QueryInputs
from conversion_retrieval.model.two_tower import START_TEMPERATURE, TwoTower, make_model
from tests.model.inputs import NUM_ITEMS, SIZES, catalogue, performance, queries, query_arrays

SMALL = TowerConfig(hidden_sizes=(8, 8, 8))
CONFIG = ModelConfig(embedding_dim=8, feature_dim=4, query_tower=SMALL, item_tower=SMALL)
VARIANTS = {
    "default": CONFIG,
    "sequential": dataclasses.replace(CONFIG, query_tower=dataclasses.replace(SMALL, layout="sequential")),
    "low_rank": dataclasses.replace(CONFIG, item_tower=dataclasses.replace(SMALL, cross_rank=2)),
    "multi_head": dataclasses.replace(CONFIG, heads="multi_head"),
    "raw_dot": dataclasses.replace(CONFIG, normalize=False),
    "no_bias": dataclasses.replace(CONFIG, popularity_bias=False),
    "not_shared": dataclasses.replace(CONFIG, share_item_embedding=False),
    "no_ids": dataclasses.replace(CONFIG, item_id_embedding="none"),
    "hashed": dataclasses.replace(CONFIG, item_id_embedding="hashed"),
    "no_history": dataclasses.replace(CONFIG, history=HistoryConfig(encoder="none")),
    "memory": dataclasses.replace(CONFIG, normalize=False, memory_dim=6),
    "memory_of_cosines": dataclasses.replace(CONFIG, memory_dim=6),
    "recency_mean": dataclasses.replace(CONFIG, history=HistoryConfig(encoder="recency_mean")),
}


def encode(model: TwoTower, inputs: QueryInputs | None = None, **options: str) -> tuple[torch.Tensor, torch.Tensor]:
    model.eval()
    items = catalogue()
    embedded = model.embed_history_items(items)
    query_vectors = model.encode_queries(queries() if inputs is None else inputs, embedded, items.id_code, **options)
    item_vectors = model.encode_items(items.rows(slice(NUM_ITEMS)), performance(), **options)
    return query_vectors, item_vectors


def score(model: TwoTower) -> torch.Tensor:
    query_vectors, item_vectors = encode(model)
    return query_vectors @ item_vectors.T


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_gives_vectors_of_the_served_length_and_learns_everywhere(config):
    model = make_model(SIZES, config)
    query_vectors, item_vectors = encode(model)
    assert query_vectors.shape == (4, model.output_dim)
    assert item_vectors.shape == (NUM_ITEMS, model.output_dim)
    (query_vectors @ item_vectors.T).square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "engagement" not in name}
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None}
    assert {"bias.linear.weight", "bias.linear.bias"}.isdisjoint(trained)  # fitted and frozen


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_permuting_a_batch_permutes_its_vectors(config):
    model, arrays, order = make_model(SIZES, config), query_arrays(), np.array([2, 0, 3, 1])
    permuted = {
        field.name: value[order] if isinstance(value, np.ndarray) else value.rows(order)
        for field in dataclasses.fields(arrays)
        if (value := getattr(arrays, field.name)) is not None
    }
    expected = encode(model)[0][order]
    torch.testing.assert_close(encode(model, queries(type(arrays)(**permuted)))[0], expected)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_no_queries_have_no_vectors(config):
    """A process of several has none where the batch of a quiet snapshot has fewer queries than there are processes."""
    model, arrays, none = make_model(SIZES, config), query_arrays(), np.zeros(0, np.int64)
    emptied = {
        field.name: value[none] if isinstance(value, np.ndarray) else value.rows(none)
        for field in dataclasses.fields(arrays)
        if (value := getattr(arrays, field.name)) is not None
    }
    assert encode(model, QueryInputs.of(type(arrays)(**emptied), NUM_ITEMS, torch.device("cpu")))[0].shape == (
        0,
        model.output_dim,
    )


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_padding_never_changes_a_query_vector(config):
    model = make_model(SIZES, config)
    one = queries(query_arrays(padding=0))
    other = dataclasses.replace(
        one,
        **{
            name: torch.nn.functional.pad(getattr(one, name), (3, 0), value=fill)
            for name, fill in {
                "history_item": NUM_ITEMS,
                "history_action": 0,
                "history_surface": 0,
                "history_age_days": 0,
            }.items()
        },
    )
    torch.testing.assert_close(encode(model, one)[0], encode(model, other)[0])


def test_normalised_vectors_have_length_one_before_the_bias_dimension():
    for vectors in encode(make_model(SIZES, CONFIG)):
        torch.testing.assert_close(vectors[:, :8].norm(dim=1), torch.ones(len(vectors)), rtol=1e-4, atol=1e-4)


def test_lengths_and_popularity_stay_in_float32_where_towers_compute_in_bfloat16():
    """Oracle: length one, and what the same model gives without autocast; bfloat16 keeps two to three digits."""
    model = make_model(SIZES, CONFIG)
    model.bias.start(torch.tensor([3.0, -2.0, 1.0]))
    expected_queries, expected_items = encode(model)
    with torch.autocast("cpu", torch.bfloat16):
        query_vectors, item_vectors = encode(model)
    for vectors in (query_vectors, item_vectors):
        torch.testing.assert_close(vectors[:, :-1].norm(dim=1), torch.ones(len(vectors)), rtol=0, atol=1e-5)
    torch.testing.assert_close(item_vectors[:, -1], expected_items[:, -1])
    # Content embeddings among the user's preferences are projected in bfloat16.
    torch.testing.assert_close(query_vectors[:, -1], expected_queries[:, -1], rtol=1e-2, atol=0)
    assert not torch.equal(item_vectors, expected_items)  # the towers do compute in bfloat16


def test_popularity_raises_the_score_for_every_query_through_a_plain_inner_product():
    model = make_model(SIZES, CONFIG)
    before = score(model)
    with torch.no_grad():
        model.bias.linear.bias += 1.0
    gain = (score(model) - before).detach()
    # At the start every query weighs popularity by 1 in the loss's scale, the starting temperature in the cosine's.
    torch.testing.assert_close(gain, torch.full_like(gain, START_TEMPERATURE))


@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "inner product"])
def test_what_steps_learn_counts_by_its_share_and_fitted_popularity_whole(normalize):
    model = make_model(SIZES, dataclasses.replace(CONFIG, normalize=normalize))
    with torch.no_grad():
        model.bias.linear.weight += 1.0  # before training every query weighs it by 1 in the loss's scale
        fitted = performance().sum(dim=1) * (START_TEMPERATURE if normalize else 1.0)
        whole = score(model)
        model.tower_share.fill_(0.25)
        torch.testing.assert_close(score(model), 0.25 * whole + 0.75 * fitted)
        torch.manual_seed(0)
        for parameter in model.parameters():  # trained, but for the fit
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter)
        assert (score(model) - fitted).abs().max() > 0.1
        model.tower_share.zero_()
        torch.testing.assert_close(score(model), fitted.expand(4, -1))


def test_what_does_not_count_does_not_learn():
    model = make_model(SIZES, CONFIG)
    model.bias.start(torch.ones(SIZES.item_performance))
    model.tower_share.zero_()
    score(model).square().sum().backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert not learning


def test_unified_head_serves_all_tasks_and_multi_head_one_each():
    for heads, same in (("unified", True), ("multi_head", False)):
        model = make_model(SIZES, dataclasses.replace(CONFIG, heads=heads))
        conversion, engagement = (encode(model, head=task)[0] for task in ("conversion", "engagement"))
        assert torch.equal(conversion, engagement) is same


def test_residual_towers_start_near_matrix_factorisation():
    config = dataclasses.replace(CONFIG, popularity_bias=False)
    model, items, inputs = make_model(SIZES, config), catalogue(), queries()
    query_vectors, item_vectors = encode(model)
    embedded = model.embed_items(items)
    subject = embedded[inputs.context_item]
    wanted = model.query_tower.residual(inputs, embedded, subject)
    factorised = torch.nn.functional.cosine_similarity(wanted[1:, None], embedded[None, :NUM_ITEMS], dim=-1)
    found = query_vectors[1:] @ item_vectors.T
    assert np.corrcoef(found.detach().flatten(), factorised.detach().flatten())[0, 1] > 0.9


def test_unknown_item_in_the_history_is_the_catalogues_last_row():
    arrays = query_arrays()
    assert (
        queries(arrays).history_item.numpy() == np.where(arrays.history_item < 0, NUM_ITEMS, arrays.history_item)
    ).all()


def test_same_seed_gives_the_same_model_whatever_ran_before():
    first = make_model(SIZES, CONFIG).state_dict()
    torch.rand(3)
    second = make_model(SIZES, CONFIG).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_catalogue_is_no_part_of_the_weights():
    assert all(NUM_ITEMS not in t.shape for t in make_model(SIZES, CONFIG).state_dict().values())


def test_renormalised_means_of_items_have_the_scale_of_items():
    model = make_model(SIZES, CONFIG)
    items = encode(model)[1]
    mean = model.renormalize(items[:4].mean(0, keepdim=True))
    torch.testing.assert_close(mean[:, :8].norm(dim=1), torch.ones(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean[:, 8], items[:4, 8].mean().view(1))
