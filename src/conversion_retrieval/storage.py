"""Object storage behind one interface: a local directory or a Google Cloud Storage prefix.

Keys are relative paths with ``/``. Every object has a *generation*, a positive integer that grows with each write;
``write(..., if_generation=n)`` is the compare-and-swap on it that the registry's champion pointer rests on.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from filelock import FileLock, Timeout

from conversion_retrieval.contracts import MANIFEST, sync
from conversion_retrieval.errors import UserError

POD_VARIABLE: Final = "KFP_POD_NAME"  # which Kubeflow Pipelines sets in every stage's pod
LOCK_NAME: Final = ".lock"
LOCK_SECONDS: Final = 60.0
# Some file systems keep modification times only to a microsecond, a millisecond or two seconds.
CLOCK_STEPS_NS: Final = (1, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)


class NotFoundError(UserError):
    """There is no object under the key."""


class PreconditionFailedError(UserError):
    """The object's generation is not the expected one: someone else wrote in between."""


class StorageUnavailableError(UserError):
    """The store cannot be reached, read or written: no such bucket, no permission, no space, no credentials."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An object's bytes and the generation they belong to."""

    content: bytes
    generation: int


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object's key, and the generation that has ``size`` bytes."""

    key: str
    size: int
    generation: int


class ObjectStore(Protocol):
    """What both kinds of store can do. All raise ``StorageUnavailableError`` when the store does not answer."""

    uri: str

    def read(self, key: str) -> Stored:
        """An object with its generation; ``NotFoundError`` if there is none."""
        ...

    def write(self, key: str, content: bytes, *, if_generation: int | None = None) -> int:
        """Write an object atomically and durably; returns its new generation.

        With ``if_generation`` only if the object has that generation now (0: only if there is none);
        ``PreconditionFailedError`` otherwise.
        """
        ...

    def list(self, prefix: str = "") -> list[str]:
        """All keys below the directory ``prefix`` (all keys if empty), sorted, without those that ``is_hidden`` tells.

        Empty if there is no such directory.
        """
        ...

    def describe(self, prefix: str = "") -> Sequence[ObjectInfo]:
        """As ``list``, with size and generation."""
        ...

    def read_range(self, info: ObjectInfo, start: int, end: int) -> bytes:
        """Bytes [start, end) of the generation in ``info``, all within its size.

        ``PreconditionFailedError`` if the object was replaced or deleted since.
        """
        ...

    def newest_write(self, prefix: str) -> float:
        """When something below the directory ``prefix`` was last written, seconds since the epoch by the store's
        clock; ``NotFoundError`` if there is nothing.
        """
        ...

    def upload_directory(self, local_dir: Path, prefix: str) -> None:
        """Copy all files of ``local_dir`` below ``prefix``; a ``manifest.json`` at the top is written last."""
        ...

    def download_directory(self, prefix: str, local_dir: Path) -> None:
        """Copy all objects below ``prefix`` into ``local_dir``; ``NotFoundError`` if there are none."""
        ...

    def download_files(self, infos: Sequence[ObjectInfo], local_dir: Path) -> None:
        """Copy these generations of objects into ``local_dir`` under their keys; errors as ``read_range``."""
        ...

    def delete_prefix(self, prefix: str) -> None:
        """Delete all objects below ``prefix``, which must not be empty; none there is fine."""
        ...


def open_store(uri: str | Path) -> ObjectStore:
    """The store at a local path, ``file:///path`` or ``gs://bucket/prefix``.

    Nothing is created or contacted before the first call. ``STORAGE_EMULATOR_HOST`` is respected. Raises ``UserError``
    for another scheme or a ``gs://`` URI without a bucket, ``StorageUnavailableError`` without credentials.
    """
    check_uri(uri)
    scheme, separator, rest = str(uri).partition("://")
    if not separator:
        return LocalStore(Path(uri))
    if scheme == "file":
        return LocalStore(Path(rest))
    from conversion_retrieval.cloud_storage import CloudStore  # the client takes half a second to import

    bucket, _, prefix = rest.partition("/")
    return CloudStore(bucket, prefix.strip("/"))


