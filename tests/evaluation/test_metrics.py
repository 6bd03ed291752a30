"""Oracle: the formulas worked by hand."""

import math

import numpy as np
import pytest

from conversion_retrieval.evaluation.metrics import query_sums, recall_sums

# Query 0 (user 0): ranks 0 and 3; query 1 (user 1): rank 1; query 2 (user 1): ranks 2, 10 and -1 (not retrieved).
RANKS = np.array([0, 3, 1, 2, 10, -1])
QUERIES = np.array([0, 0, 1, 2, 2, 2])
USERS = np.array([0, 0, 1, 1, 1, 1])


def test_micro_recall_is_hits_over_positives():
    found = recall_sums(RANKS, USERS, (1, 2, 4, 11, 100), num_users=2).values()
    assert found == {"recall@1": 1 / 6, "recall@2": 2 / 6, "recall@4": 4 / 6, "recall@11": 5 / 6, "recall@100": 5 / 6}


def test_macro_recall_is_the_mean_of_the_queries_recalls():
    found = query_sums(RANKS, QUERIES, USERS, (4,), num_users=2).values()
    assert found["recall_macro@4"] == pytest.approx((2 / 2 + 1 / 1 + 1 / 3) / 3)


def test_ndcg_equals_the_formula_by_hand():
    found = query_sums(RANKS, QUERIES, USERS, (2, 4), num_users=2).values()
    first, second, third = 1.0, 1 / math.log2(3), 1 / 2
    at_2 = [first / (first + second), second / first, 0.0]
    at_4 = [(first + 1 / math.log2(5)) / (first + second), second / first, third / (first + second + third)]
    assert found["ndcg@2"] == pytest.approx(np.mean(at_2))
    assert found["ndcg@4"] == pytest.approx(np.mean(at_4))


def test_a_perfect_ranking_has_ndcg_and_mrr_one_however_short_the_list():
    ranks, queries = np.array([0, 1, 2, 3, 0]), np.array([0, 0, 0, 0, 1])
    found = query_sums(ranks, queries, np.zeros(5, int), (1, 2, 10), num_users=1).values()
    assert [found[name] for name in ("ndcg@1", "ndcg@2", "ndcg@10", "mrr")] == pytest.approx([1, 1, 1, 1])


def test_mrr_takes_the_best_positive_of_each_query():
    found = query_sums(RANKS, QUERIES, USERS, (1,), num_users=2).values()
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_sums_are_kept_by_user_so_that_users_can_be_resampled():
    sums = recall_sums(RANKS, USERS, (4,), num_users=3)
    np.testing.assert_array_equal(sums.numerators[:, 0], [2, 2, 0])
    np.testing.assert_array_equal(sums.denominators[:, 0], [2, 4, 0])
