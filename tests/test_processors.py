"""The processors of a container; oracle: the kernel's documentation of cpu.max, and the machine's own count."""

import os
import threading
from pathlib import Path

import pytest

from conversion_retrieval import processors
from conversion_retrieval.features import execution
from conversion_retrieval.validation.cleaning import open_database


@pytest.mark.parametrize(
    ("cpu_max", "usable"), [("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 16)]
)
def test_a_containers_limit_counts_rather_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_max: str, usable: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(processors, "CPU_MAX", tmp_path / "cpu.max")
    assert processors.usable_processors() == 16
    (tmp_path / "cpu.max").write_text(cpu_max)
    assert processors.usable_processors() == usable


def test_no_more_partitions_are_held_at_once_than_there_are_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each partition holds about a million events: as many of them as a large node has cores do not fit a pod."""
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(processors, "CPU_MAX", tmp_path / "cpu.max")
    threads = set()
    meeting = threading.Barrier(2)

    def build(plan: object, partition: object) -> Path:
        threads.add(threading.get_ident())
        meeting.wait(timeout=60)  # both are busy at once
        return tmp_path

    class Partition:
        index = 0

    monkeypatch.setattr(execution, "build_partition", build)
    found = list(execution._on_threads(None, [Partition()] * 8, ""))
    assert (len(found), len(threads)) == (8, 2)
    with open_database(tmp_path, memory_mb=64) as database:
        assert database.execute("SELECT current_setting('threads')").fetchone() == (2,)
