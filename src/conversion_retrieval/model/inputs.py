"""Batches as tensors on the model's device, and the catalogue as tensors outside the model's state."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conversion_retrieval.features.inputs import EntityTable, QueryArrays


@dataclass(frozen=True, kw_only=True)
class EntityInputs:
    """Columns of M entities: ``categorical`` [M, K], ``numeric`` [M, F], ``embeddings`` of [M, d], ``id_code`` [M]."""

    categorical: Tensor
    numeric: Tensor
    embeddings: dict[str, Tensor]
    id_code: Tensor

    def __len__(self) -> int:
        """The number of entities."""
        return len(self.id_code)

    @classmethod
    def of(cls, table: EntityTable, device: torch.device) -> "EntityInputs":
        """Move an encoded table to the device."""
        return cls(
            categorical=as_tensor(table.categorical, device, torch.int64),
            numeric=as_tensor(table.numeric, device, torch.float32),
            embeddings={n: as_tensor(v, device, torch.float32) for n, v in sorted(table.embeddings.items())},
            id_code=as_tensor(table.id_code, device, torch.int64),
        )

    def rows(self, index: Tensor | slice) -> "EntityInputs":
        """The entities at ``index``; a slice copies nothing."""

        def take(values: Tensor) -> Tensor:
            return values[index] if isinstance(index, slice) else values.index_select(0, index)

        return EntityInputs(
            categorical=take(self.categorical),
            numeric=take(self.numeric),
            embeddings={name: take(values) for name, values in self.embeddings.items()},
            id_code=take(self.id_code),
        )


def item_inputs(table: EntityTable, device: torch.device) -> EntityInputs:
    """The catalogue on the device with one row more: the unknown item, which row -1 of an index means."""
    return EntityInputs.of(_with_unknown(table), device)


def _with_unknown(table: EntityTable) -> EntityTable:
    def extend(values: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([values, np.zeros((1, *values.shape[1:]), values.dtype)])

    return EntityTable(
        categorical=extend(table.categorical),
        numeric=extend(table.numeric),
        embeddings={name: extend(values) for name, values in table.embeddings.items()},
        id_code=extend(table.id_code),
    )


@dataclass(frozen=True, kw_only=True)
class QueryInputs:
    """A batch of B queries with histories of L events, as ``features.inputs.QueryArrays`` but on the device.

    ``context_item`` [B] and ``history_item`` [B, L] are rows of the item embeddings that ``TwoTower.encode_queries``
    is given; none and unknown are that table's last row.
    """

    surface: Tensor
    context_item: Tensor
    context_embedding: Tensor
    users: EntityInputs
    user_aggregates: Tensor
    history_item: Tensor
    history_action: Tensor
    history_surface: Tensor
    history_age_days: Tensor

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.surface)

    @classmethod
    def of(cls, arrays: QueryArrays, num_items: int, device: torch.device) -> "QueryInputs":
        """Move a batch to the device; ``num_items`` is the row of the unknown item.

        Columns of padding that the whole batch shares are dropped first: they never change a query vector.
        """
        start = _shared_padding(arrays.history_action)
        return cls(
            surface=as_tensor(arrays.surface, device, torch.int64),
            context_item=as_tensor(known_rows(arrays.context_item, num_items), device, torch.int64),
            context_embedding=as_tensor(arrays.context_embedding, device, torch.float32),
            users=EntityInputs.of(arrays.users, device),
            user_aggregates=as_tensor(arrays.user_aggregates, device, torch.float32),
            history_item=as_tensor(known_rows(arrays.history_item[:, start:], num_items), device, torch.int64),
            history_action=as_tensor(arrays.history_action[:, start:], device, torch.int64),
            history_surface=as_tensor(arrays.history_surface[:, start:], device, torch.int64),
            history_age_days=as_tensor(arrays.history_age_days[:, start:], device, torch.float32),
        )


def known_rows(index: NDArray[np.integer], unknown: int) -> NDArray[np.int64]:
    """``index`` with -1 replaced by the row of the unknown item."""
    return np.where(index < 0, unknown, index).astype(np.int64, copy=False)


def _shared_padding(history_action: NDArray[np.integer]) -> int:
    used = np.flatnonzero(history_action.any(axis=0))
    return int(used[0]) if len(used) else history_action.shape[1]


def as_tensor(values: NDArray[np.generic], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor on the device; copied through pinned memory where the device is a GPU."""
    values = np.ascontiguousarray(values)
    if not values.flags.writeable:  # memory-mapped: torch tensors are always writable
        values = values.copy()
    tensor = torch.from_numpy(values).to(dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
