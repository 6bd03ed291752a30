"""Artifact directories: every file digested, the manifest written last, everything checked on reading.

An artifact appears under its final name only when complete: it is written into a temporary sibling, synced to disk
and renamed. A reader therefore sees the whole artifact or none.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from conversion_retrieval import __version__
from conversion_retrieval.errors import CorruptArtifactError, UserError

MANIFEST: Final = "manifest.json"
SCHEMA_VERSIONS: Final[Mapping[str, int]] = {
    "report": 1,
    "snapshot": 1,
    "features": 1,
    "spec": 1,
    "model": 1,
    "evaluation": 1,
    "index": 1,
    "decision": 1,
    "bundle": 1,
    "checkpoint": 1,
    "variant": 1,
    "ablation": 1,
}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact is and which bytes it holds.

    ``digest`` is the SHA-256 over the sorted (path, SHA-256) pairs of ``files``: two artifacts with equal contents
    have equal digests, whenever and wherever they were made. ``inputs`` maps an input's name to its digest.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid", "strict": True}

    kind: str
    schema_version: int
    package_version: str
    digest: str
    files: dict[str, str]
    inputs: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    created_time: str


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(files: Mapping[str, str]) -> str:
    """The digest of a set of files given each one's relative path and SHA-256."""
    listing = "".join(f"{name}\0{digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


@contextmanager
def new_artifact(
    path: Path | str,
    *,
    kind: str,
    inputs: Mapping[str, str] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Iterator[Path]:
    """Yield a temporary directory to write into; on success it becomes the artifact at ``path``.

    ``metadata`` is read after the body ran, so the body may add to it. On an exception nothing appears at ``path``.
    An artifact of the same kind already there is replaced. Raises ``UserError`` as ``check_output`` does.
    """
    path = Path(path)
    check_output(path, kind=kind)
    working_dir = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    working_dir.mkdir()
    try:
        yield working_dir
        write_manifest(working_dir, kind=kind, inputs=inputs, metadata=metadata)
        replace_directory(working_dir, path)
    finally:
        shutil.rmtree(working_dir, ignore_errors=True)


def check_output(path: Path, *, kind: str) -> None:
    """Make sure that an artifact can be written at ``path``, whose parents are made.

    A mistyped output must not cost anyone the files that happen to be there: raises ``UserError`` for a file, for a
    directory that holds anything but an artifact of this kind, and where nothing can be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        foreign = path.exists() and not (path.is_dir() and (_kind_of(path) == kind or not any(path.iterdir())))
    except OSError as error:
        raise UserError(f"expected to be able to write to {path}, found: {error.strerror}") from None
    if foreign:
        found = "other files" if path.is_dir() else "a file"
        raise UserError(f"expected nothing or an earlier {kind} at {path}, found {found}: choose another output")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"expected to be able to write to {path}, found: {os.strerror(errno.EACCES)}")


def _kind_of(directory: Path) -> object:
    """What its manifest says, of whatever release; None where there is no readable one."""
    try:
        content = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return content.get("kind") if isinstance(content, dict) else None


def write_manifest(
    directory: Path,
    *,
    kind: str,
    inputs: Mapping[str, str] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Manifest:
    """Digest and sync every file of ``directory``, then write its manifest as the last one."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p != directory / MANIFEST):
        sync(path)  # of a directory the names in it, which do not come to the disk with the files
        if path.is_file():
            files[path.relative_to(directory).as_posix()] = file_digest(path)
    manifest = Manifest(
        kind=kind,
        schema_version=SCHEMA_VERSIONS[kind],
        package_version=__version__,
        digest=content_digest(files),
        files=files,
        inputs=dict(inputs or {}),
        metadata=metadata or {},
        created_time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_json(directory / MANIFEST, asdict(manifest))
    return manifest


def read_manifest(directory: Path | str, *, kind: str) -> Manifest:
    """The manifest of an artifact, checked for kind and schema version but not against its files.

    Raises ``CorruptArtifactError`` naming what was expected, what was found, and where.
    """
    path = Path(directory) / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CorruptArtifactError(f"expected a {kind} artifact, found no {MANIFEST} in {directory}") from None
    except OSError as error:
        raise CorruptArtifactError(f"expected a {kind} manifest, found an unreadable one at {path}: {error}") from None
    return parse_manifest(content, kind=kind, where=str(directory))


def parse_manifest(content: bytes, *, kind: str, where: str) -> Manifest:
    """A manifest from its bytes, checked as by ``read_manifest``; ``where`` names the artifact in errors."""
    try:
        manifest = TypeAdapter(Manifest).validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fault = ": ".join(filter(None, [".".join(str(part) for part in first["loc"]), first["msg"]]))
        raise CorruptArtifactError(
            f"expected a {kind} manifest, found an unreadable {MANIFEST} in {where}: {fault}"
        ) from None
    if manifest.kind != kind:
        raise CorruptArtifactError(f"expected a {kind} artifact, found kind {manifest.kind!r} in {where}")
    if manifest.schema_version != SCHEMA_VERSIONS[kind]:
        raise CorruptArtifactError(
            f"expected {kind} schema version {SCHEMA_VERSIONS[kind]}, found {manifest.schema_version} in {where}: "
            f"read it with release {manifest.package_version} or make it again"
        )
    return manifest


def open_artifact(directory: Path | str, *, kind: str) -> Manifest:
    """The manifest of an artifact after checking that its files are exactly those written, byte for byte.

    Raises ``CorruptArtifactError`` naming the first file that is missing, altered, unexpected, or outside.
    """
    directory = Path(directory)
    manifest = read_manifest(directory, kind=kind)
    for name, expected in manifest.files.items():
        file_path = directory / safe_relative_path(name, where=directory)
        if not file_path.is_file():
            raise CorruptArtifactError(f"expected file {name}, found none in the {kind} at {directory}")
        found = file_digest(file_path)
        if found != expected:
            raise CorruptArtifactError(
                f"expected digest {expected[:12]} for {name}, found {found[:12]} in the {kind} at {directory}"
            )
    present = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}
    if unexpected := sorted(present - set(manifest.files) - {MANIFEST}):
        raise CorruptArtifactError(f"expected only listed files, found {unexpected[0]} in the {kind} at {directory}")
    if content_digest(manifest.files) != manifest.digest:
        raise CorruptArtifactError(f"expected digest {manifest.digest[:12]} for the {kind} at {directory}, found other")
    return manifest


def safe_relative_path(name: str, *, where: Path | str) -> Path:
    """``name`` as a path that cannot leave its directory; ``CorruptArtifactError`` otherwise."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in name or "\0" in name:
        raise CorruptArtifactError(f"expected a relative path inside {where}, found {name!r}")
    return Path(*pure.parts)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as strict JSON (NaN refused), atomically and synced; keys keep their order."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new, never a part."""
    with new_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield an empty file beside ``path`` to write into; on success, synced, it takes that name.

    After an exception nothing is left of it, and what was at ``path`` stays. Raises ``OSError`` at once where no file
    can be made there.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_directory(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``, moving an existing ``target`` out of the way first."""
    if target.exists():
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
        target.rename(old)
        source.rename(target)
        shutil.rmtree(old)
    else:
        source.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Flush a file or directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
