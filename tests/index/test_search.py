"""Oracle: a sort of all products; files damaged by hand."""

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conversion_retrieval.contracts import new_artifact, write_json
from conversion_retrieval.errors import CorruptArtifactError
from conversion_retrieval.index.search import ItemIndex, read_index
from tests.index.test_build import clustered


@pytest.fixture
def index_dir(tmp_path):
    items = clustered(50, 8)
    with new_artifact(tmp_path / "index", kind="index") as directory:
        index = faiss.IndexFlatIP(8)
        index.add(items)
        faiss.write_index(index, str(directory / "index.faiss"))
        pq.write_table(pa.table({"item_id": [f"item{i}" for i in range(50)]}), directory / "item_ids.parquet")
        write_json(directory / "index.json", {"kind": "exact"})
    return tmp_path / "index"


def test_search_returns_the_best_products_in_order(index_dir):
    queries, items = clustered(5, 8, seed=1), clustered(50, 8)
    scores, rows = ItemIndex.open(index_dir).search(queries, 7)
    products = queries @ items.T
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1)[:, :7])
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :7], rtol=1e-5)


def test_asking_for_more_than_there_is_gives_every_item_once(index_dir):
    scores, rows = ItemIndex.open(index_dir).search(clustered(3, 8, seed=1), 1_000)
    assert scores.shape == rows.shape == (3, 50)
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(50), (3, 1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_finds_nothing_and_leaves_its_neighbours_alone(index_dir, bad):
    index, queries = ItemIndex.open(index_dir), clustered(3, 8, seed=1)
    expected = index.search(queries, 4)[1]
    queries[1, 3] = bad
    scores, rows = index.search(queries, 4)
    assert (rows[1] == -1).all()
    assert np.isneginf(scores[1]).all()
    np.testing.assert_array_equal(rows[[0, 2]], expected[[0, 2]])


def test_a_zero_vector_scores_every_item_zero(index_dir):
    scores, rows = ItemIndex.open(index_dir).search(np.zeros((1, 8), np.float32), 50)
    assert (scores == 0).all()
    assert sorted(rows[0]) == list(range(50))


def test_places_that_a_probe_cannot_fill_are_empty(tmp_path):
    items = np.eye(8, dtype=np.float32).repeat(50, axis=0)
    index = faiss.index_factory(8, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(items)
    index.add(items)
    ids = pa.array([str(i) for i in range(len(items))])
    scores, rows = ItemIndex(index=index, item_ids=ids, facts={}).search(items[:1], 400)
    assert (rows[0] == -1).any()
    assert np.isneginf(scores[0][rows[0] == -1]).all()
    assert np.isfinite(scores[0][rows[0] >= 0]).all()


@pytest.mark.parametrize(
    ("shape", "k", "message"), [((2, 9), 5, r"\[B, 8\]"), ((8,), 5, r"\[B, 8\]"), ((2, 8), 0, "k of")]
)
def test_wrong_shapes_and_counts_are_refused(index_dir, shape, k, message):
    with pytest.raises(ValueError, match=message):
        ItemIndex.open(index_dir).search(np.zeros(shape, np.float32), k)


@pytest.mark.parametrize("name", ["index.faiss", "item_ids.parquet", "index.json"])
def test_a_truncated_file_is_refused_by_name_even_without_its_digest(index_dir, name):
    path = index_dir / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptArtifactError, match=name):
        ItemIndex.open(index_dir)
    with pytest.raises(CorruptArtifactError, match=name):
        read_index(index_dir)


def test_ids_of_another_index_are_refused(index_dir):
    pq.write_table(pa.table({"item_id": ["a", "b"]}), index_dir / "item_ids.parquet")
    with pytest.raises(CorruptArtifactError, match=r"expected 2 vectors as in item_ids\.parquet, found 50"):
        read_index(index_dir)
