"""Oracle: vectors altered on purpose."""

import faiss
import numpy as np
import pyarrow as pa
import pytest

from conversion_retrieval.errors import UserError
from conversion_retrieval.index.build import build, recipe
from conversion_retrieval.index.parity import check_index, check_vectors
from conversion_retrieval.index.search import ItemIndex
from tests.index.test_build import clustered


def item_index(items, kind="exact"):
    return ItemIndex(
        index=build(recipe(kind, *items.shape), items), item_ids=pa.array([str(i) for i in range(len(items))]), facts={}
    )


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf", "ivf_pq"])
def test_an_index_of_the_models_own_vectors_passes(kind):
    items, queries = clustered(2_000, 16), clustered(20, 16, seed=1)
    check_index(item_index(items, kind), kind, queries, items)


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf", "ivf_pq"])
def test_an_index_of_other_vectors_stops_the_run(kind):
    items, queries = clustered(2_000, 16), clustered(20, 16, seed=1)
    with pytest.raises(UserError, match="not built from this model"):
        check_index(item_index(np.roll(items, 1, axis=0), kind), kind, queries, items)


def test_an_exact_index_that_lacks_the_best_item_stops_the_run():
    items, queries = clustered(100, 16), clustered(1, 16, seed=1)
    best = int(np.argmax(queries @ items.T))
    index = faiss.IndexIDMap(faiss.IndexFlatIP(16))
    kept = np.delete(np.arange(100), best)
    index.add_with_ids(items[kept], kept)
    with pytest.raises(UserError, match="exact best"):
        check_index(ItemIndex(index=index, item_ids=pa.array(["x"] * 100), facts={}), "exact", queries, items)


def test_vectors_that_moved_or_became_nan_stop_the_run():
    vectors = clustered(10, 4)
    check_vectors("query vectors", vectors, vectors.copy())
    for wrong in (vectors + 0.01, vectors * np.nan, vectors[:5]):
        with pytest.raises(UserError, match="parity: expected query vectors"):
            check_vectors("query vectors", vectors, wrong)
