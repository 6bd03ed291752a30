"""Parquet objects of a store, read by row group and column: the footer first, then only the bytes that are asked for.

The footers say where each column of each row group lies. What comes next is fetched in parallel while the last is
decoded, and dropped afterwards, so that memory does not grow with the objects. Every request names the generation
that the listing found: an object that is replaced in the middle of a read is an error, never a mixture.
"""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from conversion_retrieval.storage import ObjectInfo, ObjectStore

MIB: Final = 2**20
PARALLEL_READS: Final = 8
FOOTER_BYTES: Final = 64 * 1024  # the footer of most files: one request brings all of it
GAP_BYTES: Final = MIB // 4  # what arrives in the time that one request more costs while others run beside it
REQUEST_BYTES: Final = 8 * MIB
WINDOW_BYTES: Final = 32 * MIB
BYTES_AHEAD: Final = 128 * MIB
STREAM_BYTES: Final = 4 * MIB
Range = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class RemoteParquet:
    """One Parquet object at the generation in which it was found; ``pool`` carries the requests of all of a table.

    Reading raises ``StorageUnavailableError`` where the store does not answer, ``PreconditionFailedError`` where the
    object was replaced or deleted, and Arrow's exceptions for content that is no intact Parquet.
    """

    store: ObjectStore
    info: ObjectInfo
    pool: ThreadPoolExecutor

    def __str__(self) -> str:
        """The object's URI."""
        return f"{self.store.uri}/{self.info.key}"

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.info.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """As a path's."""
        return ".parquet"

    @cached_property
    def metadata(self) -> pq.FileMetaData:
        """The footer: one request, two where it is long."""
        start = max(self.info.size - FOOTER_BYTES, 0)
        tail = self.fetch((start, self.info.size))
        return pq.ParquetFile(_RangedFile(self, [(start, tail)])).metadata

    def fetch(self, wanted: Range) -> bytes:
        """The bytes of one range; ``ArrowInvalid`` where a damaged footer points outside the object."""
        start, end = wanted
        if not 0 <= start <= end <= self.info.size:
            raise pa.ArrowInvalid(f"bytes {start} to {end} of an object of {self.info.size}")
        return self.store.read_range(self.info, start, end) if end > start else b""

    def open(self, pieces: Sequence[tuple[int, bytes]] = ()) -> pq.ParquetFile:
        """The file for Arrow, which finds in ``pieces`` (start, bytes) what is there already and fetches the rest."""
        buffer_size = 0 if pieces else STREAM_BYTES  # each column gets a buffer of that size
        source = _RangedFile(self, pieces)
        return pq.ParquetFile(source, metadata=self.metadata, pre_buffer=False, buffer_size=buffer_size)


def fetch_footers(files: Iterable[RemoteParquet]) -> None:
    """Read all footers in parallel; one that is no footer is left to whoever opens the file."""

    def fetch(file: RemoteParquet) -> None:
        with suppress(pa.ArrowException):
            file.metadata  # noqa: B018 # kept on the file

    for future in [file.pool.submit(fetch, file) for file in files]:
        future.result()


