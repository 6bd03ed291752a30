"""Reading logs line by line: which line is which, whatever is broken around it."""

from pathlib import Path

import numpy as np
import pytest

from conversion_retrieval.datasets import csv_files
from conversion_retrieval.datasets.csv_files import LINE, read_csv
from conversion_retrieval.datasets.report import ImportReport


@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_knows_its_line_however_many_broken_rows_precede_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, block_bytes: int
) -> None:
    """Oracle: each good row carries the number of its own line."""
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", block_bytes)
    good = np.random.default_rng(seed).random(60) < 0.6
    lines = [f"{number},x" if ok else "a,b,c" for number, ok in enumerate(good, start=2)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["number,text", *lines]) + "\n")
    report = ImportReport(dataset="d", source="s")
    rows = [row for block in read_csv(path, ("number",), report) for row in block.to_pylist()]
    assert [row[LINE] for row in rows] == [int(row["number"]) for row in rows]
    assert len(rows) == good.sum()
    assert report.rows_read["log.csv"] == 60
    assert report.dropped_rows("log.csv") == 60 - good.sum()
    assert report.dropped[0].example == f"line {int(np.argmin(good)) + 2}: 3 of 2"
