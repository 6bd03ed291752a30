"""Vectorised primitives over arrays that are sorted within groups (users, or user-item pairs)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def count_before(
    values: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    limits: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Position of the first value >= limit within each span [start, end) of ``values``; the span's end if none.

    A binary search for all spans at once: log2 of the longest span steps.
    """
    low, high = starts.astype(np.int64), ends.astype(np.int64)
    longest = int((high - low).max(initial=0))
    for _ in range(longest.bit_length()):
        middle = (low + high) >> 1
        open_ = low < high
        below = open_ & (values[np.minimum(middle, len(values) - 1)] < limits)
        low = np.where(below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)
    return low


def group_starts(*keys: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each row differs from the one before in any key; the first row does."""
    new = np.zeros(len(keys[0]), bool)
    new[:1] = True
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return new


def carried_forward(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each position the last flagged position up to and including it, -1 before the first."""
    positions = np.where(flags, np.arange(len(flags)), -1)
    return np.maximum.accumulate(positions, out=positions) if len(positions) else positions


def carried_backward(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each position the first flagged position from it on, ``len(flags)`` after the last."""
    positions = np.where(flags, np.arange(len(flags)), len(flags))
    return np.minimum.accumulate(positions[::-1])[::-1] if len(positions) else positions


def rank_in_group(new_group: NDArray[np.bool_]) -> NDArray[np.int64]:
    """0, 1, 2 ... within each run that ``new_group`` opens."""
    return np.arange(len(new_group)) - carried_forward(new_group)


def mixed_hash(seed: int, *columns: NDArray[Any]) -> NDArray[np.uint64]:
    """A 64-bit hash of rows by content (splitmix64 finaliser), for seeded choices that no partitioning can change."""
    state = np.full(len(columns[0]), (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64, np.uint64)
    for column in columns:
        state ^= column.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def vector_hash(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """A 64-bit hash of each row [n, d] by its bytes."""
    words = np.ascontiguousarray(vectors).view(np.uint32).astype(np.uint64)
    multipliers = mixed_hash(17, np.arange(vectors.shape[1])) | np.uint64(1)
    return mixed_hash(3, (words * multipliers).sum(axis=1, dtype=np.uint64).view(np.int64)).view(np.int64)


def expand(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions start, start + 1, ... of every span, one after the other."""
    total = int(counts.sum())
    before = np.cumsum(counts) - counts
    return np.arange(total) - np.repeat(before - starts, counts)