class ReadAhead:
    """Fetches the row groups of some files, in their order, ahead of whoever decodes them.

    At most ``BYTES_AHEAD`` are held, those being decoded included. A row group larger than that is not fetched ahead
    but streamed, each column in pieces of ``STREAM_BYTES``. Close it (or leave its context) to drop what is unread.
    """

    def __init__(self, files: Sequence[RemoteParquet], columns: Sequence[str]) -> None:
        self._coming = (window for file in files for window in _windows(file, columns))
        self._next: _Window | None = next(self._coming, None)
        self._fetched: deque[tuple[_Window, list[Future[bytes]]]] = deque()
        self._held = 0

    def __enter__(self) -> "ReadAhead":
        """See the class."""
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel what is not wanted any more."""
        for _, futures in self._fetched:
            for future in futures:
                future.cancel()

    def parts(self, file: RemoteParquet) -> Iterator[tuple[pq.ParquetFile, list[int]]]:
        """The file with the row groups whose bytes are there, part by part; files in the order of the constructor."""
        while True:
            self._submit()
            if not self._fetched or self._fetched[0][0].file is not file:
                return
            window, futures = self._fetched.popleft()
            pieces = [(start, future.result()) for (start, _), future in zip(window.requests, futures, strict=True)]
            yield file.open(pieces), list(window.row_groups)
            self._held -= window.size

    def _submit(self) -> None:
        while self._next is not None and (not self._held or self._held + self._next.size <= BYTES_AHEAD):
            window = self._next
            self._next = next(self._coming, None)
            self._fetched.append((window, [window.file.pool.submit(window.file.fetch, r) for r in window.requests]))
            self._held += window.size


@dataclass(frozen=True, kw_only=True)
class _Window:
    """Consecutive row groups that are fetched together."""

    file: RemoteParquet
    row_groups: tuple[int, ...]
    requests: tuple[Range, ...]

    @property
    def size(self) -> int:
        return sum(end - start for start, end in self.requests)


def _windows(file: RemoteParquet, columns: Sequence[str]) -> Iterator[_Window]:
    """Row groups in order, as many at a time as ``WINDOW_BYTES`` hold."""
    groups: list[int] = []
    ranges: list[Range] = []

    def window() -> _Window:
        requests = tuple(coalesced(ranges))
        fits = sum(end - start for start, end in requests) <= BYTES_AHEAD
        return _Window(file=file, row_groups=tuple(groups), requests=requests if fits else ())

    for index in range(file.metadata.num_row_groups):
        wanted = column_ranges(file.metadata.row_group(index), columns)
        if groups and sum(end - start for start, end in ranges + wanted) > WINDOW_BYTES:
            yield window()
            groups, ranges = [], []
        groups.append(index)
        ranges += wanted
    if groups:
        yield window()


def column_ranges(row_group: pq.RowGroupMetaData, columns: Sequence[str]) -> list[Range]:
    """Where the chunks of these columns lie, the leaves of nested ones included."""
    chunks = [row_group.column(number) for number in range(row_group.num_columns)]
    return [_chunk_range(c) for c in chunks if any(f"{c.path_in_schema}.".startswith(f"{n}.") for n in columns)]


def _chunk_range(chunk: pq.ColumnChunkMetaData) -> Range:
    """A chunk begins with its dictionary where it has one."""
    start = chunk.data_page_offset
    if chunk.dictionary_page_offset:  # None, or 0 by some writers, where there is none
        start = min(start, chunk.dictionary_page_offset)
    return start, start + chunk.total_compressed_size


def coalesced(ranges: Iterable[Range], *, gap: int = GAP_BYTES, most: int = REQUEST_BYTES) -> list[Range]:
    """The same bytes in as few requests as sensible: ranges at most ``gap`` apart joined, cut at ``most`` bytes."""
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if joined and start - joined[-1][1] <= gap:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return [cut for start, end in joined for cut in pairwise([*range(start, end, most), end])]


class _RangedFile(io.RawIOBase):
    """What Arrow reads from: bytes that were fetched before, and a request for any others."""

    def __init__(self, file: RemoteParquet, pieces: Sequence[tuple[int, bytes]]) -> None:
        super().__init__()
        self._fetch: Callable[[Range], bytes] = file.fetch
        self._size = file.info.size
        self._pieces = sorted(pieces)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> Any:
        """The bytes as a view where one piece has them all: nothing is copied."""
        start = self._position
        end = self._size if size < 0 else min(start + size, self._size)
        content = self._held(start, end)
        self._position = end
        return self._fetch((start, end)) if content is None else content

    def _held(self, start: int, end: int) -> memoryview | bytes | None:
        """The range out of adjoining pieces, or None if they do not cover it."""
        views, position = [], start
        for first, content in self._pieces:
            if first <= position < first + len(content) and position < end:
                views.append(memoryview(content)[position - first : end - first])
                position += len(views[-1])
        if position < end or not views:
            return None
        return views[0] if len(views) == 1 else b"".join(views)
