"""What a model's memory is filled with, as of the end of training: a linear map from histories to items."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.evaluation.events import EventLog, Windows, affinities
from conversion_retrieval.evaluation.window import EvaluationWindow, history_windows, log_of
from conversion_retrieval.factorization import item_factors, reduced_rank_ridge
from conversion_retrieval.features.config import SplitConfig
from conversion_retrieval.features.dataset import FeatureDataset, Split
from conversion_retrieval.features.windows import DAY
from conversion_retrieval.model.memory import Memory
from conversion_retrieval.model.two_tower import TASKS
from conversion_retrieval.progress import say
from conversion_retrieval.training.examples import Examples

MAX_QUERIES: Final = 20_000
# Counts of positives to this power divide the items' targets: unweighted, a few popular items would be all that the
# leading directions explain. How it was chosen: docs/experiments.md.
POPULARITY_POWER: Final = 0.35


def fill_memory(
    memory: Memory, dataset: FeatureDataset, parts: Sequence[Examples], config: PipelineConfig, *, before: str
) -> None:
    """Fit the map that ``config.model.memory_fit`` names; ``Memory.queries`` says what histories are mapped.

    It is fitted to the positives of all ``parts``, or to the histories as of the start of the split called ``before``.
    """
    if config.model.memory_fit == "svd":
        last = max(int(examples.split.time.max(initial=0)) for examples in parts)
        before_time = EvaluationWindow.of(dataset, before).start or last
        _fit_to_histories(memory, dataset, before_time, seed=config.model.seed)
    else:
        _fit_to_positives(memory, dataset, parts, config)


def _fit_to_histories(memory: Memory, dataset: FeatureDataset, before: int, *, seed: int) -> None:
    """The leading factors of what all users had before a time, on both sides.

    They map a history to itself as nearly as so many factors can (Eckart and Young, 1936).
    """
    log = _log_of_ids(dataset)
    matrix = _histories(log, log.users_before(before), half_life_days=memory.half_life_days)
    count = memory.factors.shape[1]
    _release(memory.factors)
    found = item_factors(matrix, count, seed=seed)
    say(f"memory: {found.shape[1]} factors of {matrix.nnz:,} user-item pairs")
    _store(found, memory.factors)


def _fit_to_positives(
    memory: Memory, dataset: FeatureDataset, parts: Sequence[Examples], config: PipelineConfig
) -> None:
    """The positives of the newest queries regressed on their histories; conversions if there are any."""
    histories, targets = _regression(dataset, parts, config)
    rank, ridge, seed = memory.factors.shape[1], config.model.memory_ridge, config.model.seed
    for factors in (memory.factors, memory.history_factors):
        _release(factors)
    found = reduced_rank_ridge(histories, targets, rank=rank, ridge=ridge, seed=seed)
    say(f"memory: a map of rank {found.outputs.shape[1]} from {histories.shape[0]:,} histories to what followed them")
    outputs, inputs = found.outputs, found.inputs
    del found
    _store(outputs, memory.factors)
    del outputs  # not beside the other table
    _store(inputs, memory.history_factors)


def _regression(
    dataset: FeatureDataset, parts: Sequence[Examples], config: PipelineConfig
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Histories [R, N] and what followed them [R, N], of the newest queries of all ``parts``."""
    log, width = _log_of_ids(dataset), dataset.spec.history_length
    task = min(int(examples.positives.task.min(initial=len(TASKS))) for examples in parts)
    cells = [
        _positive_cells(examples, dataset, task, repeated=_repeated(examples.split, [p.split for p in parts[n + 1 :]]))
        for n, examples in enumerate(parts)
    ]
    starts = np.cumsum([0, *(len(examples.split) for examples in parts)])
    newest = newest_apart(
        np.concatenate([examples.split.time for examples in parts]),
        np.concatenate([np.unique(query) + start for (query, _), start in zip(cells, starts[:-1], strict=True)]),
        apart=_label_span(config.split),
        count=MAX_QUERIES,
        seed=config.model.seed,
    )
    histories, rows, targets = [], [], []
    for number, (examples, (query, target)) in enumerate(zip(parts, cells, strict=True)):
        low, high = np.searchsorted(newest, starts[number : number + 2])
        chosen = newest[low:high] - starts[number]
        windows = history_windows(log, examples.split, examples.split.history_end).rows(chosen).newest(width)
        histories.append(_histories(log, windows, half_life_days=config.model.memory_half_life_days))
        kept = np.isin(query, chosen)
        rows.append(low + np.searchsorted(chosen, query[kept]))
        targets.append(target[kept])
    shape = (len(newest), log.num_items)
    return sparse.vstack(histories).tocsr(), _targets((np.concatenate(rows), np.concatenate(targets)), shape)


def _positive_cells(
    examples: Examples, dataset: FeatureDataset, task: int, *, repeated: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(query, id code less 1) of each positive of the task, but for ``repeated`` [Q] queries."""
    positives, query = examples.positives, examples.positives.query
    code = dataset.items.id_code[positives.item]
    chosen = (positives.task == task) & (code > 0) & ~repeated[query]
    return query[chosen], code[chosen] - 1


def _repeated(split: Split, later: Sequence[Split]) -> NDArray[np.bool_]:
    """Which queries a later split has again, with the labels that came in late beside the earlier ones, [Q]."""
    if not later:
        return np.zeros(len(split), bool)
    names = ("user", "time", "surface", "context_item")
    keys = [pd.MultiIndex.from_arrays([getattr(s, name) for name in names]) for s in (split, *later)]
    found = np.zeros(len(split), bool)
    for others in keys[1:]:
        found |= keys[0].isin(others)
    return found


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
    """The model's histories with id codes less 1 for items, as the memory knows them: hashed ids may share a code."""
    log, unknown = log_of(dataset.events, dataset.num_items), np.zeros(1, np.int32)
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


def _release(factors: torch.Tensor) -> None:
    """Give a table's memory back until ``_store`` fills it: while new factors are found nobody reads the old ones."""
    factors.untyped_storage().resize_(0)


def _store(found: NDArray[np.float32], factors: torch.Tensor) -> None:
    """Fewer factors than asked for leave zeros, as does the unknown id."""
    factors.untyped_storage().resize_(factors.numel() * factors.element_size())
    factors.zero_()
    factors[1:, : found.shape[1]] = torch.from_numpy(found)
