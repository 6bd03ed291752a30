"""Google Cloud Storage as an object store: preconditions, bounded retries, parallel checksummed transfers."""

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from google.api_core import exceptions as api_exceptions
from google.api_core.retry import Retry
from google.auth import exceptions as auth_exceptions
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from urllib3.exceptions import HTTPError

from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.storage import (
    NotFoundError,
    ObjectInfo,
    StorageUnavailableError,
    Stored,
    generation_mismatch,
    is_hidden,
    nothing_below,
    pinned,
    safe_key,
    upload_order,
)

WRITE_ID: Final = "write-id"
PARALLEL_TRANSFERS: Final = 8
FAILURES: Final = (
    api_exceptions.GoogleAPIError,
    auth_exceptions.GoogleAuthError,
    DataCorruption,
    InvalidResponse,
    OSError,  # what the HTTP client raises, too
    HTTPError,  # a body that breaks off, where it is read without requests' help
)


class CloudStore:
    """Objects below ``gs://bucket/prefix``.

    Answers 408, 429 and 5xx, time-outs and broken connections are retried with growing pauses for at most
    ``retry_seconds`` in all, the first at most ``pause_seconds`` long; a request waits ``timeout`` seconds.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        retry_seconds: float = 60.0,
        pause_seconds: float = 1.0,
        timeout: float = 60.0,
    ) -> None:
        if not bucket:
            raise UserError(f"expected gs://bucket/prefix, found no bucket in gs:///{prefix}")
        self.uri = f"gs://{bucket}/{prefix}".rstrip("/")
        self._prefix = f"{safe_key(prefix, uri=self.uri)}/" if prefix else ""
        retry = DEFAULT_RETRY.with_timeout(retry_seconds).with_delay(initial=pause_seconds)
        self._options: dict[str, Any] = {"retry": retry, "timeout": timeout}
        self._bucket_name = bucket
        self._local = threading.local()
        self._bucket()  # missing credentials are reported here

    def read(self, key: str) -> Stored:
        """See ``ObjectStore``."""
        blob = self._blob(key)
        with self._translated(key):
            # A fresh blob: content and generation come from the same answer.
            return Stored(content=blob.download_as_bytes(**self._options), generation=int(blob.generation))

    def write(self, key: str, content: bytes, *, if_generation: int | None = None) -> int:
        """See ``ObjectStore``.

        An answer may be lost after the write took effect; the retry then meets its own write and is refused. So each
        write carries an id, and after such a refusal the object tells whether it was ours.
        """
        blob = self._blob(key)
        blob.metadata = {WRITE_ID: uuid.uuid4().hex}
        attempts = _FailedAttempts(self._options["retry"])
        try:
            with self._translated(key):
                blob.upload_from_string(
                    content,
                    content_type="application/octet-stream",
                    if_generation_match=if_generation,
                    checksum="crc32c",
                    **self._options | {"retry": attempts.retry},
                )
        except api_exceptions.PreconditionFailed:
            assert if_generation is not None
            if not attempts.failed:
                raise generation_mismatch(key, self.uri, if_generation, "another") from None
            return self._own_generation(key, blob.metadata[WRITE_ID], if_generation)
        return int(blob.generation)

    def list(self, prefix: str = "") -> list[str]:
        """See ``ObjectStore``. Zero-byte ``dir/`` place-holders, which consoles create, are left out."""
        return [info.key for info in self.describe(prefix)]

    def describe(self, prefix: str = "") -> Sequence[ObjectInfo]:
        """See ``ObjectStore``."""
        start = self._prefix + (f"{safe_key(prefix, uri=self.uri)}/" if prefix else "")
        with self._translated(prefix):
            found = tuple(self._bucket().list_blobs(prefix=start, **self._options))
        keys = ((blob.name.removeprefix(self._prefix), blob) for blob in found if not blob.name.endswith("/"))
        infos = (
            ObjectInfo(key=safe_key(key, uri=self.uri), size=int(blob.size), generation=int(blob.generation))
            for key, blob in keys
            if not is_hidden(key)
        )
        return sorted(infos, key=lambda info: info.key)

    def read_range(self, info: ObjectInfo, start: int, end: int) -> bytes:
        """See ``ObjectStore``. A bucket that keeps versions still has the generation when it has been replaced."""
        blob = self._blob(info.key, info.generation)
        with pinned(info, self.uri, found="another or none"), self._translated(info.key):
            content: bytes = blob.download_as_bytes(start=start, end=end - 1, raw_download=True, **self._options)
        if len(content) != end - start:
            raise StorageUnavailableError(
                f"expected {end - start} bytes from {start} of {info.key} in {self.uri}, found {len(content)}"
            )
        return content

    def newest_write(self, prefix: str) -> float:
        """See ``ObjectStore``."""
        start = f"{self._prefix}{safe_key(prefix, uri=self.uri)}/"
        with self._translated(prefix):
            times = [blob.updated.timestamp() for blob in self._bucket().list_blobs(prefix=start, **self._options)]
        if not times:
            raise nothing_below(prefix, self.uri)
        return float(max(times))

    def upload_directory(self, local_dir: Path, prefix: str) -> None:
        """See ``ObjectStore``. Files travel in parallel, each with its checksum; large ones in resumable chunks."""
        *files, last = upload_order(local_dir)

        def upload(path: Path) -> None:
            key = f"{prefix}/{path.relative_to(local_dir).as_posix()}"
            with self._translated(key):
                self._blob(key).upload_from_filename(str(path), checksum="crc32c", **self._options)

        _in_parallel(upload, files)
        upload(last)

    def download_directory(self, prefix: str, local_dir: Path) -> None:
        """See ``ObjectStore``. Objects are streamed to files in parallel and checked against their CRC32C."""
        keys = self.list(prefix)
        if not keys:
            raise nothing_below(prefix, self.uri)

        _in_parallel(
            lambda key: self._download(key, local_dir / (key.removeprefix(f"{prefix}/") if prefix else key)), keys
        )

    def download_files(self, infos: Sequence[ObjectInfo], local_dir: Path) -> None:
        """See ``ObjectStore``. In parallel and checked, as ``download_directory``."""

        def download(info: ObjectInfo) -> None:
            with pinned(info, self.uri, found="another or none"):
                self._download(info.key, local_dir / info.key, info.generation)

        _in_parallel(download, infos)

    def _download(self, key: str, target: Path, generation: int | None = None) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._translated(key):
            self._blob(key, generation).download_to_filename(str(target), checksum="crc32c", **self._options)

    def delete_prefix(self, prefix: str) -> None:
        """See ``ObjectStore``."""
        safe_key(prefix, uri=self.uri)

        def delete(key: str) -> None:
            try:
                with self._translated(key):
                    self._blob(key).delete(**self._options)
            except NotFoundError:
                pass  # an earlier attempt or someone else was faster

        _in_parallel(delete, self.list(prefix))

    def _own_generation(self, key: str, write_id: str, expected: int) -> int:
        with self._translated(key):
            found = self._bucket().get_blob(self._prefix + key, **self._options)
        if found is not None and (found.metadata or {}).get(WRITE_ID) == write_id:
            return int(found.generation)
        raise generation_mismatch(key, self.uri, expected, int(found.generation) if found else 0)

    def _bucket(self) -> Any:
        """One client a thread: its HTTP session is not made for sharing."""
        if not hasattr(self._local, "bucket"):
            with self._translated("credentials"):
                self._local.bucket = storage.Client().bucket(self._bucket_name)
        return self._local.bucket

    def _blob(self, key: str, generation: int | None = None) -> Any:
        return self._bucket().blob(self._prefix + safe_key(key, uri=self.uri), generation=generation)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except api_exceptions.PreconditionFailed:
            raise
        except api_exceptions.NotFound as error:
            if self._bucket_is_missing(error):
                message = f"expected a bucket {self._bucket_name}, found none: create it or correct {self.uri}"
                raise StorageUnavailableError(message) from None
            raise NotFoundError(f"expected an object {key} in {self.uri}, found none") from None
        except FAILURES as error:
            message = one_line(error)
            raise StorageUnavailableError(
                f"expected to reach {key or 'objects'} in {self.uri}, found: {message}"
            ) from None

    def _bucket_is_missing(self, error: api_exceptions.NotFound) -> bool:
        """Both are a plain 404; listing tells them apart, where the caller may list."""
        if "No such object" in str(error):
            return False
        try:
            next(iter(self._bucket().list_blobs(max_results=1, **self._options)), None)
        except api_exceptions.NotFound:
            return True
        except FAILURES:
            return False
        return False


class _FailedAttempts:
    """A retry policy that remembers whether an attempt failed, and so may have taken effect unheard."""

    def __init__(self, retry: Retry) -> None:
        self.failed = False
        self._should_retry = retry._predicate  # no public way to extend a policy's predicate
        self.retry = retry.with_predicate(self._note)

    def _note(self, error: Exception) -> bool:
        retried = bool(self._should_retry(error))
        self.failed |= retried
        return retried


def _in_parallel(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Run ``work`` on every item in threads; the first failure stops what has not begun and is raised."""
    with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
