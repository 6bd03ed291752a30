"""How much of each feature is there: the share of rows, or of queries, that a spec sees as missing or unknown."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conversion_retrieval.features.inputs import EntityTable, QueryArrays
from conversion_retrieval.features.spec import EntitySpec


def missing_shares(spec: EntitySpec, table: EntityTable) -> dict[str, float | None]:
    """For each column the share of rows without a usable value, ``None`` for an empty table.

    Categorical: null or outside the vocabulary; numeric: null, NaN, infinite or out of float32's range;
    embedding: null or all zeros.
    """
    width = len(spec.numeric)
    gone: dict[str, NDArray[np.bool_]] = {
        **{c.name: table.categorical[:, i] == 0 for i, c in enumerate(spec.categorical)},
        **{c.name: table.numeric[:, width + i] > 0 for i, c in enumerate(spec.numeric)},
        **{c.name: np.all(table.embeddings[c.name] == 0, axis=1) for c in spec.embeddings},
    }
    return {c.name: float(gone[c.name].mean()) if len(gone[c.name]) else None for c in spec.columns}


def coverage(spec: EntitySpec, table: EntityTable, seen: NDArray[np.bool_]) -> dict[str, dict[str, float | None]]:
    """``missing_shares`` of the rows that training saw (``train``) and of all that are served (``serve``)."""
    return {
        "train": missing_shares(spec, table.rows(np.flatnonzero(seen))),
        "serve": missing_shares(spec, table),
    }


def query_missing_shares(queries: QueryArrays) -> dict[str, float | None]:
    """For each part of a query the share of queries without it, ``None`` without queries.

    Surface: null or not seen in training; subject item and context embedding: none; history: no event.
    """
    gone: dict[str, NDArray[np.bool_]] = {
        "surface": queries.surface == 0,
        "context_item": queries.context_item < 0,
        "context_embedding": ~np.any(queries.context_embedding, axis=1),
        "history": ~np.any(queries.history_action, axis=1),
    }
    return {name: float(missing.mean()) if len(missing) else None for name, missing in gone.items()}


def stored_query_shares(
    split_dir: Path,
    *,
    history_offsets: NDArray[np.int64],
    held_before: NDArray[np.int64],
    known_surface: NDArray[np.bool_],
    context_dim: int,
) -> dict[str, float | None]:
    """``query_missing_shares`` of a split's queries as they are stored, read by row group.

    ``history_offsets`` [U + 1] are those of ``events/``, ``held_before`` [E + 1] counts the events before each position
    that a model's histories hold; ``known_surface`` tells which stored codes training saw, ``context_dim`` the length
    of the context embeddings that it saw.
    """
    totals, count = dict.fromkeys(("surface", "context_item", "context_embedding", "history"), 0), 0
    vectors = np.load(split_dir / "context_embeddings.npy", mmap_mode="r", allow_pickle=False)
    with pq.ParquetFile(split_dir / "queries.parquet") as file:
        for group in range(file.num_row_groups):
            columns = ["user", "surface", "context_item", "context_embedding", "history_end"]
            rows = {n: c.to_numpy() for n, c in zip(columns, file.read_row_group(group, columns=columns), strict=True)}
            totals["surface"] += int(np.sum(~known_surface[rows["surface"]]))
            totals["context_item"] += int(np.sum(rows["context_item"] < 0))
            embedded = rows["context_embedding"][rows["context_embedding"] >= 0]
            read = np.any(vectors[embedded], axis=1) if vectors.shape[1] == context_dim else np.zeros(1, bool)
            totals["context_embedding"] += len(rows["user"]) - int(np.sum(read))
            first = history_offsets[rows["user"]]
            totals["history"] += int(np.sum(held_before[rows["history_end"]] == held_before[first]))
            count += len(rows["user"])
    return {name: total / count if count else None for name, total in totals.items()}
