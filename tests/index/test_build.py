"""Oracle: exact search; FAISS's own reading of the file."""

import itertools

import faiss
import numpy as np
import pytest

from conversion_retrieval.evaluation.ranking import top_k
from conversion_retrieval.index.build import apply_setting, build, lifted, needs_lifting, num_lists, recipe
from conversion_retrieval.index.tune import search_recall


def clustered(count, dim, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((50, dim))
    vectors = centres[rng.integers(50, size=count)] + 0.7 * rng.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf", "ivf_pq"])
@pytest.mark.parametrize("dim", [16, 17])
@pytest.mark.parametrize("lift", [True, False])
def test_every_kind_nears_exact_search_at_its_most_accurate_setting(kind, dim, lift):
    items, queries = clustered(4_000, dim), clustered(50, dim, seed=1)
    made = recipe(kind, len(items), dim, lift=lift)
    index = build(made, items)
    apply_setting(index, made.settings[-1])
    _, found = index.search(queries, 20)
    _, truth = top_k(queries, items, 20)
    assert search_recall(found, truth, queries, items).mean() > (0.999 if kind == "exact" else 0.95)


@pytest.mark.parametrize(("kind", "setting", "read"), [("ivf", "nprobe=7", 7), ("ivf_pq", "nprobe=5,k_factor_rf=4", 5)])
def test_the_number_of_probes_is_read_back_from_the_file(tmp_path, kind, setting, read):
    index = build(recipe(kind, 4_000, 16), clustered(4_000, 16))
    apply_setting(index, setting)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    loaded = faiss.read_index(str(tmp_path / "index.faiss"))
    assert faiss.extract_index_ivf(loaded).nprobe == read
    if kind == "ivf_pq":
        assert faiss.downcast_index(loaded.index).k_factor == 4


def test_the_search_depth_of_a_graph_is_read_back_from_the_file(tmp_path):
    index = build(recipe("hnsw", 500, 16), clustered(500, 16))
    apply_setting(index, "efSearch=333")
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    loaded = faiss.read_index(str(tmp_path / "index.faiss"))
    assert faiss.downcast_index(loaded.index).hnsw.efSearch == 333


def test_an_index_weighs_about_what_its_recipe_says():
    items = clustered(5_000, 64)
    for kind, lift in itertools.product(("exact", "hnsw", "ivf", "ivf_pq"), (True, False)):
        made = recipe(kind, *items.shape, lift=lift)
        actual = faiss.serialize_index(build(made, items)).nbytes / 2**20
        assert made.memory_mb == pytest.approx(actual, rel=0.15), kind


def test_small_catalogues_get_no_more_lists_than_can_be_trained():
    assert [num_lists(n) for n in (1, 39, 1_000, 1_000_000)] == [1, 1, 25, 4_000]


def test_lifted_vectors_are_equally_long_and_score_as_before():
    items = clustered(200, 16) * np.random.default_rng(0).lognormal(0, 1, (200, 1)).astype(np.float32)
    queries = clustered(5, 16, seed=1)
    found = lifted(items, 20)
    lengths = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(items, axis=1).max(), rtol=1e-5)
    np.testing.assert_allclose(np.pad(queries, ((0, 0), (0, 4))) @ found.T, queries @ items.T, rtol=1e-5)


def test_only_vectors_of_different_lengths_are_lifted():
    items = clustered(100, 16)
    assert not needs_lifting(items)
    assert needs_lifting(items * np.linspace(1, 1.01, 100, dtype=np.float32)[:, None])
    assert recipe("ivf", 4_000, 16, lift=False).factory == f"IVF{num_lists(4_000)},Flat"


def with_popularity(vectors, weight):
    """A coordinate more, as a popularity bias adds it: far from 0 on the side of some items, small on the queries'."""
    return np.hstack([vectors, np.broadcast_to(weight, (len(vectors), 1))]).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "setting"), [("hnsw", "efSearch=256"), ("ivf", "nprobe=32"), ("ivf_pq", "nprobe=32,k_factor_rf=16")]
)
def test_items_that_are_long_for_their_popularity_do_not_hide_the_others(kind, setting):
    popularity = np.random.default_rng(0).lognormal(-0.5, 0.8, (4_000, 1))
    items, queries = with_popularity(clustered(4_000, 15), popularity), with_popularity(clustered(50, 15, seed=1), 0.06)
    index = build(recipe(kind, *items.shape), items)
    apply_setting(index, setting)
    scores, found = index.search(queries, 20)
    _, truth = top_k(queries, items, 20)
    assert search_recall(found, truth, queries, items).mean() > 0.95
    exact = np.take_along_axis(queries @ items.T, found, axis=1)
    np.testing.assert_allclose(scores, exact, atol=0.02 * float(exact.max()))
    if kind == "hnsw":
        plain = faiss.index_factory(items.shape[1], "HNSW32,Flat", faiss.METRIC_INNER_PRODUCT)
        plain.add(items)
        plain.hnsw.efSearch = 256
        assert search_recall(plain.search(queries, 20)[1], truth, queries, items).mean() < 0.8
