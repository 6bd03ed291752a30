"""The built wheel in a clean environment with the sources away: what is not packaged fails here and nowhere else.

What the project requires is lent by the environment of the tests, whose link to the sources does not work from
there; ``test_replay`` installs everything anew.
"""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT

IMPORT_ALL = """
import importlib, pkgutil, conversion_retrieval
for module in pkgutil.walk_packages(conversion_retrieval.__path__, "conversion_retrieval."):
    importlib.import_module(module.name)
print(conversion_retrieval.__file__)
"""


@pytest.fixture(scope="module")
def bin_dir(wheel_path, tmp_path_factory) -> Path:
    """The commands of an environment that holds the wheel and, by a path, the third-party packages."""
    directory = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(directory, symlinks=True)
    python = directory / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel_path)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    (site_dir,) = directory.glob("lib/python*/site-packages")
    (site_dir / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return directory / "bin"


def run(bin_dir: Path, cwd: Path, program: str, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [bin_dir / program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_from_the_wheel_alone(bin_dir, tmp_path):
    found = Path(run(bin_dir, tmp_path, "python", "-c", IMPORT_ALL).strip())
    assert found.is_relative_to(bin_dir.parent)


def test_the_command_generates_a_world_and_validates_it(bin_dir, tmp_path):
    run(bin_dir, tmp_path, "conversion-retrieval", "generate", "--output", "world", "--users", "40", "--items", "40")
    run(bin_dir, tmp_path, "conversion-retrieval", "validate", "world", "--output", "report")
    assert "</html>" in next((tmp_path / "report").glob("*.html")).read_text()


def test_the_wheel_holds_the_package_and_its_data_files_and_nothing_else(wheel_path):
    package_dir = ROOT / "src" / "conversion_retrieval"
    sources = {path.relative_to(ROOT / "src").as_posix() for path in package_dir.rglob("*") if path.is_file()}
    packed = {name for name in zipfile.ZipFile(wheel_path).namelist() if ".dist-info/" not in name}
    assert packed == {name for name in sources if "__pycache__" not in name}
    assert {"conversion_retrieval/py.typed", "conversion_retrieval/evaluation/templates/report.html.j2"} <= packed
