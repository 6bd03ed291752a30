"""``validate`` as a person types it; oracle: the page that it names."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conversion_retrieval.cli import app


@pytest.mark.parametrize(
    ("options", "directory"), [((), "validation_report"), (("--output", "elsewhere/report"), "elsewhere/report")]
)
@pytest.mark.parametrize("valid", [True, False])
def test_the_report_is_where_the_command_says(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], directory: str, valid: bool
) -> None:
    data_dir = world.write()
    if not valid:
        (data_dir / "items.parquet").unlink()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["validate", str(data_dir), *options])
    assert result.exit_code == (0 if valid else 1)
    assert result.stdout == f"report: {directory}/validation.html\n"
    assert "</html>" in Path(directory, "validation.html").read_text()
