"""The registry of importers and their report."""

import json
from pathlib import Path

import pytest

from conversion_retrieval.datasets.importers import IMPORTERS, import_dataset
from conversion_retrieval.datasets.report import ImportReport
from conversion_retrieval.errors import UserError


@pytest.mark.parametrize(
    ("name", "near"), [("retail_rocket", "retailrocket"), ("rees64", "rees46"), ("CompleteJourney", "completejourney")]
)
def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path, name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"found '{name}'; did you mean {near}"):
        import_dataset(name, None, tmp_path / "out")


@pytest.mark.parametrize("name", sorted(set(IMPORTERS) - {"completejourney"}))
def test_a_data_set_without_a_package_needs_a_source(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is not part of a package, expected a source: "):
        import_dataset(name, None, tmp_path / "out")


def test_the_report_beside_the_tables_says_what_its_lines_say(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,brand_id,type,visit_datetime\n1,2,0,6-4\n1,2,9,6-4\n")
    report = import_dataset("tmall", path, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "import_report.json").read_text())
    assert saved["rows_read"] == {"log.csv": 2}
    assert saved["rows_written"] == {"events": 1, "items": 1}
    assert saved["dropped"] == [
        {"file": "log.csv", "reason": "type is none of 0, 1, 2, 3", "rows": 1, "example": "line 3: type '9'"}
    ]
    text = "\n".join(report.lines())
    assert "dropped             1  log.csv: type is none of 0, 1, 2, 3 (line 3: type '9')" in text
    assert "read                2  log.csv" in text


def test_drops_for_one_reason_add_up_and_keep_the_first_example() -> None:
    report = ImportReport(dataset="d", source="s")
    report.drop("f", "bad", 2, "line 3")
    report.drop("f", "bad", 5, "line 90")
    report.drop("f", "worse", 0, "line 1")
    assert [(d.reason, d.rows, d.example) for d in report.dropped] == [("bad", 7, "line 3")]
    assert report.dropped_rows("f") == 7


def test_importing_again_replaces_the_tables_with_equal_bytes(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,brand_id,type,visit_datetime\n1,2,0,6-4\n")

    def content() -> dict[str, bytes]:
        import_dataset("tmall", path, tmp_path / "out")
        return {str(p.relative_to(tmp_path)): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}

    assert content() == content()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.csv", "out"]