def check_uri(uri: str | Path) -> None:
    """Refuse with ``UserError`` what names no store, from the text alone: nothing is imported or contacted."""
    if not str(uri):  # as of a variable that is not set; it would be the working directory
        raise UserError("expected a local path, file:// or gs:// URI, found an empty text")
    scheme, separator, rest = str(uri).partition("://")
    if not separator or scheme == "file":
        return
    if scheme != "gs":
        raise UserError(f"expected a local path, file:// or gs:// URI, found scheme {scheme!r} in {uri}")
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise UserError(f"expected gs://bucket/prefix, found no bucket in {uri}")
    if prefix := prefix.strip("/"):
        safe_key(prefix, uri=str(uri))


def check_shared_uri(uri: str, name: str) -> None:
    """``UserError`` unless all pods find the same at the parameter ``name``'s ``uri``."""
    if not uri.startswith("gs://"):
        raise UserError(f"expected a gs:// prefix for {name}, found {uri!r}: pods share no local directory")
    check_uri(uri)


def check_pod_uris(**uris: str) -> None:
    """``check_shared_uri`` of all parameters that are not empty, in a pod of Kubeflow Pipelines.

    The form of its UI takes any text, and a registry in a pod's own directory would be promoted into, and gone.
    """
    for name, uri in uris.items():
        if uri and os.environ.get(POD_VARIABLE):
            check_shared_uri(uri, name)


def safe_key(key: str, *, uri: str) -> str:
    """``key`` if it is a relative path that stays inside its store, else ``UserError``.

    Parts that start with a dot are refused: a local store keeps its lock and unfinished files under such names.
    """
    if any(not part or part.startswith(".") for part in key.split("/")) or "\\" in key or "\0" in key:
        raise UserError(f"expected a relative key such as versions/1/manifest.json in {uri}, found {key!r}")
    return key


def is_hidden(key: str) -> bool:
    """Whether a part of the key starts with a dot: such objects are nobody's here, and listings leave them out.

    Not one that leads elsewhere, which is refused as any other.
    """
    parts = key.replace("\\", "/").split("/")
    return any(part.startswith(".") for part in parts) and not {".", ".."} & set(parts)


def generation_mismatch(key: str, uri: str, expected: int, found: int | str) -> PreconditionFailedError:
    """The error of a lost compare-and-swap; generation 0 is a missing object."""
    return PreconditionFailedError(
        f"expected generation {expected} of {key} in {uri}, found {found}: written meanwhile"
    )


def nothing_below(prefix: str, uri: str) -> NotFoundError:
    """The error of a directory without objects."""
    return NotFoundError(f"expected objects below {prefix or 'it'} in {uri}, found none")


def upload_order(local_dir: Path) -> list[Path]:
    """Files of a directory, a top-level manifest last: where it is, everything else is too. ``UserError`` if none."""
    files = sorted(path for path in local_dir.rglob("*") if path.is_file())
    if not files:
        raise UserError(f"expected files to upload, found none in {local_dir}")
    return sorted(files, key=lambda path: path == local_dir / MANIFEST)


