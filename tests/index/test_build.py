"""Oracle: exact search; FAISS's own reading of the file."""

import faiss
import numpy as np
import pytest

from conversion_retrieval.evaluation.ranking import top_k
from conversion_retrieval.index.build import apply_setting, build, num_lists, recipe
from conversion_retrieval.index.tune import search_recall


def clustered(count, dim, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((50, dim))
    vectors = centres[rng.integers(50, size=count)] + 0.7 * rng.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf", "ivf_pq"])
@pytest.mark.parametrize("dim", [16, 17])
def test_every_kind_nears_exact_search_at_its_most_accurate_setting(kind, dim):
    items, queries = clustered(4_000, dim), clustered(50, dim, seed=1)
    made = recipe(kind, len(items), dim)
    index = build(made, items)
    apply_setting(index, made.settings[-1])
    _, found = index.search(queries, 20)
    _, truth = top_k(queries, items, 20)
    assert search_recall(found, truth).mean() > (0.999 if kind == "exact" else 0.95)


@pytest.mark.parametrize(("kind", "setting", "read"), [("ivf", "nprobe=7", 7), ("ivf_pq", "nprobe=5,k_factor_rf=4", 5)])
def test_the_number_of_probes_is_read_back_from_the_file(tmp_path, kind, setting, read):
    index = build(recipe(kind, 4_000, 16), clustered(4_000, 16))
    apply_setting(index, setting)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    loaded = faiss.read_index(str(tmp_path / "index.faiss"))
    assert faiss.extract_index_ivf(loaded).nprobe == read
    if kind == "ivf_pq":
        assert loaded.k_factor == 4


def test_the_search_depth_of_a_graph_is_read_back_from_the_file(tmp_path):
    index = build(recipe("hnsw", 500, 16), clustered(500, 16))
    apply_setting(index, "efSearch=333")
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    assert faiss.read_index(str(tmp_path / "index.faiss")).hnsw.efSearch == 333


def test_an_index_weighs_about_what_its_recipe_says():
    items = clustered(5_000, 64)
    for kind in ("exact", "hnsw", "ivf", "ivf_pq"):
        made = recipe(kind, *items.shape)
        actual = faiss.serialize_index(build(made, items)).nbytes / 2**20
        assert made.memory_mb == pytest.approx(actual, rel=0.15), kind


def test_small_catalogues_get_no_more_lists_than_can_be_trained():
    assert [num_lists(n) for n in (1, 39, 1_000, 1_000_000)] == [1, 1, 25, 4_000]
