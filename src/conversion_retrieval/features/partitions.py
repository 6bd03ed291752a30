"""The work on one range of users.

A partition reads its own rows, writes its results as plain arrays into a scratch directory and returns nothing
large, so the same function serves threads and machines (which must share that directory). Nothing in a result
depends on where the partition's borders lie.
"""

import shutil
import uuid
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from conversion_retrieval.features.attribution import LabelledEvents, is_conversion, label_events
from conversion_retrieval.features.config import FeatureConfig, LabelConfig, SplitConfig
from conversion_retrieval.features.events import EventBlock, ItemIndex, read_block
from conversion_retrieval.features.grouped import mixed_hash
from conversion_retrieval.features.hard_negatives import hard_negatives, negatives_window
from conversion_retrieval.features.performance import count_in_bins
from conversion_retrieval.features.queries import (
    Positives,
    Queries,
    context_vectors,
    group_queries,
    positives,
    query_mode,
    split_positives,
)
from conversion_retrieval.features.timeline import Timeline, timeline, user_aggregates
from conversion_retrieval.features.windows import FOREVER, SPLITS, TRAINING_SPLITS, SplitWindows
from conversion_retrieval.schema import EVENT_TYPES, KNOWN_EVENTS

EVENTS_PER_PARTITION: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every partition needs to know; small enough to send along."""

    files: tuple[Path, ...]
    item_ids: pa.Array
    advertiser: NDArray[np.int32]
    surfaces: tuple[str, ...]
    windows: SplitWindows
    edges: NDArray[np.int64]
    duration_cap: float
    labels: LabelConfig
    split: SplitConfig
    features: FeatureConfig
    stored_events: tuple[str, ...]
    scratch_dir: Path

    @property
    def items(self) -> ItemIndex:
        """The catalogue's ids and advertisers."""
        return ItemIndex(ids=self.item_ids, advertiser=self.advertiser)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Consecutive users: their event spans and their rows in the users table."""

    index: int
    event_offsets: NDArray[np.int64]
    user_rows: NDArray[np.int64]


def make_partitions(
    event_offsets: NDArray[np.int64], user_rows: NDArray[np.int64], num_partitions: int
) -> list[Partition]:
    """Cut the users into ranges with about equally many events; 0 chooses one for each million events."""
    total = int(event_offsets[-1])
    wanted = num_partitions or -(-total // EVENTS_PER_PARTITION)
    targets = total * np.arange(1, wanted) / wanted
    cuts = np.unique(np.concatenate([[0], np.searchsorted(event_offsets, targets), [len(user_rows)]]))
    return [
        Partition(index=i, event_offsets=event_offsets[low : high + 1], user_rows=user_rows[low:high])
        for i, (low, high) in enumerate(pairwise(cuts))
    ]


def build_partition(plan: Plan, partition: Partition) -> Path:
    """Do all work on one partition's users; returns the directory that holds the arrays.

    It appears when complete. Done twice, as a cluster does after losing a worker, it is there once.
    """
    directory = plan.scratch_dir / f"{partition.index:06d}"
    working_dir = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.tmp")
    working_dir.mkdir()
    _build(plan, partition, working_dir)
    try:
        working_dir.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise
        shutil.rmtree(working_dir)
    return directory


def _build(plan: Plan, partition: Partition, directory: Path) -> None:
    block = read_block(plan.files, partition.event_offsets, plan.items, plan.surfaces)
    block = block.select(block.available < plan.windows.known_until)
    known = timeline(block)
    history = known.only(plan.stored_events)
    had = history if set(plan.stored_events) == set(KNOWN_EVENTS) else known.only(KNOWN_EVENTS)
    _save_history(directory, history)
    _save_item_counts(directory, block, known, plan)
    labelled = label_events(block, plan.advertiser, plan.labels)
    _save_conversions(directory, block, labelled)
    for name in SPLITS:
        chosen = split_positives(block, labelled, had, name, plan.windows, plan.split)
        queries, query = group_queries(block, chosen)
        windowed = query_mode(name, plan.split) != "request"
        found = positives(
            block,
            chosen,
            query,
            had,
            plan.labels,
            duration_cap=plan.duration_cap,
            distinct=windowed or name not in TRAINING_SPLITS,
        )
        _save_split(directory / name, plan, partition, block, known, history, queries, found)


def _save_history(directory: Path, history: Timeline) -> None:
    _save(
        directory / "history",
        item=history.item,
        action=(history.type + 1).astype(np.int8),
        surface=history.surface,
        time=history.time,
        available=history.available,
        lengths=np.diff(history.offsets),
    )


def _save_item_counts(directory: Path, block: EventBlock, known: Timeline, plan: Plan) -> None:
    """What the partition adds to the catalogue's and the vocabularies' view of the training window."""
    train, num_items = plan.windows.train, len(plan.item_ids)
    training = (block.time >= train.start) & (block.available < train.end)
    counts = count_in_bins(block, known, plan.edges, num_items)
    inside = training & (block.item >= 0)
    first_seen = np.full(num_items, FOREVER)
    np.minimum.at(first_seen, block.item[inside], block.time[inside])
    cell = block.item[inside].astype(np.int64) * len(EVENT_TYPES) + block.type[inside]
    in_training = np.bincount(cell, minlength=num_items * len(EVENT_TYPES)).reshape(-1, len(EVENT_TYPES))
    _save(
        directory / "items",
        keys=counts.keys,
        counts=counts.counts,
        first_seen=first_seen,
        in_training=in_training,
        user_seen=_flags(block.user[training], len(block.offsets) - 1),
        surface_seen=_flags(block.surface[training], len(plan.surfaces) + 1),
    )


def _flags(codes: NDArray[np.integer], count: int) -> NDArray[np.bool_]:
    flags = np.zeros(count, bool)
    flags[codes] = True
    return flags


def _save_conversions(directory: Path, block: EventBlock, labelled: LabelledEvents) -> None:
    """Times of all conversions for the delay curve, and what those on catalogue items were credited to."""
    rows = np.flatnonzero(is_conversion(block.type))
    candidates = labelled.select(is_conversion(block.type[labelled.event]))
    touch_type = np.full(len(block), -2, np.int8)  # -2: dropped
    touch_type[candidates.event] = candidates.touch_type
    _save(
        directory / "conversions",
        time=block.time[rows],
        available=block.available[rows],
        in_catalogue=block.item[rows] >= 0,
        touch_type=touch_type[rows],
    )


def _save_split(
    directory: Path,
    plan: Plan,
    partition: Partition,
    block: EventBlock,
    known: Timeline,
    history: Timeline,
    queries: Queries,
    found: Positives,
) -> None:
    with_context = np.flatnonzero(queries.context_hash != 0)
    user_row = partition.user_rows[queries.user]
    columns: dict[str, NDArray[Any]] = {
        "user": user_row.astype(np.int32),
        "time": queries.time,
        "surface": queries.surface,
        "context_item": queries.context_item,
        "context_hash": queries.context_hash,
        "history_end": history.known(queries.user, queries.time),
        "score": mixed_hash(
            plan.split.seed, user_row, queries.time, queries.surface, queries.context_item, queries.context_hash
        ),
        "user_aggregates": user_aggregates(
            known, queries.user, queries.time, advertiser=plan.advertiser, config=plan.features
        ),
        "context_rows": with_context,
        "context_embeddings": context_vectors(block, queries.source[with_context]),
    }
    _save(directory / "queries", **columns)
    _save(directory / "positives", **{f.name: getattr(found, f.name) for f in fields(found)})
    if directory.name in TRAINING_SPLITS:
        query, item = hard_negatives(
            block,
            queries,
            found,
            negatives_window(directory.name, plan.windows, plan.labels),
            plan.labels,
            user_rows=partition.user_rows,
            seed=plan.split.seed,
        )
    else:
        query, item = np.empty(0, np.int64), np.empty(0, np.int32)
    _save(directory / "hard_negatives", query=query, item=item)


def _save(directory: Path, **arrays: NDArray[Any]) -> None:
    directory.mkdir(parents=True)
    for name, values in arrays.items():
        np.save(directory / f"{name}.npy", values, allow_pickle=False)
