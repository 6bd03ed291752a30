"""From labelled events to queries with positives, weights and hard negatives."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.features.attribution import LabelledEvents, is_conversion
from conversion_retrieval.features.config import LabelConfig, SplitConfig
from conversion_retrieval.features.encoding import as_vectors
from conversion_retrieval.features.events import CLICK, EventBlock
from conversion_retrieval.features.grouped import expand, group_starts, vector_hash
from conversion_retrieval.features.timeline import Timeline, first_available
from conversion_retrieval.features.windows import DAY, FOREVER, RECENT, TRAINING_SPLITS, SplitWindows, Window
from conversion_retrieval.schema import EVENT_TYPES

CONVERSION_TASK, ENGAGEMENT_TASK = 0, 1


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Distinct requests of a block, sorted by time, user, surface and context.

    ``user`` counts within the block; ``source`` is the block row that holds the request's context, -1 none;
    ``context_hash`` identifies its embedding (0 none).
    """

    user: NDArray[np.int32]
    time: NDArray[np.int64]
    surface: NDArray[np.int16]
    context_item: NDArray[np.int32]
    context_hash: NDArray[np.int64]
    source: NDArray[np.int64]

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.user)


@dataclass(frozen=True, kw_only=True)
class Positives:
    """Positives of a block's queries, sorted by query, item and event type."""

    query: NDArray[np.int64]
    item: NDArray[np.int32]
    event_type: NDArray[np.int8]
    task: NDArray[np.int8]
    weight: NDArray[np.float32]
    attributed: NDArray[np.bool_]
    new_to_user: NDArray[np.bool_]
    value: NDArray[np.float32]

    def __len__(self) -> int:
        """The number of positives."""
        return len(self.query)

    def select(self, rows: NDArray[np.generic]) -> "Positives":
        """The positives at these rows or where this mask is set."""
        return Positives(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def query_mode(name: str, config: SplitConfig) -> str:
    """How the queries of a split come about: ``request``, ``window`` or ``window_start``."""
    return config.training_queries if name in TRAINING_SPLITS else config.evaluation_queries


def split_positives(
    block: EventBlock,
    labelled: LabelledEvents,
    history: Timeline,
    name: str,
    windows: SplitWindows,
    config: SplitConfig,
) -> LabelledEvents:
    """The candidates of one split: query time inside its window, and reported while its labels could be known.

    Of ``recent`` are also the queries of the training window to which a label was reported since its end.
    """
    window = windows[name]
    labelled = labelled.select(block.available[labelled.event] < windows.known_at(name))
    mode = query_mode(name, config)
    if mode == "request" and name == RECENT:
        labelled = labelled.select((labelled.time >= windows.train.start) & (labelled.time < window.end))
        return _of_queries_with_any(block, labelled, block.available[labelled.event] >= windows.known_at("train"))
    if mode == "request":
        return labelled.select((labelled.time >= window.start) & (labelled.time < window.end))
    if mode == "window":
        width, stride = round(config.training_window_days * DAY), round(config.training_stride_days * DAY)
        if name == RECENT:  # what follows an anchor reaches into the window
            window = Window(start=max(windows.train.start, window.start - width + 1), end=window.end)
        labelled = at_anchors(block, labelled, window, width=width, stride=stride)
    else:
        width = window.end - window.start
        # Of a log of a single moment, evaluation windows are empty: a stride of nothing leads nowhere.
        labelled = at_anchors(block, labelled, window, width=width, stride=max(width, 1))
    has_history = history.known(labelled.user, labelled.time) > history.offsets[labelled.user]
    return labelled.select(has_history)


def _of_queries_with_any(block: EventBlock, labelled: LabelledEvents, chosen: NDArray[np.bool_]) -> LabelledEvents:
    """Every candidate of the queries that have a ``chosen`` one: what else they are positive for is no negative."""
    _, query = group_queries(block, labelled)
    return labelled.select(np.isin(query, query[chosen]))


def at_anchors(
    block: EventBlock, labelled: LabelledEvents, window: Window, *, width: int, stride: int
) -> LabelledEvents:
    """Candidates once for each anchor whose following ``width`` contains the event; the query is at the anchor.

    Anchors lie ``stride`` apart, the last one ``width`` before the window's end, none before its start.
    """
    last = window.end - width
    newest = (last - window.start) // stride  # anchors count backwards from the last, 0 .. newest
    time = block.time[labelled.event]
    low = np.maximum(-((time - last) // stride), 0)
    high = np.minimum(-((time - last - width) // stride) - 1, newest)
    counts = np.maximum(high - low + 1, 0)
    rows = np.repeat(np.arange(len(labelled)), counts)
    repeated = labelled.select(rows)
    return LabelledEvents(
        event=repeated.event,
        user=repeated.user,
        time=last - expand(low, counts) * stride,
        surface=np.zeros(len(rows), np.int16),
        source=np.full(len(rows), -1),
        touch_type=repeated.touch_type,
    )


def group_queries(block: EventBlock, labelled: LabelledEvents) -> tuple[Queries, NDArray[np.int64]]:
    """Distinct (user, time, surface, context) as queries, and each candidate's query [n]."""
    context_item = np.where(labelled.source >= 0, block.context_item[labelled.source], -1).astype(np.int32)
    context_hash = context_hashes(block, labelled.source)
    order = np.lexsort((context_hash, context_item, labelled.surface, labelled.user, labelled.time))
    keys = [a[order] for a in (labelled.time, labelled.user, labelled.surface, context_item, context_hash)]
    new = group_starts(*keys)
    first = order[new]
    query = np.empty(len(labelled), np.int64)
    query[order] = np.cumsum(new) - 1
    queries = Queries(
        user=labelled.user[first],
        time=labelled.time[first],
        surface=labelled.surface[first],
        context_item=context_item[first],
        context_hash=context_hash[first],
        source=labelled.source[first],
    )
    return queries, query


def positives(
    block: EventBlock,
    labelled: LabelledEvents,
    query: NDArray[np.int64],
    history: Timeline,
    config: LabelConfig,
    *,
    duration_cap: float,
    distinct: bool,
) -> Positives:
    """The positives of queries; ``distinct`` keeps one for each (query, item, task), its value their sum."""
    event = labelled.event
    order = np.lexsort((event, block.type[event], block.item[event], query))
    event, query, labelled = event[order], query[order], labelled.select(order)
    item, kind = block.item[event], block.type[event]
    seen = first_available(history, labelled.user, item, never=FOREVER)
    result = Positives(
        query=query,
        item=item,
        event_type=kind,
        task=np.where(is_conversion(kind), CONVERSION_TASK, ENGAGEMENT_TASK).astype(np.int8),
        weight=label_weights(kind, block.duration[event], config, duration_cap=duration_cap),
        attributed=labelled.attributed,
        new_to_user=seen >= labelled.time,
        value=np.nan_to_num(block.value[event], nan=0.0).astype(np.float32),
    )
    return _distinct(result) if distinct else result


def label_weights(
    kind: NDArray[np.int8], duration: NDArray[np.float64], config: LabelConfig, *, duration_cap: float
) -> NDArray[np.float32]:
    """Event weight times, for clicks, ``log1p(min(t, t_max) / t_max) / log 2`` (1 at the cap, 0 for an instant return).

    A click without duration gets ``missing_click_duration_weight``; without a cap every timed click counts fully.
    """
    weight = np.array([config.event_weights.get(name, 1.0) for name in EVENT_TYPES])[kind]
    if not config.click_duration_weighting:
        return weight.astype(np.float32)
    share = np.clip(duration, 0, duration_cap) / duration_cap if duration_cap > 0 else np.ones(len(kind))
    timed = np.where(np.isnan(duration), config.missing_click_duration_weight, np.log1p(share) / np.log(2))
    return np.where(kind == CLICK, weight * timed, weight).astype(np.float32)


def _distinct(positives: Positives) -> Positives:
    """The heaviest positive of each (query, item, task), the later event type among equals."""
    order = np.lexsort((-positives.event_type, -positives.weight, positives.task, positives.item, positives.query))
    positives = positives.select(order)
    first = np.flatnonzero(group_starts(positives.query, positives.item, positives.task))
    if len(first) == 0:
        return positives
    kept = positives.select(first)
    merged = Positives(
        **{n: getattr(kept, n) for n in kept.__dataclass_fields__ if n not in ("value", "attributed")},
        value=np.add.reduceat(positives.value, first),
        attributed=np.logical_or.reduceat(positives.attributed, first),
    )
    return merged.select(np.lexsort((merged.event_type, merged.item, merged.query)))


def context_hashes(block: EventBlock, source: NDArray[np.int64]) -> NDArray[np.int64]:
    """What identifies the context embedding of each row in ``source``, [n]; 0 without one and for a row of -1."""
    hashes = np.zeros(len(source), np.int64)
    if block.context_embedding.null_count == len(block):
        return hashes
    valid = block.context_embedding.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero((source >= 0) & valid[source])
    unique, inverse = np.unique(source[rows], return_inverse=True)
    hashes[rows] = vector_hash(context_vectors(block, unique))[inverse]
    return hashes


def context_vectors(block: EventBlock, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The context embeddings at these block rows, [n, C]; none of them may be null."""
    import pyarrow as pa

    taken = block.context_embedding.take(pa.array(rows))
    dim = len(taken[0]) if len(taken) else 0
    return as_vectors(taken, dim, where="events.context_embedding")
