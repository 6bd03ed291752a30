"""Numbers for the distinct items of a batch, at a cost that depends on the batch and not on the catalogue."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.training.examples import Indices


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """Numbers items below ``num_items``, and the unknown one, -1.

    The array of all items is kept from batch to batch and never cleared: only what was assigned last may be read. Two
    lists that are asked for in turn need a numbering each.
    """

    num_items: int

    @cached_property
    def _number(self) -> NDArray[np.int32]:
        return np.zeros(self.num_items + 1, np.int32)  # the last is that of the unknown item

    def distinct(self, *items: NDArray[np.integer]) -> Indices:
        """The known items among all of ``items``, of any shapes, once each and sorted. Ends what was assigned."""
        flat = np.concatenate([part.reshape(-1) for part in items])
        place = np.arange(len(flat), dtype=np.int32)
        self._number[flat] = place
        # Of an item's places exactly one was written last.
        once = flat[self._number[flat] == place].astype(np.int64, copy=False)
        once.sort()
        known: Indices = once[np.searchsorted(once, 0) :]
        return known

    def assign(self, items: Indices) -> None:
        """Number ``items``, none of them twice, by where they stand; the unknown item is -1."""
        self._number[items], self._number[-1] = np.arange(len(items)), -1

    def of(self, items: NDArray[np.integer]) -> Indices:
        """The numbers of ``items``, all of them assigned or unknown, in their shape."""
        numbers: Indices = self._number[items].astype(np.int64)
        return numbers
