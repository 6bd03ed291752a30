"""The cut of sorted rows into part files; oracle: a walk over the rows one by one."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from conversion_retrieval.validation.snapshot import EVENT_SCHEMA, _parts


def sorted_rows(users: list[str], batch: int) -> Iterator[pa.Table]:
    for first in range(0, len(users), batch):
        names = users[first : first + batch]
        columns = [pa.array(names) if f.name == "user_id" else pa.nulls(len(names), f.type) for f in EVENT_SCHEMA]
        yield pa.table(columns, schema=EVENT_SCHEMA)


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
@pytest.mark.parametrize("at_least", [1, 5, 50])
def test_a_part_is_the_shortest_run_of_whole_users_with_enough_rows(batch: int, at_least: int) -> None:
    rng = np.random.default_rng(batch)
    users = sorted(f"u{number}" for number in rng.zipf(1.5, 300) % 40)
    expected, size = [], 0
    for row, user in enumerate(users):
        size += 1
        if size >= at_least and row + 1 < len(users) and users[row + 1] != user:
            expected.append(size)
            size = 0
    found = list(_parts(sorted_rows(users, batch), at_least))
    assert [part.num_rows for part in found] == [*expected, size]
    assert pa.concat_tables(found)["user_id"].to_pylist() == users


def test_a_user_with_more_rows_than_a_part_is_not_looked_through_at_every_batch() -> None:
    """Oracle: what a list of Python's texts of the rows would take; each batch used to make one of all before it."""
    batches = list(sorted_rows(["bot"] * 400_000, 50_000))
    tracemalloc.start()
    (part,) = _parts(iter(batches), 1_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert part.num_rows == 400_000
    assert peak < 8 * 400_000 / 10
