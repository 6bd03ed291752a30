"""Flat search by matrix product. Oracle: FAISS's own search of the same index, a sort of all products."""

import faiss
import numpy as np
import pytest

from conversion_retrieval.index import flat
from conversion_retrieval.index.build import build, recipe
from tests.index.test_build import clustered


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("k", [1, 10, 300, 1_000])
def test_a_flat_index_gives_what_faiss_finds_in_it(count, k):
    items, queries = clustered(20_000, 16), clustered(count, 16, seed=1)
    index = build(recipe("exact", *items.shape), items)
    scores, rows = flat.search_of(index)(queries, k)
    expected_scores, expected_rows = index.search(queries, k)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    np.testing.assert_array_equal(rows, expected_rows)


def test_company_in_a_batch_does_not_change_what_is_found(monkeypatch):
    items, queries = clustered(5_000, 16), clustered(33, 16, seed=1)
    search = flat.search_of(build(recipe("exact", *items.shape), items))
    together = search(queries, 20)
    monkeypatch.setattr(flat, "BLOCK_QUERIES", 7)  # blocks of unequal size
    np.testing.assert_array_equal(search(queries, 20)[1], together[1])
    alone = [search(query[None], 20) for query in queries]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in alone]), together[1])
    np.testing.assert_allclose(np.concatenate([scores for scores, _ in alone]), together[0], rtol=1e-5)


def test_other_kinds_are_searched_by_faiss():
    items = clustered(500, 16)
    index = build(recipe("hnsw", *items.shape), items)
    assert isinstance(flat.search_of(index), type(index.search))


def test_no_queries_and_more_places_than_items_are_fine():
    items = clustered(30, 8)
    index = faiss.IndexFlatIP(8)
    index.add(items)
    search = flat.search_of(index)
    assert [found.shape for found in search(items[:0], 5)] == [(0, 5), (0, 5)]
    _, rows = search(items[:2], 100)
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(30), (2, 1)))
