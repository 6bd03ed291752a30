"""Copies of promoted bundles on this machine: downloaded once, verified at every opening, deleted when unused.

```
CACHE/<version>/          a copy, complete: it is renamed into place. Who uses it holds a shared lock on its manifest
CACHE/*.partial/          a download or deletion under way, or one whose process died
CACHE/.lock               held while copies are made, opened and deleted
```
The kernel releases all locks of a process that ends, however it ends: nothing is left behind that nobody clears away.
"""

import fcntl
import os
import shutil
import tempfile
import uuid
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final

from filelock import FileLock

from conversion_retrieval.contracts import MANIFEST
from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.registry.bundle import Bundle, open_bundle
from conversion_retrieval.registry.registry import Registry

CACHE_VARIABLE: Final = "CONVERSION_RETRIEVAL_CACHE"
KEPT_UNUSED: Final = 2
PARTIAL: Final = ".partial"


def cache_dir() -> Path:
    """``$CONVERSION_RETRIEVAL_CACHE``, else in the user's cache directory, else in the temporary directory.

    Raises ``UserError`` where that last one belongs to somebody else.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "conversion-retrieval" / "bundles"
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        writable = os.access(home, os.W_OK)
    except OSError:  # a container without a writable home
        writable = False
    return home if writable else _temporary_dir()


def _temporary_dir() -> Path:
    """Everyone may write beside it and make it first: one of somebody else could change a copy after its check."""
    path = Path(tempfile.gettempdir()) / f"conversion-retrieval-{os.getuid()}"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if path.lstat().st_uid != os.getuid() or not path.is_dir():
        raise UserError(f"expected a directory of this user at {path}, found somebody else's: set {CACHE_VARIABLE}")
    return path


@dataclass
class BundleCache:
    """Copies in ``root``; those that this process fetched are kept until ``release_all_but`` or its end.

    Of the copies that no process uses all but the newest are deleted, whenever one is fetched or released.
    """

    root: Path = field(default_factory=cache_dir)
    _used: dict[str, IO[bytes]] = field(default_factory=dict)

    def fetch(self, registry: Registry, version: str) -> Bundle:
        """The bundle of a version, every byte verified: the copy at hand if it is whole, else a new download.

        Raises what ``Registry.manifest`` and ``Registry.download`` raise; ``UserError`` where no copy can be kept.
        """
        digest = registry.manifest(version).digest
        self._make_root()
        with self._locked():
            bundle = self._kept(version, digest) or self._downloaded(registry, version)
            if version not in self._used:
                self._used[version] = (bundle.directory / MANIFEST).open("rb")
                fcntl.flock(self._used[version], fcntl.LOCK_SH)
            self._delete_unused()
        return bundle

    def release_all_but(self, version: str) -> None:
        """No longer use other versions."""
        for name in [name for name in self._used if name != version]:
            self._used.pop(name).close()
        with self._locked():
            self._delete_unused()

    def _make_root(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            writable = os.access(self.root, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            raise UserError(
                f"expected a directory for copies of bundles at {self.root}, found none that can be written to: "
                f"set {CACHE_VARIABLE} to another"
            )

    def _delete_unused(self) -> None:
        unused = [path for path in self.root.glob(f"*/{MANIFEST}") if _is_unlocked(path)]
        newest_first = sorted(unused, key=lambda path: path.parent.stat().st_mtime, reverse=True)
        for path in newest_first[KEPT_UNUSED:]:
            self._delete(path.parent)

    def _delete(self, path: Path) -> None:
        """Under a download's name: what is left of it where the process dies on the way is cleared like one."""
        with suppress(FileNotFoundError):
            shutil.rmtree(path.rename(self.root / f"{path.name}.{uuid.uuid4().hex}{PARTIAL}"), ignore_errors=True)

    def _kept(self, version: str, digest: str) -> Bundle | None:
        path = self.root / version
        try:
            bundle = open_bundle(path)
        except CorruptArtifactError:
            bundle = None
        if bundle is None or bundle.manifest.digest != digest:
            self._delete(path)
            return None
        os.utime(path)
        return bundle

    def _downloaded(self, registry: Registry, version: str) -> Bundle:
        for abandoned in self.root.glob(f"*{PARTIAL}"):  # under the lock, no other download is under way
            shutil.rmtree(abandoned, ignore_errors=True)
        partial = self.root / f"{version}{PARTIAL}"
        try:
            bundle = registry.download(version, partial)
            return replace(bundle, directory=partial.rename(self.root / version))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _locked(self) -> FileLock:
        return FileLock(self.root / ".lock")


def _is_unlocked(path: Path) -> bool:
    """Whether no process holds a lock on a file."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
