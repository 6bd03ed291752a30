import dataclasses

import pytest
import torch
from torch.nn import functional

from conversion_retrieval.model.config import HistoryConfig
from conversion_retrieval.model.history import (
    AttentionLayer,
    HistorySummary,
    RecencyMeans,
    history_encoder,
    recency_bucket,
)
from conversion_retrieval.model.inputs import QueryInputs
from tests.model.inputs import NUM_ITEMS, queries, query_arrays

DIM = 8
ENCODERS = ("transformer", "recency_mean")


def make(encoder: str, **options: object) -> torch.nn.Module:
    return history_encoder(HistoryConfig(encoder=encoder, **options), DIM, surfaces=3, actions=6).eval()


def encode(module: torch.nn.Module, inputs: QueryInputs) -> torch.Tensor:
    table = torch.randn(NUM_ITEMS + 1, DIM, generator=torch.Generator().manual_seed(0))
    return module(inputs, table)


def padded(inputs: QueryInputs, columns: int) -> QueryInputs:
    """More padding than ``QueryInputs.of`` would leave."""
    pad = (columns, 0)
    return dataclasses.replace(
        inputs,
        history_item=functional.pad(inputs.history_item, pad, value=NUM_ITEMS),
        history_action=functional.pad(inputs.history_action, pad),
        history_surface=functional.pad(inputs.history_surface, pad),
        history_age_days=functional.pad(inputs.history_age_days, pad),
    )


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("layers", [1, 2])
def test_padding_never_changes_an_encoding(encoder, layers):
    module = make(encoder, layers=layers)
    torch.testing.assert_close(encode(module, queries()), encode(module, padded(queries(), 7)))


def test_padding_that_a_whole_batch_shares_is_dropped():
    assert QueryInputs.of(query_arrays(padding=3), NUM_ITEMS, torch.device("cpu")).history_item.shape == (4, 5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_empty_history_gives_a_default_that_learns(encoder):
    module = make(encoder)
    inputs = queries()
    encode(module, inputs)[0].sum().backward()
    assert (module.empty.grad == 1).all()
    assert all(p.grad is None or not p.grad.any() for name, p in module.named_parameters() if name != "empty")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_batch_of_empty_histories_is_finite(encoder):
    inputs = queries()
    none = dataclasses.replace(
        inputs,
        **{f"history_{n}": getattr(inputs, f"history_{n}")[:, :0] for n in ("item", "action", "surface", "age_days")},
    )
    assert torch.isfinite(encode(make(encoder), none)).all()


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("column", ["history_item", "history_action", "history_age_days"])
def test_item_action_and_recency_all_matter(encoder, column):
    module = make(encoder)
    if encoder == "recency_mean":
        torch.nn.init.normal_(module.log_action)
    inputs = queries()
    values = getattr(inputs, column).clone()
    values[1, -1] = values[1, -1] % 5 + 1 if values.dtype == torch.int64 else values[1, -1] + 30
    assert not torch.allclose(
        encode(module, inputs)[1], encode(module, dataclasses.replace(inputs, **{column: values}))[1]
    )


def test_surface_of_an_event_reaches_the_transformer():
    module, inputs = make("transformer"), queries()
    other = dataclasses.replace(inputs, history_surface=(inputs.history_surface + 1) % 3)
    assert not torch.allclose(encode(module, inputs)[1], encode(module, other)[1])


def test_recency_means_follow_the_half_life_by_hand():
    module = RecencyMeans(HistoryConfig(encoder="recency_mean", half_life_days=(2.0,)), 1, actions=6)
    inputs = dataclasses.replace(
        queries(query_arrays(batch=3, length=2)),
        history_item=torch.tensor([[0, 1], [2, 3], [2, 3]]),
        history_action=torch.tensor([[1, 1], [0, 1], [0, 1]]),
        history_age_days=torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 60.0]]),
    )
    items = torch.tensor([[4.0], [1.0], [9.0], [3.0]])
    # Weights 1/2 and 1: (2 + 1) / 1.5 = 2; a single event counts fully, but after 30 half-lives it has faded.
    torch.testing.assert_close(module(inputs, items), torch.tensor([[2.0], [3.0], [3.0 * 2**-30 / 1e-6]]))


def test_summary_mixes_half_lives_in_the_space_of_the_items():
    module = HistorySummary(HistoryConfig(half_life_days=(2.0, 1e9)), 1, actions=6)
    inputs = dataclasses.replace(
        queries(query_arrays(batch=1, length=2)),
        history_action=torch.tensor([[1, 1]]),
        history_age_days=torch.tensor([[2.0, 0.0]]),
        history_item=torch.tensor([[0, 1]]),
    )
    # Half the mean with weights 1/2, 1 (= 2) and half the plain mean (= 2.5).
    torch.testing.assert_close(module(inputs, torch.tensor([[4.0], [1.0]])), torch.tensor([[2.25]]))


def test_attention_agrees_with_torchs_own():
    layer = AttentionLayer(DIM, heads=2, dropout=0.0).eval()
    torch.nn.init.normal_(layer.attention_norm.weight)
    torch.nn.init.normal_(layer.attention_norm.bias)
    x, visible = torch.randn(3, 5, DIM), torch.rand(3, 5) > 0.3
    visible[:, -1] = True
    normed = layer.attention_norm(x)
    projected = (layer.query(x), layer.key(normed), layer.value(normed))
    split = [part.view(3, 5, 2, DIM // 2).transpose(1, 2) for part in projected]
    expected = functional.scaled_dot_product_attention(*split, attn_mask=visible[:, None, None, :])
    torch.testing.assert_close(layer.attend(x, x, visible), expected.transpose(1, 2).flatten(2))


def test_attending_from_one_token_is_the_same_by_a_shorter_way():
    layer = AttentionLayer(DIM, heads=2, dropout=0.0).eval()
    torch.nn.init.normal_(layer.attention_norm.weight)
    torch.nn.init.normal_(layer.attention_norm.bias)
    layer.attention_norm.eps = 0.1
    token, context, visible = torch.randn(1, 1, DIM), torch.randn(3, 5, DIM), torch.rand(3, 5) > 0.3
    visible[:, -1] = True
    expected = layer.attend(token.expand(3, 1, DIM), context, visible)
    torch.testing.assert_close(layer.attend_from_one(token, context, visible), expected)


def test_recency_buckets_double():
    minutes = torch.tensor([0.0, 0.5, 1.0, 2.9, 3.0, 1e9])
    assert recency_bucket(minutes / 1440).tolist() == [0, 0, 1, 1, 2, 15]
