"""What a model's memory is filled with: factors of the users-by-items matrix as of the end of training."""

import numpy as np
import torch
from numpy.typing import NDArray

from conversion_retrieval.evaluation.events import affinities
from conversion_retrieval.evaluation.window import EvaluationWindow
from conversion_retrieval.factorization import item_factors
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.model.memory import Memory
from conversion_retrieval.progress import say


def fill_memory(memory: Memory, dataset: FeatureDataset, *, seed: int) -> None:
    """Factorise the histories known before the validation window; see ``Memory.queries`` for the matrix' entries."""
    window = EvaluationWindow.of(dataset, "validation")
    before = window.start or int(dataset.split("train").time.max(initial=0))
    matrix = affinities(window.log, window.log.users_before(before), half_life_days=memory.half_life_days)
    np.log1p(matrix.data, out=matrix.data)
    norms = np.sqrt(np.maximum(matrix.multiply(matrix).sum(axis=1), 1e-12))
    matrix.data /= np.repeat(norms, np.diff(matrix.indptr)).astype(np.float32)
    found = item_factors(matrix, memory.factors.shape[1], seed=seed)
    say(f"memory: {found.shape[1]} factors of {matrix.nnz:,} user-item pairs")
    memory.factors.copy_(_by_code(found, dataset.items.id_code, memory.factors))


def _by_code(found: NDArray[np.float32], id_code: NDArray[np.int64], factors: torch.Tensor) -> torch.Tensor:
    """Rows of the catalogue to rows of the id table; fewer factors than asked for leave zeros, unknown ids too."""
    filled = np.zeros(tuple(factors.shape), np.float32)
    known = id_code > 0
    filled[id_code[known], : found.shape[1]] = found[known]
    return torch.from_numpy(filled)
