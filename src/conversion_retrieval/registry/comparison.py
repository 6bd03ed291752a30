"""What differs between two versions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from conversion_retrieval.registry.registry import Version


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that two versions do not share; None where one of them lacks it.

    ``kind`` is file, artifact, release, metadata, config or metric; ``name`` says which.
    """

    kind: str
    name: str
    before: str | float | None
    after: str | float | None


def compare(before: Version, after: Version) -> list[Difference]:
    """Differing files, artifact digests, release, configuration, and metrics of the candidate over all queries."""
    return [
        *_changes("file", before.manifest.files, after.manifest.files),
        *_changes("artifact", before.manifest.inputs, after.manifest.inputs),
        *_changes("release", {"": before.manifest.package_version}, {"": after.manifest.package_version}),
        *_changes("metadata", _texts(before.manifest.metadata), _texts(after.manifest.metadata)),
        *_changes("config", _leaves(before.config), _leaves(after.config)),
        *_changes("metric", _metrics(before), _metrics(after)),
    ]


def _changes(kind: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Difference]:
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield Difference(kind=kind, name=name, before=before.get(name), after=after.get(name))


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    leaves: dict[str, str] = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and bool(value)
        leaves |= _leaves(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": json.dumps(value)}
    return leaves


def _metrics(version: Version) -> dict[str, Any]:
    rows = (row for row in version.metrics if row["model"] == "candidate" and row["slice"] == "all")
    return {row["name"]: row["value"] for row in rows}
