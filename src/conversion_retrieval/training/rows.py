"""The rows of a batch's softmax: one a query where all its positives share their negatives, else one a positive."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conversion_retrieval.losses.labels import Positives
from conversion_retrieval.losses.partition import Pairs
from conversion_retrieval.model.inputs import as_tensor
from conversion_retrieval.model.two_tower import TASKS
from conversion_retrieval.training.examples import Indices, expand

SameUser = Callable[[Indices, Indices], tuple[Indices, Indices]]
"""(query, code) of positives -> (query, code) for every query and every code of a positive of the query's user."""


@dataclass(frozen=True, kw_only=True)
class BatchPositives:
    """All positives of a batch, sorted by ``owner`` [P], the query's position in the batch."""

    owner: Indices
    item: Indices
    task: NDArray[np.int8]
    weight: NDArray[np.float32]


class SoftmaxRows(Protocol):
    """Maps a batch's queries and positives to this process's rows; queries start..stop are this process's."""

    def row_query(self) -> Indices | None:
        """The query (from 0 in this process) of each row, None where rows are the queries."""

    def row_of_positive(self) -> tuple[Indices, Indices]:
        """Which positives are this process's, and the row of each."""

    def spread(self, query: Indices, code: Indices) -> tuple[Indices, Indices]:
        """(query, code) pairs of the batch as (row, code) pairs of this process."""

    def excluded(self, code: Indices, same_user: SameUser) -> tuple[Indices, Indices]:
        """(row, code) pairs that are not negatives, given the code of each positive."""


@dataclass(frozen=True, kw_only=True)
class QueryRows:
    """One row a query: all positives of its user are masked for it."""

    owner: Indices
    start: int
    stop: int

    def row_query(self) -> None:
        """Rows are the queries."""
        return

    def row_of_positive(self) -> tuple[Indices, Indices]:
        """The query's row."""
        own = np.flatnonzero((self.owner >= self.start) & (self.owner < self.stop))
        return own, self.owner[own] - self.start

    def spread(self, query: Indices, code: Indices) -> tuple[Indices, Indices]:
        """Keep this process's queries."""
        own = (query >= self.start) & (query < self.stop)
        return query[own] - self.start, code[own]

    def excluded(self, code: Indices, same_user: SameUser) -> tuple[Indices, Indices]:
        """All positives of the query's user."""
        return self.spread(*same_user(self.owner, code))


@dataclass(frozen=True, kw_only=True)
class PositiveRows:
    """One row a positive, with masks of its own: slower, needed only to leave a mask out."""

    owner: Indices
    start: int
    stop: int
    mask_own: bool
    mask_same_user: bool

    @cached_property
    def _bounds(self) -> Indices:
        """Rows of local query q are ``bounds[q]:bounds[q + 1]``."""
        queries = np.arange(self.start, self.stop + 1)
        bounds: Indices = np.searchsorted(self.owner, queries) - np.searchsorted(self.owner, self.start)
        return bounds

    def row_query(self) -> Indices:
        """The query of each row."""
        return np.repeat(np.arange(self.stop - self.start), np.diff(self._bounds))

    def row_of_positive(self) -> tuple[Indices, Indices]:
        """Each positive is its own row."""
        own = np.flatnonzero((self.owner >= self.start) & (self.owner < self.stop))
        return own, np.arange(len(own))

    def spread(self, query: Indices, code: Indices) -> tuple[Indices, Indices]:
        """To every row of the query."""
        own = (query >= self.start) & (query < self.stop)
        pair, row = expand(self._bounds, query[own] - self.start)
        return row, code[own][pair]

    def excluded(self, code: Indices, same_user: SameUser) -> tuple[Indices, Indices]:
        """The row's own positive, the user's others, or neither."""
        own_positive, own_row = self.row_of_positive()
        own_code = code[own_positive]
        if not self.mask_same_user:
            return (own_row, own_code) if self.mask_own else (own_row[:0], own_code[:0])
        row, excluded = self.spread(*same_user(self.owner, code))
        kept = np.ones(len(row), bool) if self.mask_own else excluded != own_code[row]
        return row[kept], excluded[kept]


def pairs_tensor(row: Indices, code: Indices, device: torch.device) -> Pairs:
    """Pairs on the device, sorted as the softmax wants them."""
    order = np.argsort(code, kind="stable")
    return Pairs(row=as_tensor(row[order], device, torch.int64), candidate=as_tensor(code[order], device, torch.int64))


def positives_tensor(
    rows: SoftmaxRows, own: BatchPositives, candidate: Indices, chosen: NDArray[np.bool_], device: torch.device
) -> Positives:
    """The ``chosen`` positives of this process, each pointing at its ``candidate``."""
    mine, row = rows.row_of_positive()
    kept = chosen[mine]
    return Positives(
        row=as_tensor(row[kept], device, torch.int64),
        candidate=as_tensor(candidate[mine][kept], device, torch.int64),
        weight=as_tensor(own.weight[mine][kept], device, torch.float32),
    )


def query_tensor(rows: SoftmaxRows, device: torch.device) -> Tensor | None:
    """``SoftmaxRows.row_query`` on the device."""
    query = rows.row_query()
    return None if query is None else as_tensor(query, device, torch.int64)


def of_task(own: BatchPositives, task: str) -> NDArray[np.bool_]:
    """Which positives are of a task."""
    return np.asarray(own.task == TASKS.index(task))
