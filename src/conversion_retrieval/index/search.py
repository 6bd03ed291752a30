"""Searching a built index: what serving and the gate's recall go through."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conversion_retrieval.contracts import open_artifact
from conversion_retrieval.errors import CorruptArtifactError, one_line
from conversion_retrieval.index.flat import Search, search_of

INDEX_FILE: Final = "index.faiss"
ITEM_IDS_FILE: Final = "item_ids.parquet"
VECTORS_FILE: Final = "item_embeddings.npy"
FACTS_FILE: Final = "index.json"
NOT_FOUND: Final = -1


@dataclass(frozen=True, kw_only=True)
class ItemIndex:
    """An index with its items: row r of the index is ``item_ids[r]``. Searching is safe from many threads."""

    index: Any
    item_ids: pa.StringArray
    facts: dict[str, Any]
    digest: str = ""

    @classmethod
    def open(cls, index_dir: Path | str) -> "ItemIndex":
        """Open an index artifact after checking every file's digest; ``CorruptArtifactError`` names a bad one."""
        manifest = open_artifact(index_dir, kind="index")
        return read_index(Path(index_dir), digest=manifest.digest)

    def __len__(self) -> int:
        """The number of items."""
        return len(self.item_ids)

    @property
    def dim(self) -> int:
        """The length of the vectors."""
        return int(self.index.d)

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The ``min(k, N)`` best items of each of ``vectors`` [B, D]: scores and rows, best first.

        A place that the search could not fill has row -1 and score -inf, and so has every place of a vector that is not
        finite. A zero vector scores every item 0. Raises ``ValueError`` for vectors of another length or ``k`` below 1.
        """
        vectors = self._checked(vectors, k)
        finite = np.isfinite(vectors).all(axis=1, keepdims=True)
        scores, rows = self._search(np.where(finite, vectors, 0), min(k, len(self)))
        missing = (rows < 0) | ~finite
        return np.where(missing, -np.inf, scores).astype(np.float32), np.where(missing, NOT_FOUND, rows)

    @cached_property
    def _search(self) -> Search:
        return search_of(self.index)

    def _checked(self, vectors: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        if k < 1:
            raise ValueError(f"expected k of at least 1, found {k}")
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"expected vectors [B, {self.dim}], found shape {vectors.shape}")
        return np.ascontiguousarray(vectors, np.float32)


def read_index(directory: Path, *, digest: str = "") -> ItemIndex:
    """Read an index's files and check that they fit together; ``CorruptArtifactError`` otherwise."""
    path = directory / INDEX_FILE
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        reason = one_line(error)[-200:]
        raise CorruptArtifactError(f"expected a FAISS index at {path}, found an unreadable file: {reason}") from None
    item_ids = _read_item_ids(directory / ITEM_IDS_FILE)
    if index.ntotal != len(item_ids):
        raise CorruptArtifactError(
            f"expected {len(item_ids)} vectors as in {ITEM_IDS_FILE}, found {index.ntotal} at {path}"
        )
    return ItemIndex(index=index, item_ids=item_ids, facts=_read_facts(directory / FACTS_FILE), digest=digest)


def _read_item_ids(path: Path) -> pa.StringArray:
    try:
        column = pq.read_table(path)["item_id"]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise CorruptArtifactError(f"expected item ids at {path}, found: {one_line(error)}") from None
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(f"expected JSON at {path}, found: {error}") from None
    if not isinstance(facts, dict):
        raise CorruptArtifactError(f"expected a JSON object at {path}, found {type(facts).__name__}")
    return facts
