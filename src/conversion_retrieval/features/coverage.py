"""How much of each feature is there: the share of rows that a spec sees as missing or unknown."""

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.features.inputs import EntityTable
from conversion_retrieval.features.spec import EntitySpec


def missing_shares(spec: EntitySpec, table: EntityTable) -> dict[str, float | None]:
    """For each column the share of rows without a usable value, ``None`` for an empty table.

    Categorical: null or outside the vocabulary; numeric: null, NaN or infinite; embedding: null or all zeros.
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
