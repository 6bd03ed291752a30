"""What an image would hold, made here: the RUN steps of its Dockerfile replayed in an empty environment."""

import os
import subprocess
import sys
import venv
from pathlib import Path

from .test_dockerfiles import CONTAINERS, arguments


def replay(image: str, wheels: Path, directory: Path, *, base: Path | None = None) -> Path:
    """The interpreter of a clean environment in ``directory`` after every RUN step of an image.

    ``base`` is a directory of packages that the base image brings.
    """
    venv.create(directory / "venv")
    python = directory / "venv" / "bin" / "python3"
    if base is not None:
        (site_dir,) = (directory / "venv").glob("lib/python*/site-packages")
        (site_dir / "base.pth").write_text(f"{base}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for run in arguments(image, "RUN"):
        command = translated(run, python, wheels)
        subprocess.run(["bash", "-euc", command], check=True, cwd=directory, env={**environment, "TORCH_INDEX_URL": ""})
    return python


def translated(step: str, python: Path, wheels: Path) -> str:
    """A RUN step with the image's paths and commands replaced by an environment's."""
    step = step.replace("/opt/locks", str(CONTAINERS)).replace("/opt/wheels", str(wheels))
    # Byte code saves the image seconds at each start; here it would only cost them. What pip kept of the set-up is
    # the same file that it would download again.
    pip = f"{sys.executable} -m pip --python {python} install --quiet --no-compile"
    step = step.replace("--no-cache-dir", "").replace("pip install", pip)
    step = step.replace(" python -c", f" {python} -c")
    return step.replace("&& conversion-retrieval ", f"&& {python.with_name('conversion-retrieval')} ")
