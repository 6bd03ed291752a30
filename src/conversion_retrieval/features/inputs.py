"""What the towers see, as plain arrays: gathered by the same code in training, evaluation and serving."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class EntityTable:
    """Encoded columns of all items or all users, one row each.

    ``categorical`` [N, K] int32 codes, 0 for missing or unseen; ``numeric`` [N, M] float32, normalised with the
    training window's statistics, all values first (0 where missing), then an indicator of missing for each;
    ``embeddings`` name -> [N, d] float32, zeros where missing; ``id_code`` [N] int64 row of the id embedding table,
    0 for unknown ids.
    """

    categorical: NDArray[np.int32]
    numeric: NDArray[np.float32]
    embeddings: dict[str, NDArray[np.float32]]
    id_code: NDArray[np.int64]

    def rows(self, index: NDArray[np.integer]) -> "EntityTable":
        """The table at ``index``; -1 gives the row of an unknown entity: all zeros."""
        known = index >= 0

        def take(values: NDArray[Scalar]) -> NDArray[Scalar]:
            taken = (
                values[np.where(known, index, 0)]
                if len(values)
                else np.zeros((len(index), *values.shape[1:]), values.dtype)
            )
            taken[~known] = 0
            return taken

        return EntityTable(
            categorical=take(self.categorical),
            numeric=take(self.numeric),
            embeddings={name: take(values) for name, values in self.embeddings.items()},
            id_code=take(self.id_code),
        )


@dataclass(frozen=True, kw_only=True)
class QueryArrays:
    """A batch of B queries with histories of L events.

    History columns run from the oldest to the newest event, padded on the left: action 0 and item -1 are padding;
    an event on an item outside the catalogue has item -1 and its action kept.
    """

    surface: NDArray[np.int64]  # [B], 0 unknown
    context_item: NDArray[np.int64]  # [B] row of the item table, -1 none
    context_embedding: NDArray[np.float32]  # [B, C], zeros where none
    users: EntityTable  # B rows
    user_aggregates: NDArray[np.float32]  # [B, A], normalised
    history_item: NDArray[np.int64]  # [B, L]
    history_action: NDArray[np.int64]  # [B, L]
    history_surface: NDArray[np.int64]  # [B, L]
    history_age_days: NDArray[np.float32]  # [B, L], query time minus event time, 0 in padding

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.surface)
