"""Registries on both kinds of store."""

import os
from pathlib import Path

import pytest

from conversion_retrieval.registry.registry import Registry


@pytest.fixture(autouse=True)
def disk_not_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crashes here are of processes, not of the power: waiting for the disk is most of the time and tests nothing."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["local", "cloud"])
def registry_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty registry in a directory, and in a bucket of a real storage server."""
    if request.param == "local":
        return str(tmp_path / "registry")
    return f"{request.getfixturevalue('gcs_bucket')}/team/registry"


@pytest.fixture
def registry(registry_uri: str) -> Registry:
    return Registry.open(registry_uri)
