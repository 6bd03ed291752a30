"""Factors and regressions of sparse matrices; oracle: the dense formulas in NumPy, float64."""

import numpy as np
import pytest
from scipy import sparse

from conversion_retrieval.factorization import item_factors, reduced_rank_ridge

RIDGE = 0.5


def _sparse_random(seed, shape, density=0.3):
    rng = np.random.default_rng(seed)
    return (rng.random(shape) * (rng.random(shape) < density)).astype(np.float32)


def _ridge(x, y):
    x = x.astype(float)
    return np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)


def _fitted(x, y, rank):
    return reduced_rank_ridge(sparse.csr_array(x), sparse.csr_array(y), rank=rank, ridge=RIDGE, seed=0)


@pytest.mark.parametrize("shape", [(40, 15), (15, 40)])
def test_item_factors_are_the_right_singular_vectors(shape):
    dense = np.random.default_rng(2).random(shape).astype(np.float32) ** 8
    found = item_factors(sparse.csr_array(dense), 4, seed=0)
    expected = np.linalg.svd(dense)[2][:4]
    np.testing.assert_allclose(np.abs(found.T @ expected.T), np.eye(4), atol=2e-3)


def test_a_tall_matrix_taken_in_parts_has_the_same_factors(monkeypatch):
    matrix = sparse.csr_array(_sparse_random(2, (40, 60)))
    whole = item_factors(matrix, 4, seed=0)
    monkeypatch.setattr("conversion_retrieval.factorization.BLOCK_ROWS", 7)  # of 60: the last part is shorter
    np.testing.assert_allclose(item_factors(matrix, 4, seed=0), whole, atol=1e-5)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_factors_beyond_the_rank_are_left_out(shape):
    rng = np.random.default_rng(3)
    dense = (rng.random((shape[0], 2)) @ rng.random((2, shape[1]))).astype(np.float32)
    assert item_factors(sparse.csr_array(dense), 5, seed=0).shape == (shape[1], 2)


@pytest.mark.parametrize("shape", [(60, 12, 20), (20, 60, 12), (20, 12, 60)])
def test_a_regression_of_full_rank_is_ridge_regression(shape):
    rows, inputs, outputs = shape
    x, y = _sparse_random(0, (rows, inputs)), _sparse_random(1, (rows, outputs))
    found = _fitted(x, y, rank=100)
    np.testing.assert_allclose(found.inputs @ found.outputs.T, _ridge(x, y), atol=0.02)


@pytest.mark.parametrize("shape", [(60, 12, 20), (20, 60, 12), (20, 12, 60)])
def test_a_regression_of_low_rank_keeps_the_leading_directions_of_its_fit(shape):
    rows, inputs, outputs = shape
    x, y = _sparse_random(0, (rows, inputs)), _sparse_random(1, (rows, outputs))
    found = _fitted(x, y, rank=3)
    coefficients = _ridge(x, y)
    directions = np.linalg.svd(x @ coefficients, full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs(found.outputs.T @ directions.T), np.eye(3), atol=0.05)
    np.testing.assert_allclose(found.inputs @ found.outputs.T, coefficients @ directions.T @ directions, atol=0.02)


def test_few_of_many_directions_capture_what_the_best_ones_do():
    # Signals of falling strength in noise, so that which directions lead is decided by the fit, not by the targets.
    rng = np.random.default_rng(0)
    x = _sparse_random(0, (300, 150), density=0.1)
    y = x @ (rng.standard_normal((150, 20)) * 0.8 ** np.arange(20) @ rng.standard_normal((20, 150))) * 0.2
    y = (y + rng.standard_normal(y.shape) * np.geomspace(0.1, 8, 150)).astype(np.float32)
    found = reduced_rank_ridge(sparse.csr_array(x), sparse.csr_array(y), rank=8, ridge=20.0, seed=0)
    coefficients = np.linalg.solve(x.T.astype(float) @ x + 20.0 * np.eye(150), x.T.astype(float) @ y)
    best = np.sqrt((np.linalg.svd(x @ coefficients, compute_uv=False)[:8] ** 2).sum())
    assert 0.97 * best < np.linalg.norm(x @ coefficients @ found.outputs) < 1.001 * best


def _of_unequal_items(seed, shape, count):
    """Rows of length one with ``count`` draws of columns, of which the first are drawn most."""
    shares = 1 / np.arange(1, shape[1] + 1)
    drawn = np.random.default_rng(seed).choice(shape[1], (shape[0], count), p=shares / shares.sum())
    rows = np.log1p([np.bincount(row, minlength=shape[1]) for row in drawn])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("rank", "ridge"), [(10, 10.0), (384, 10.0), (384, 100.0)])
def test_the_directions_are_orthonormal_up_to_the_rank_of_the_data(rank, ridge):
    x, y = (sparse.csr_array(_of_unequal_items(seed, (600, 3000), count)) for seed, count in ((0, 30), (1, 10)))
    found = reduced_rank_ridge(x, y, rank=rank, ridge=ridge, seed=0)
    np.testing.assert_allclose(found.outputs.T @ found.outputs, np.eye(found.outputs.shape[1]), atol=1e-4)


def test_nothing_has_no_factors():
    nothing = sparse.csr_array(np.zeros((0, 5), np.float32))
    assert item_factors(nothing, 3, seed=0).shape == (5, 0)
    assert reduced_rank_ridge(nothing, nothing, rank=3, ridge=1.0, seed=0).inputs.shape == (5, 0)


def test_what_cannot_be_explained_has_no_columns():
    x, y = _sparse_random(0, (30, 12)), _sparse_random(1, (30, 2)) @ _sparse_random(2, (2, 20), density=1.0)
    found = _fitted(x, y, rank=5)
    assert found.inputs.shape == (12, 2)
    assert found.outputs.shape == (20, 2)
    nothing = _fitted(np.zeros((30, 12), np.float32), y, rank=5)
    assert nothing.outputs.shape == (20, 0)
    assert nothing.inputs.shape == (12, 0)