class LocalStore:
    """A directory as an object store.

    The generation of an object is its file's modification time in nanoseconds, set by ``write`` to something later
    than before and published by the same rename as the content: a crash leaves the old pair or the new, and an edit by
    hand counts as a write. Writers take turns through a lock file that the kernel releases when its holder dies.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()
        self.uri = str(self._root)

    def read(self, key: str) -> Stored:
        """See ``ObjectStore``."""
        with self._translated(key), self._path(key).open("rb") as file:
            # One open file is one version, whatever is renamed over it meanwhile.
            return Stored(content=file.read(), generation=os.fstat(file.fileno()).st_mtime_ns)

    def write(self, key: str, content: bytes, *, if_generation: int | None = None) -> int:
        """See ``ObjectStore``."""
        with self._translated(key), self._temporary(key) as temporary:
            temporary.write_bytes(content)
            return self._publish(temporary, key, if_generation)

    def list(self, prefix: str = "") -> list[str]:
        """See ``ObjectStore``."""
        with self._translated(prefix):
            start = self._path(prefix) if prefix else self._root
            paths = (path.relative_to(self._root) for path in start.rglob("*") if path.is_file())
            return sorted(key for key in (path.as_posix() for path in paths) if not is_hidden(key))

    def describe(self, prefix: str = "") -> Sequence[ObjectInfo]:
        """See ``ObjectStore``."""
        with self._translated(prefix):
            stats = [(key, self._path(key).stat()) for key in self.list(prefix)]
        return [ObjectInfo(key=key, size=stat.st_size, generation=stat.st_mtime_ns) for key, stat in stats]

    def read_range(self, info: ObjectInfo, start: int, end: int) -> bytes:
        """See ``ObjectStore``."""
        with pinned(info, self.uri, found="none"), self._translated(info.key), self._path(info.key).open("rb") as file:
            _check_generation(info, os.fstat(file.fileno()).st_mtime_ns, self.uri)
            file.seek(start)
            return file.read(end - start)

    def newest_write(self, prefix: str) -> float:
        """See ``ObjectStore``."""
        with self._translated(prefix):
            times = [self._path(key).stat().st_mtime for key in self.list(prefix)]
        if not times:
            raise nothing_below(prefix, self.uri)
        return max(times)

    def upload_directory(self, local_dir: Path, prefix: str) -> None:
        """See ``ObjectStore``."""
        for source in upload_order(local_dir):
            key = safe_key(f"{prefix}/{source.relative_to(local_dir).as_posix()}", uri=self.uri)
            with self._translated(key), self._temporary(key) as temporary:
                shutil.copyfile(source, temporary)
                self._publish(temporary, key, None)

    def download_directory(self, prefix: str, local_dir: Path) -> None:
        """See ``ObjectStore``."""
        keys = self.list(prefix)
        if not keys:
            raise nothing_below(prefix, self.uri)
        for key in keys:
            self._download(key, local_dir / key.removeprefix(f"{prefix}/"))

    def download_files(self, infos: Sequence[ObjectInfo], local_dir: Path) -> None:
        """See ``ObjectStore``."""
        for info in infos:
            with pinned(info, self.uri, found="none"), self._translated(info.key):
                self._download(info.key, local_dir / info.key)
                _check_generation(info, self._path(info.key).stat().st_mtime_ns, self.uri)

    def _download(self, key: str, target: Path) -> None:
        with self._translated(key):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._path(key), target)

    def delete_prefix(self, prefix: str) -> None:
        """See ``ObjectStore``. The directory vanishes in one rename."""
        path = self._path(prefix)
        with self._translated(prefix):
            if path.is_dir():
                doomed = self._root / f".{uuid.uuid4().hex}.deleted"
                path.rename(doomed)
                shutil.rmtree(doomed)

    def _path(self, key: str) -> Path:
        return self._root / safe_key(key, uri=self.uri)

    @contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(self, temporary: Path, key: str, if_generation: int | None) -> int:
        sync(temporary)
        path = self._path(key)
        with self._locked():
            found = path.stat().st_mtime_ns if path.exists() else 0
            if if_generation is not None and if_generation != found:
                raise generation_mismatch(key, self.uri, if_generation, found)
            generation = _stamp(temporary, later_than=found)
            temporary.replace(path)
            sync(path.parent)
        return generation

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self._root / LOCK_NAME, timeout=LOCK_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            raise StorageUnavailableError(
                f"expected the lock {self._root / LOCK_NAME} within {LOCK_SECONDS:.0f} s, found it held"
            ) from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError):
            raise NotFoundError(f"expected an object {key} in {self.uri}, found none") from None
        except OSError as error:
            raise StorageUnavailableError(f"expected to reach {key or 'files'} in {self.uri}, found: {error}") from None


@contextmanager
def pinned(info: ObjectInfo, uri: str, *, found: str) -> Iterator[None]:
    """An object that is not there under its generation was replaced: ``NotFoundError`` as ``generation_mismatch``."""
    try:
        yield
    except NotFoundError:
        raise generation_mismatch(info.key, uri, info.generation, found) from None


def _check_generation(info: ObjectInfo, found: int, uri: str) -> None:
    if found != info.generation:
        raise generation_mismatch(info.key, uri, info.generation, found)


def _stamp(path: Path, *, later_than: int) -> int:
    """Set a modification time after ``later_than`` and return it as the file system kept it."""
    for step in CLOCK_STEPS_NS:
        wanted = max(time.time_ns(), later_than + step)
        os.utime(path, ns=(wanted, wanted))
        if (kept := path.stat().st_mtime_ns) > later_than:
            break
    return kept
