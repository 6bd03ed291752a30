"""Writing canonical tables: whole directories at once, ids and embeddings from arrays."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conversion_retrieval.contracts import replace_directory, sync
from conversion_retrieval.datasets.report import REPORT_NAME
from conversion_retrieval.errors import UserError
from conversion_retrieval.schema import EVENTS

TRUTH: Final = "truth"
TRUTH_CONFIG: Final = f"{TRUTH}/config.json"
_OWN_NAMES = {"events", "items.parquet", "users.parquet", TRUTH, REPORT_NAME}
_OWN_MARKS = (REPORT_NAME, TRUTH_CONFIG)  # one of these is in every directory made here
EVENTS_SCHEMA = pa.schema([(column.name, column.kind) for column in EVENTS.columns])


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``path`` on success; on an exception nothing appears there.

    What an earlier ``import`` or ``generate`` left at ``path`` is replaced; ``UserError`` if anything else is there.
    """
    path = Path(path)
    _refuse_foreign(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        working_dir = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        working_dir.mkdir()
    except OSError as error:
        raise UserError(f"expected to be able to write to {path}, found: {error.strerror}") from None
    try:
        yield working_dir
        for file_path in working_dir.rglob("*"):
            sync(file_path)
        replace_directory(working_dir, path)
    finally:
        shutil.rmtree(working_dir, ignore_errors=True)


def _refuse_foreign(path: Path) -> None:
    """A mistyped output must not cost anyone the files that happen to be there, tables of their own least of all."""
    if path.exists() and not path.is_dir():
        raise UserError(f"expected a directory to write to, found a file at {path}: choose another output")
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    foreign = [name for name in names if name not in _OWN_NAMES]
    if not any((path / mark).exists() for mark in _OWN_MARKS):
        foreign = foreign or names
    if foreign:
        raise UserError(
            f"expected nothing or tables imported or generated before at {path}, found {foreign[0]}: "
            "choose another output"
        )


def write_table(table: pa.Table, path: Path) -> None:
    """Write one Parquet file, making its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=1 << 18)


def numbered_ids(prefix: str, numbers: NDArray[np.integer], width: int) -> pa.Array:
    """Ids such as ``u00042``: their order is the numbers' order. A negative number gives null."""
    digits = pc.utf8_lpad(pc.cast(pa.array(numbers), pa.string()), width=width, padding="0")
    return pc.if_else(pa.array(numbers >= 0), pc.binary_join_element_wise(prefix, digits, ""), None)


def embedding_column(vectors: NDArray[np.floating], present: NDArray[np.bool_] | None = None) -> pa.Array:
    """Rows of ``vectors`` [n, d] as ``list<float32>``; null where not ``present``."""
    rows, width = vectors.shape
    present = np.ones(rows, dtype=bool) if present is None else present
    offsets = np.concatenate([[0], np.cumsum(np.where(present, width, 0))]).astype(np.int32)
    values = pa.array(vectors[present].astype(np.float32).ravel())
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~present))
