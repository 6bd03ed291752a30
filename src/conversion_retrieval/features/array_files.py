"""NumPy files that grow: written piece by piece, their length filled in at the end."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray


class GrowingArray:
    """An .npy file of shape [n, *width] to which rows are appended; a context manager."""

    def __init__(self, path: Path, kind: type, width: tuple[int, ...] = ()) -> None:
        self._kind, self._width, self._length = np.dtype(kind), width, 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows [n, *width] of this kind."""
        assert rows.dtype == self._kind
        assert rows.shape[1:] == self._width
        np.ascontiguousarray(rows).tofile(self._file)
        self._length += len(rows)

    def append_file(self, path: Path) -> None:
        """Add all rows of an .npy file of the same layout, copying bytes without holding them."""
        with path.open("rb") as part:
            npy.read_magic(part)
            shape, _, kind = npy.read_array_header_1_0(part)
            assert kind == self._kind
            shutil.copyfileobj(part, self._file, 1 << 20)
        self._length += shape[0]

    def __enter__(self) -> "GrowingArray":
        """The open file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the final length and close."""
        data_start = self._header_size
        self._file.seek(0)
        self._write_header()
        assert self._header_size == data_start, "NumPy pads headers so that the first dimension may grow in place"
        self._file.close()

    def _write_header(self) -> None:
        shape = (self._length, *self._width)
        header = {"descr": npy.dtype_to_descr(self._kind), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, header)
        self._header_size = self._file.tell()


def concatenate_arrays(sources: Sequence[Path], target: Path, kind: type) -> None:
    """Join one-dimensional .npy files into one."""
    with GrowingArray(target, kind) as joined:
        for source in sources:
            joined.append_file(source)
