"""What a model's memory is filled with, as of the end of training: a linear map from histories to items."""

from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.evaluation.events import EventLog, Windows, affinities
from conversion_retrieval.evaluation.window import EvaluationWindow, event_log, history_windows
from conversion_retrieval.factorization import item_factors, reduced_rank_ridge
from conversion_retrieval.features.config import SplitConfig
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.windows import DAY
from conversion_retrieval.model.memory import Memory
from conversion_retrieval.progress import say
from conversion_retrieval.training.examples import Examples

MAX_QUERIES: Final = 20_000
# Counts of positives to this power divide the items' targets: unweighted, a few popular items would be all that the
# leading directions explain. How it was chosen: docs/experiments.md.
POPULARITY_POWER: Final = 0.35


def fill_memory(memory: Memory, dataset: FeatureDataset, examples: Examples, config: PipelineConfig) -> None:
    """Fit the map that ``config.model.memory_fit`` names; ``Memory.queries`` says what histories are mapped."""
    if config.model.memory_fit == "svd":
        _fit_to_histories(memory, dataset, seed=config.model.seed)
    else:
        _fit_to_positives(memory, dataset, examples, config)


def _fit_to_histories(memory: Memory, dataset: FeatureDataset, *, seed: int) -> None:
    """The leading factors of what all users had before the validation window, on both sides.

    They map a history to itself as nearly as so many factors can (Eckart and Young, 1936).
    """
    log = _log_of_ids(dataset)
    before = EvaluationWindow.of(dataset, "validation").start or int(dataset.split("train").time.max(initial=0))
    matrix = _histories(log, log.users_before(before), half_life_days=memory.half_life_days)
    found = item_factors(matrix, memory.factors.shape[1], seed=seed)
    say(f"memory: {found.shape[1]} factors of {matrix.nnz:,} user-item pairs")
    _store(found, memory.factors)


def _fit_to_positives(memory: Memory, dataset: FeatureDataset, examples: Examples, config: PipelineConfig) -> None:
    """The positives of the newest training queries regressed on their histories; conversions if there are any."""
    split, positives = examples.split, examples.positives
    code = dataset.items.id_code[positives.item]
    chosen = positives.aimed_at & (code > 0)
    query, target = positives.query[chosen], code[chosen] - 1
    rows = newest_apart(
        split.time, np.unique(query), apart=_label_span(config.split), count=MAX_QUERIES, seed=config.model.seed
    )
    kept = np.isin(query, rows)
    log = _log_of_ids(dataset)
    windows = history_windows(log, split).rows(rows).newest(dataset.spec.history_length)
    found = reduced_rank_ridge(
        _histories(log, windows, half_life_days=memory.half_life_days),
        _targets((np.searchsorted(rows, query[kept]), target[kept]), (len(rows), log.num_items)),
        rank=memory.factors.shape[1],
        ridge=config.model.memory_ridge,
        seed=config.model.seed,
    )
    say(f"memory: a map of rank {found.outputs.shape[1]} from {len(rows):,} histories to what followed them")
    _store(found.outputs, memory.factors)
    _store(found.inputs, memory.history_factors)


def newest_apart(
    time: NDArray[np.int64], queries: NDArray[np.int64], *, apart: int, count: int, seed: int = 0
) -> NDArray[np.int64]:
    """At most ``count`` of ``queries`` (rows of ``time`` [Q]), the newest of moments at least ``apart`` apart; sorted.

    Labels of windows that overlap would count twice. Of the last moment that has room a random part is taken.
    """
    moments = np.unique(time[queries])
    if apart:
        taken, left = [], len(moments)
        while left:
            taken.append(moments[left - 1])
            left = int(np.searchsorted(moments, taken[-1] - apart, side="right"))
        moments = np.array(taken, np.int64)
    found = queries[np.isin(time[queries], moments)]
    shuffled = np.random.default_rng(seed).permutation(found)
    return np.sort(shuffled[np.argsort(-time[shuffled], kind="stable")[:count]])


def _label_span(config: SplitConfig) -> int:
    """For how long after a training query its labels are gathered, where that is a fixed window; microseconds."""
    return round(config.training_window_days * DAY) if config.training_queries == "window" else 0


def _log_of_ids(dataset: FeatureDataset) -> EventLog:
    """The event log with id codes less 1 for items, as the memory knows them: hashed ids may share a code."""
    log, unknown = event_log(dataset), np.zeros(1, np.int32)
    codes = np.concatenate([dataset.items.id_code.astype(np.int32), unknown])  # item -1 is the last
    return replace(log, item=codes[log.item] - 1, num_items=dataset.spec.item_ids.rows - 1)


def _histories(log: EventLog, windows: Windows, *, half_life_days: float) -> sparse.csr_array:
    """Rows as ``Memory.queries`` weighs histories: decayed log counts, scaled to length one."""
    blocks = [affinities(log, block, half_life_days=half_life_days) for block in windows.blocks()]
    matrix = sparse.vstack(blocks).tocsr()
    np.log1p(matrix.data, out=matrix.data)
    norms = np.sqrt(np.maximum(matrix.multiply(matrix).sum(axis=1), 1e-24))
    matrix.data /= np.repeat(norms, np.diff(matrix.indptr)).astype(np.float32)
    return matrix


def _targets(cells: tuple[NDArray[np.int64], NDArray[np.int64]], shape: tuple[int, int]) -> sparse.csr_array:
    """1 a query and positive item, over the item's count to ``POPULARITY_POWER``; of mean 1 over the positives."""
    matrix = sparse.csr_array((np.ones(len(cells[0]), np.float32), cells), shape=shape)
    matrix.data[:] = 1.0  # an item in a cart and then bought is one positive
    counts = np.bincount(matrix.indices, minlength=shape[1])
    weights = np.maximum(counts, 1) ** -POPULARITY_POWER
    weights *= counts.sum() / max(float(counts @ weights), 1e-12)
    matrix.data *= weights[matrix.indices].astype(np.float32)
    return matrix


def _store(found: NDArray[np.float32], factors: torch.Tensor) -> None:
    """Fewer factors than asked for leave zeros, as does the unknown id."""
    factors[1:, : found.shape[1]] = torch.from_numpy(found)
