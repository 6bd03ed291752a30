"""Oracle: a full stable sort of every row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion_retrieval.errors import UserError
from conversion_retrieval.evaluation import ranking
from conversion_retrieval.evaluation.ranking import ItemLists, exact_ranks, score_ranks, top_k, top_k_of


def sorted_ranks(scores, lists):
    ranks = []
    for query in range(len(lists)):
        order = np.argsort(-scores[query], kind="stable")
        position = np.empty(len(order), int)
        position[order] = np.arange(len(order))
        ranks.extend(position[lists[query]])
    return np.array(ranks, int)


def random_lists(rng, num_queries, num_items, longest):
    lengths = rng.integers(0, min(longest, num_items) + 1, num_queries)
    items = [rng.choice(num_items, n, replace=False) for n in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return ItemLists(offsets=offsets, items=np.concatenate([*items, []]).astype(np.int32))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), num_items=st.integers(1, 300), longest=st.integers(0, 60), levels=st.integers(1, 50)
)
def test_ranks_equal_the_position_in_a_stable_sort_however_many_scores_are_equal(seed, num_items, longest, levels):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (7, num_items)).astype(np.float32)
    positives = random_lists(rng, 7, num_items, longest)
    found = score_ranks(lambda rows: scores[rows], num_items, positives, block=3)
    np.testing.assert_array_equal(found.full, sorted_ranks(scores, positives))


def test_dot_product_ranks_do_not_depend_on_the_block_size(monkeypatch):
    rng = np.random.default_rng(1)
    # Small integers make every product exact, so that kernels of different block shapes cannot differ.
    queries, items = rng.integers(-3, 4, (40, 8)).astype(np.float32), rng.integers(-3, 4, (500, 8)).astype(np.float32)
    positives = random_lists(rng, 40, 500, 50)
    expected = sorted_ranks(queries @ items.T, positives)
    for block in (1, 7, 512):
        np.testing.assert_array_equal(
            exact_ranks(queries, items, positives.offsets, positives.items, block=block), expected
        )
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 4 * 500 * 2)
    np.testing.assert_array_equal(exact_ranks(queries, items, positives.offsets, positives.items), expected)


def test_a_large_catalogue_gets_smaller_blocks():
    sizes = [len(rows) for rows in ranking.query_blocks(np.arange(100), ranking.BLOCK_BYTES // 4 // 16, 64)]
    assert sizes == [16] * 6 + [4]


@pytest.mark.parametrize("longest", [5, 60])
def test_removing_items_ranks_as_if_they_scored_below_everything(longest):
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 20, (30, 200)).astype(np.float32)
    positives, removed = random_lists(rng, 30, 200, longest), random_lists(rng, 30, 200, 80)
    found = score_ranks(lambda rows: scores[rows], 200, positives, removed=removed).without_removed
    lowered = scores.copy()
    for query in range(30):
        lowered[query, removed[query]] = -np.inf
    expected = sorted_ranks(lowered, positives)
    is_removed = np.concatenate([np.isin(positives[q], removed[q]) for q in range(30)])
    np.testing.assert_array_equal(found, np.where(is_removed, -1, expected))


@pytest.mark.parametrize(
    ("num_items", "k"), [(10, 3), (10, 50), (6_400, 20), (6_463, 20), (6_463, 100), (64 * 40 + 1, 1)]
)
def test_top_k_equals_a_full_sort(num_items, k):
    scores = np.random.default_rng(num_items + k).permuted(
        np.tile(np.arange(num_items, dtype=np.float32), (5, 1)), axis=1
    )
    best, columns = top_k_of(scores, k)
    expected = np.argsort(-scores, axis=1)[:, :k]
    np.testing.assert_array_equal(columns, expected)
    np.testing.assert_array_equal(best, np.take_along_axis(scores, expected, 1))


def test_top_k_of_vectors_equals_a_full_sort_of_their_products():
    rng = np.random.default_rng(3)
    queries, items = rng.standard_normal((20, 16), np.float32), rng.standard_normal((5_000, 16), np.float32)
    best, rows = top_k(queries, items, 25, block=6)
    products = (torch.from_numpy(queries) @ torch.from_numpy(items).T).numpy()
    np.testing.assert_array_equal(np.sort(rows), np.sort(np.argsort(-products, axis=1)[:, :25]))
    np.testing.assert_allclose(best, np.take_along_axis(products, rows, 1), rtol=1e-5)


def test_top_k_finds_winners_hidden_behind_equal_group_maxima():
    scores = np.zeros((1, 6_400), np.float32)
    scores[0, [0, 100, 200, 6_399]] = 1.0
    _, columns = top_k_of(scores, 4)
    assert sorted(columns[0]) == [0, 100, 200, 6_399]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused_with_their_row(bad):
    items = np.ones((4, 2), np.float32)
    items[2, 1] = bad
    with pytest.raises(ValueError, match="item vectors, found 1 others, the first at row 2"):
        exact_ranks(np.ones((1, 2), np.float32), items, np.array([0, 1]), np.array([0], np.int32))


def test_finite_vectors_whose_scores_would_overflow_are_refused():
    """Oracle: the same vectors in a smaller measure; NaN, the sum of two infinities, is above and below nothing."""
    rng = np.random.default_rng(0)
    queries, items = (rng.normal(size=(n, 8)).astype(np.float32) for n in (40, 50))
    offsets, positives = np.arange(41), rng.integers(0, 50, 40).astype(np.int32)
    expected = exact_ranks(queries, items, offsets, positives)
    assert np.array_equal(exact_ranks(queries * 1e18, items * 1e18, offsets, positives), expected)
    with np.errstate(all="ignore"):
        assert np.isnan((queries * np.float32(1e20)) @ (items * np.float32(1e20)).T).any()
    with pytest.raises(UserError, match=r"scores that float32 can hold, found .* up to \d\.\d+e\+20 and .*: scale the"):
        exact_ranks(queries * np.float32(1e20), items * np.float32(1e20), offsets, positives)


def test_a_positive_outside_the_catalogue_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.3, found 4\.\.4"):
        exact_ranks(np.ones((1, 2), np.float32), np.ones((4, 2), np.float32), np.array([0, 1]), np.array([4], np.int32))
