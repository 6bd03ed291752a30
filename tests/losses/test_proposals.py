import numpy as np
import pytest
from scipy.stats import hypergeom

from conversion_retrieval.losses.proposals import in_batch_inclusion, uniform_inclusion, union_inclusion


@pytest.mark.parametrize(("num_queries", "batch_size"), [(50, 8), (50, 50), (2, 2)])
def test_in_batch_inclusion_is_hypergeometric(num_queries, batch_size):
    counts = np.arange(num_queries)
    # scipy's answer: no query with the item among the other batch_size - 1 drawn of num_queries - 1.
    expected = 1 - hypergeom(num_queries - 1, counts, batch_size - 1).pmf(0)
    np.testing.assert_allclose(in_batch_inclusion(counts, num_queries, batch_size), expected, atol=1e-9)


def test_a_batch_of_all_queries_holds_every_positive():
    assert in_batch_inclusion(np.array([0, 1, 9]), 10, 10).tolist() == [0, 1, 1]


def test_more_popular_items_are_more_likely_and_thus_corrected_down():
    inclusion = in_batch_inclusion(np.array([1, 10, 100]), 1000, 50)
    assert (np.diff(inclusion) > 0).all()


def test_uniform_and_union_inclusion_by_hand():
    np.testing.assert_allclose(uniform_inclusion(0.5, 3), 1 - 0.125)
    assert uniform_inclusion(np.array([0.5]), 0) == 0
    np.testing.assert_allclose(union_inclusion(np.array([0.5, 1.0]), np.array([0.2, 0.0])), [0.6, 1.0])


def test_rare_items_keep_their_precision():
    np.testing.assert_allclose(uniform_inclusion(1e-9, 4096), 4096e-9, rtol=1e-5)


def test_a_single_query_has_no_other_to_draw_from():
    assert in_batch_inclusion(np.array([0]), 1, 1) == 0
