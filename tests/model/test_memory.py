"""The memory's vectors, against a dictionary of counts filled event by event."""

import dataclasses
import math

import pytest
import torch

from conversion_retrieval.model.config import ModelConfig
from conversion_retrieval.model.inputs import EntityInputs, QueryInputs
from conversion_retrieval.model.memory import Memory

DIM, NUM_IDS = 5, 7
FITTED = ModelConfig(normalize=False, memory_dim=DIM, memory_weight=3.0, memory_half_life_days=10.0)
CONFIG = dataclasses.replace(FITTED, memory_fit="svd")
# Rows 0..3 of the catalogue have these id codes; row 4 is the unknown item.
ID_CODE = torch.tensor([3, 1, 6, 0, 0])


@pytest.fixture
def memory():
    made = Memory(NUM_IDS, CONFIG)
    made.factors.copy_(torch.randn(NUM_IDS, DIM, generator=torch.Generator().manual_seed(0)))
    return made


def _queries(items, actions, ages):
    size = len(items)
    none = torch.zeros(size, 0)
    users = EntityInputs(categorical=none.long(), numeric=none, embeddings={}, id_code=torch.zeros(size).long())
    return QueryInputs(
        surface=torch.zeros(size).long(),
        context_item=torch.full((size,), 4),
        context_embedding=none,
        users=users,
        user_aggregates=none,
        history_item=torch.tensor(items),
        history_action=torch.tensor(actions),
        history_surface=torch.zeros_like(torch.tensor(actions)),
        history_age_days=torch.tensor(ages),
    )


def _by_hand(memory, items, actions, ages):
    counts = {}
    for item, action, age in zip(items, actions, ages, strict=True):
        code = int(ID_CODE[item])
        if action and code:
            counts[code] = counts.get(code, 0.0) + 2 ** (-age / 10.0)
    entries = {code: math.log1p(count) for code, count in counts.items()}
    length = math.sqrt(sum(value**2 for value in entries.values())) or 1.0
    return 3.0 * sum((value / length * memory.factors[code] for code, value in entries.items()), torch.zeros(DIM))


def test_histories_become_decayed_log_counts_of_unit_length_times_factors(memory):
    # Repeats that are not neighbours, an item without a code, an unknown item, padding that carries an item's row.
    items = [[0, 1, 0, 3, 4], [2, 2, 2, 1, 0], [4, 4, 4, 4, 4]]
    actions = [[2, 2, 5, 5, 5], [0, 5, 5, 0, 2], [0, 0, 0, 0, 0]]
    ages = [[20.0, 3.0, 1.0, 1.0, 0.0], [9.0, 40.0, 10.0, 5.0, 0.5], [0.0] * 5]
    found = memory.queries(_queries(items, actions, ages), ID_CODE)
    expected = torch.stack([_by_hand(memory, *row) for row in zip(items, actions, ages, strict=True)])
    torch.testing.assert_close(found, expected)


def test_a_fitted_map_has_factors_of_its_own_for_histories(memory):
    fitted = Memory(NUM_IDS, FITTED)
    fitted.factors.copy_(-memory.factors)
    fitted.history_factors.copy_(memory.factors)
    queries = _queries([[0, 1]], [[2, 5]], [[20.0, 3.0]])
    torch.testing.assert_close(fitted.queries(queries, ID_CODE), memory.queries(queries, ID_CODE))
    torch.testing.assert_close(fitted.items(ID_CODE), -memory.items(ID_CODE))


def test_the_svd_holds_one_table_as_the_first_releases_did(memory):
    assert list(memory.state_dict()) == ["factors"]


def test_padding_changes_nothing(memory):
    short = memory.queries(_queries([[0, 1]], [[5, 5]], [[4.0, 2.0]]), ID_CODE)
    padded = memory.queries(_queries([[4, 4, 0, 1]], [[0, 0, 5, 5]], [[0.0, 0.0, 4.0, 2.0]]), ID_CODE)
    torch.testing.assert_close(short, padded)


def test_a_history_of_no_events_has_a_zero_vector(memory):
    empty = _queries([[4]], [[0]], [[0.0]])
    assert memory.queries(empty, ID_CODE).abs().max() == 0
    no_events = {name: getattr(empty, name)[:, :0] for name in vars(empty) if name.startswith("history_")}
    nothing = dataclasses.replace(empty, **no_events)
    assert memory.queries(nothing, ID_CODE).shape == (1, DIM)


def test_an_item_unseen_in_training_has_no_memory():
    made = Memory(NUM_IDS, CONFIG)
    made.factors[1:] = 1.0
    assert made.items(torch.tensor([0, 2])).tolist() == [[0.0] * DIM, [1.0] * DIM]


def test_memory_weighs_in_logits_whatever_the_score_is_divided_by(memory):
    scaled = Memory(NUM_IDS, CONFIG, scale=0.07)
    scaled.factors.copy_(memory.factors)
    queries = _queries([[0, 1]], [[2, 2]], [[1.0, 1.0]])
    torch.testing.assert_close(scaled.queries(queries, ID_CODE) / 0.07, memory.queries(queries, ID_CODE))
