"""The query's residual against its sum by hand."""

import numpy as np
import torch

from conversion_retrieval.model.config import HistoryConfig, ModelConfig
from conversion_retrieval.model.residual import QueryResidual
from tests.model.inputs import NUM_ITEMS, SIZES, queries

CONFIG = ModelConfig(embedding_dim=8, feature_dim=4)


def residual(config=CONFIG):
    torch.manual_seed(0)
    made = QueryResidual(SIZES, config)
    with torch.no_grad():
        made.log_weights.normal_()
        if made.context is not None:
            made.context.weight.normal_()
    return made


def item_embeddings():
    return torch.from_numpy(np.random.default_rng(5).normal(size=(NUM_ITEMS + 1, 8)).astype(np.float32))


def encode(made, inputs):
    embedded = item_embeddings()
    return made(inputs, embedded, embedded[inputs.context_item])


def test_parts_are_added_with_the_weights_of_the_querys_surface():
    """Oracle: the weighted sum, a query at a time."""
    made, inputs, embedded = residual(), queries(), item_embeddings()
    summary = made.summary(inputs, embedded)
    for q, found in enumerate(encode(made, inputs)):
        subject, history, context = made.log_weights[inputs.surface[q]].exp()
        item = int(inputs.context_item[q])
        expected = history * summary[q] + context * made.context.weight @ inputs.context_embedding[q]
        if item != NUM_ITEMS:
            expected = expected + subject * embedded[item]
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_query_without_a_subject_gets_nothing_from_the_unknown_item():
    made, inputs, embedded = residual(), queries(), item_embeddings()
    inputs.context_item.fill_(NUM_ITEMS)
    before = encode(made, inputs)
    moved = made(inputs, embedded, embedded[inputs.context_item] + 7)
    assert torch.equal(before, moved)


def test_context_embeddings_count_for_nothing_before_training():
    fresh, inputs = QueryResidual(SIZES, CONFIG), queries()
    before = encode(fresh, inputs)
    inputs.context_embedding.mul_(3)
    assert torch.equal(before, encode(fresh, inputs))


def test_without_a_history_encoder_subject_and_context_remain():
    made, inputs = residual(ModelConfig(embedding_dim=8, history=HistoryConfig(encoder="none"))), queries()
    found = encode(made, inputs)
    inputs.history_item.fill_(0)
    assert torch.equal(found, encode(made, inputs))
    assert found.abs().sum() > 0
