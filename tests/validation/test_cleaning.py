"""The database behind the checks: more rows than memory go through files, and too little memory is said in one line."""

import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from conversion_retrieval.errors import UserError
from conversion_retrieval.validation.cleaning import open_database

ROWS = 2_500_000


def test_rows_beyond_the_memory_limit_are_sorted_through_temporary_files(tmp_path: Path) -> None:
    with open_database(tmp_path, memory_mb=48) as database:
        database.execute(f"CREATE TABLE numbers AS SELECT lpad(hash(i)::VARCHAR, 20, '0') AS n FROM range({ROWS}) t(i)")
        batches = database.sql("SELECT n FROM numbers ORDER BY n").to_arrow_reader(50_000)
        first = next(iter(batches))["n"]
        spilled = sum(path.stat().st_size for path in (tmp_path / "spill").iterdir())
        numbers = pa.chunked_array([first, *(batch["n"] for batch in batches)])
    assert ROWS * (16 + 20) > 48e6  # a string's header and bytes
    assert spilled > 1e6
    assert len(numbers) == ROWS
    assert pc.all(pc.less_equal(numbers[:-1].combine_chunks(), numbers[1:].combine_chunks())).as_py()


def test_too_little_memory_is_said_with_the_setting_to_change(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"^expected validation.memory_mb to be enough, found 1: raise it$"),
        open_database(tmp_path, memory_mb=1) as database,
    ):
        database.execute("CREATE TABLE numbers AS SELECT * FROM range(1000000)")


def test_a_directory_without_room_is_one_line(tmp_path: Path) -> None:
    """The kernel's limit on the size of files stands for a disk's."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with (
            pytest.raises(UserError, match=rf"room for a database .* in {tmp_path}, found: .*: write the report where"),
            open_database(tmp_path, memory_mb=64) as database,
        ):
            database.execute(f"CREATE TABLE numbers AS SELECT hash(i) AS n FROM range({ROWS}) t(i)")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
