"""The Parquet files of an evaluation: every positive's rank by every model, and its slice values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conversion_retrieval.evaluation.ranking import Ranks
from conversion_retrieval.evaluation.window import EvaluationWindow

RANKS_SCHEMA: Final = pa.schema(
    [
        ("model", pa.string()),
        ("query", pa.int64()),
        ("user", pa.int32()),
        ("item", pa.int32()),
        ("event_type", pa.int8()),
        ("task", pa.int8()),
        ("new_to_user", pa.bool_()),
        ("advertiser", pa.int32()),
        ("rank", pa.int32()),
        ("rank_without_seen", pa.int32()),
    ]
)


def write_ranks(path: Path, window: EvaluationWindow, ranks: Mapping[str, Ranks]) -> None:
    """One row a (model, positive), model after model; ``rank_without_seen`` is -1 for an item in the user's history."""
    with pq.ParquetWriter(path, RANKS_SCHEMA) as writer:
        for model, found in ranks.items():
            columns = {"rank": found.full, "rank_without_seen": found.without_removed}
            writer.write_table(rank_table(model, window, columns))


def rank_table(model: str, window: EvaluationWindow, ranks: Mapping[str, NDArray[np.int32]]) -> pa.Table:
    """A model's ranks [P] beside the positives that they are of."""
    positives = window.split.positives
    columns = {
        "model": pa.repeat(pa.scalar(model), len(positives)),
        "query": positives.query,
        "user": window.split.user[positives.query],
        "item": positives.item,
        "event_type": positives.event_type,
        "task": positives.task,
        "new_to_user": positives.new_to_user,
        "advertiser": window.dataset.item_advertiser[positives.item],
        **ranks,
    }
    return pa.table(columns, schema=pa.schema([field for field in RANKS_SCHEMA if field.name in columns]))


def write_slices(path: Path, window: EvaluationWindow) -> None:
    """One row a positive: its key and its value in every slice family."""
    positives = window.split.positives
    keys = {"query": positives.query, "item": positives.item, "event_type": positives.event_type}
    values = {name: pa.array(column).dictionary_encode() for name, column in window.slices.items()}
    assert not set(keys) & set(values), "a slice family would replace a key"
    pq.write_table(pa.table({**keys, **values}), path)
