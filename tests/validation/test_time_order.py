"""The count of rows out of order across batches and files; oracle: the differences of the whole column at once."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from conversion_retrieval.schema import TIMESTAMP
from conversion_retrieval.tables import LocatedBatch
from conversion_retrieval.validation.time_order import MAX_PLACES, TimeOrder

START = datetime(2026, 1, 1, tzinfo=UTC)


def observed(file: Path, seconds: list[int | None], size: int, order: TimeOrder) -> TimeOrder:
    times = pa.array([None if s is None else START + timedelta(seconds=s) for s in seconds], TIMESTAMP)
    whole = pa.record_batch({"event_time": times})
    for first in range(0, len(seconds), size):
        order.observe(LocatedBatch(batch=whole.slice(first, size), file=file, first_row=first))
    return order


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_batches_change_neither_count_nor_places(size: int) -> None:
    seconds = np.random.default_rng(2).integers(0, 50, 60).tolist()
    order = observed(Path("a"), seconds, size, TimeOrder())
    places = [(Path("a"), row) for row in np.flatnonzero(np.diff(seconds, prepend=0) < 0)]
    assert (order.count, order.places) == (len(places), places)


@pytest.mark.parametrize("size", [1, 4])
def test_rows_without_a_time_are_passed_over_and_every_file_begins_anew(size: int) -> None:
    order = observed(Path("a"), [5, None, 6, None, 4], size, TimeOrder())
    order = observed(Path("b"), [None, 1, 2, None], size, order)
    assert order.places == [(Path("a"), 4)]


def test_equal_times_are_in_order_and_places_are_bounded() -> None:
    assert observed(Path("a"), [3] * 10, 4, TimeOrder()).count == 0
    falling = observed(Path("a"), list(range(500, 0, -1)), 64, TimeOrder())
    assert (falling.count, len(falling.places)) == (499, MAX_PLACES)


def test_times_further_apart_than_64_bits_are_compared(tmp_path: Path) -> None:
    """Oracle: Python's integers."""
    ticks = [-(2**63), 0, 2**63 - 1, -(2**62), 2**62 + 1]
    order = TimeOrder()
    batch = pa.record_batch({"event_time": pa.array(ticks, pa.int64()).cast(TIMESTAMP)})
    order.observe(LocatedBatch(batch=batch, file=tmp_path, first_row=0))
    assert order.places == [(tmp_path, row) for row in range(1, 5) if ticks[row] < ticks[row - 1]]
