"""Served impressions that the user left alone, as negatives of that user's queries."""

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.features.config import LabelConfig
from conversion_retrieval.features.events import IMPRESSION, EventBlock
from conversion_retrieval.features.grouped import (
    carried_backward,
    carried_forward,
    count_before,
    group_starts,
    mixed_hash,
    rank_in_group,
)
from conversion_retrieval.features.queries import Positives, Queries, context_hashes
from conversion_retrieval.features.windows import DAY, RECENT, SplitWindows, Window


def hard_negatives(
    block: EventBlock,
    queries: Queries,
    positives: Positives,
    window: Window,
    config: LabelConfig,
    *,
    user_rows: NDArray[np.int64],
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(query, item) pairs sorted by both: at most so many a query and a user, chosen by a seeded hash of content."""
    rows = unengaged_impressions(block, window, config)
    query = nearest_queries(queries, block, rows, num_users=len(block.offsets) - 1)
    rows, query = rows[query >= 0], query[query >= 0]
    item = block.item[rows]
    score = mixed_hash(seed, user_rows[block.user[rows]], item, block.time[rows])
    keep = _once_and_not_positive(query, item, score, positives)
    query, item, score = query[keep], item[keep], score[keep]
    keep = _lowest(query, score, config.max_hard_negatives_per_query)
    query, item, score = query[keep], item[keep], score[keep]
    keep = _lowest(queries.user[query], score, config.max_hard_negatives_per_user)
    query, item = query[keep], item[keep]
    order = np.lexsort((item, query))
    return query[order], item[order]


def negatives_window(name: str, windows: SplitWindows, config: LabelConfig) -> Window:
    """When the impressions were served that a split may take as negatives.

    Those of the training window's last days could still be converted on at its end: they are negatives of ``recent``.
    """
    window = windows[name]
    if name != RECENT:
        return window
    start = windows.train.end - round(config.view_window_days * DAY)
    return Window(start=max(windows.train.start, start), end=window.end)


def unengaged_impressions(block: EventBlock, window: Window, config: LabelConfig) -> NDArray[np.int64]:
    """Rows of impressions inside ``window`` that are safe negatives as far as was known at its end.

    Safe: the view window after it had closed (a conversion could no longer be credited to it), and the user neither
    engaged with nor converted on the item within the longer of the two attribution windows before or after it.
    """
    rows = np.flatnonzero((block.item >= 0) & (block.available < window.end))
    width = int(block.item.max(initial=0)) + 1
    pair = block.user[rows].astype(np.int64) * width + block.item[rows]
    rows = rows[np.argsort(pair, kind="stable")]
    time, acted = block.time[rows], block.type[rows] != IMPRESSION
    new_group = group_starts(block.user[rows], block.item[rows])
    group = carried_forward(new_group)
    group_end = np.append(carried_backward(new_group)[1:], len(rows))
    radius = round(max(config.click_window_days, config.view_window_days) * DAY)
    before, after = carried_forward(acted), carried_backward(acted)
    near = (before >= group) & (time - time[before] <= radius)
    near |= (after < group_end) & (time[np.minimum(after, len(rows) - 1)] - time <= radius)
    closed = time + round(config.view_window_days * DAY) < window.end  # the far end still belongs to it
    safe: NDArray[np.int64] = rows[~acted & ~near & closed & (time >= window.start)]
    return safe


def nearest_queries(
    queries: Queries, block: EventBlock, rows: NDArray[np.int64], *, num_users: int
) -> NDArray[np.int64]:
    """The query that each impression is a negative of, -1 if the user has none.

    The user's query at the same time on the same surface, of several the one with the impression's context; else the
    latest at or before the impression; else the earliest after it.
    """
    if len(queries) == 0:
        return np.full(len(rows), -1)
    by_user = np.argsort(queries.user, kind="stable")  # within a user still by time, surface and context
    times, surfaces = queries.time[by_user], queries.surface[by_user].astype(np.int64)
    offsets = np.searchsorted(queries.user[by_user], np.arange(num_users + 1))
    user, time, surface = block.user[rows], block.time[rows], block.surface[rows].astype(np.int64)
    start, end = offsets[user], offsets[user + 1]
    same = count_before(times, start, end, time)
    later = count_before(times, start, end, time + 1)
    match, past = count_before(surfaces, same, later, surface), count_before(surfaces, same, later, surface + 1)
    position = np.where(match < past, match, np.where(later > start, later - 1, later))
    several = np.flatnonzero(past - match > 1)
    position[several] = _with_context(queries, by_user, block, rows[several], match[several], past[several])
    return np.where(start < end, by_user[np.minimum(position, len(times) - 1)], -1)


def _with_context(
    queries: Queries,
    by_user: NDArray[np.int64],
    block: EventBlock,
    rows: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Where in ``by_user[low:high]`` the query with each row's context is; the first position without one."""
    items, hashes = queries.context_item[by_user].astype(np.int64), queries.context_hash[by_user]
    item, hash_ = block.context_item[rows].astype(np.int64), context_hashes(block, rows)
    low_, high_ = count_before(items, low, high, item), count_before(items, low, high, item + 1)
    own = count_before(hashes, low_, high_, hash_)
    return np.where((own < high_) & (hashes[np.minimum(own, len(hashes) - 1)] == hash_), own, low)


def _once_and_not_positive(
    query: NDArray[np.int64], item: NDArray[np.int32], score: NDArray[np.uint64], positives: Positives
) -> NDArray[np.int64]:
    """Rows that are the lowest-scored of their (query, item) and no positive of the query."""
    width = int(max(item.max(initial=0), positives.item.max(initial=0))) + 1
    pair = query * width + item
    order = np.lexsort((score, pair))
    first = order[group_starts(pair[order])]
    return first[~np.isin(pair[first], positives.query * width + positives.item)]


def _lowest(group: NDArray[np.integer], score: NDArray[np.uint64], most: int) -> NDArray[np.int64]:
    order = np.lexsort((score, group))
    return order[rank_in_group(group_starts(group[order])) < most]
