"""The kinds of index: how each is built, which settings its search can have, and what it weighs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

Kind = Literal["exact", "hnsw", "ivf", "ivf_pq"]
HNSW_NEIGHBORS: Final = 32
HNSW_BUILD_DEPTH: Final = 80
TRAINING_VECTORS_PER_LIST: Final = 64
MIN_VECTORS_PER_LIST: Final = 39  # FAISS warns below
PQ_ALIGNMENT: Final = 4  # the quantiser codes pairs of dimensions, and needs an even number of pairs


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One kind of index for N vectors of length D.

    ``factory`` is FAISS's description. ``settings`` are the search parameters to try, from fast to accurate, as
    ``faiss.ParameterSpace`` reads them; they are stored inside the index file.
    """

    kind: Kind
    factory: str
    settings: tuple[str, ...]
    memory_mb: float


def recipe(kind: Kind, num_items: int, dim: int) -> Recipe:
    """How an index of this kind is built for ``num_items`` vectors of length ``dim``."""
    return {"exact": _exact, "hnsw": _hnsw, "ivf": _ivf, "ivf_pq": _ivf_pq}[kind](num_items, dim)


def build(recipe: Recipe, vectors: NDArray[np.float32], *, seed: int = 0) -> Any:
    """A FAISS inner-product index of ``vectors`` [N, D]; ids are rows."""
    dim = vectors.shape[1]
    index = faiss.index_factory(dim, recipe.factory, faiss.METRIC_INNER_PRODUCT)
    if recipe.kind == "hnsw":
        faiss.ParameterSpace().set_index_parameter(index, "efConstruction", HNSW_BUILD_DEPTH)
    if not index.is_trained:
        index.train(_training_sample(vectors, seed))
    index.add(vectors)
    return index


def apply_setting(index: Any, setting: str) -> None:
    """Set the search parameters (``"nprobe=8,k_factor_rf=2"``); the empty setting changes nothing."""
    if setting:
        faiss.ParameterSpace().set_index_parameters(index, setting)  # type: ignore[arg-type]  # FAISS overloads it


def num_lists(num_items: int) -> int:
    """Cells of an inverted file: 4 sqrt(N), FAISS's guideline, but few enough for the vectors to train them."""
    return max(1, min(round(4 * math.sqrt(num_items)), num_items // MIN_VECTORS_PER_LIST))


def _exact(num_items: int, dim: int) -> Recipe:
    return Recipe(kind="exact", factory="Flat", settings=("",), memory_mb=_megabytes(num_items * dim * 4))


def _hnsw(num_items: int, dim: int) -> Recipe:
    size = num_items * (dim * 4 + 2 * HNSW_NEIGHBORS * 4)
    settings = tuple(f"efSearch={depth}" for depth in (128, 256, 512, 1024))
    return Recipe(kind="hnsw", factory=f"HNSW{HNSW_NEIGHBORS},Flat", settings=settings, memory_mb=_megabytes(size))


def _ivf(num_items: int, dim: int) -> Recipe:
    lists = num_lists(num_items)
    size = num_items * (dim * 4 + 8) + lists * dim * 4
    settings = tuple(f"nprobe={probes}" for probes in _probes(lists))
    return Recipe(kind="ivf", factory=f"IVF{lists},Flat", settings=settings, memory_mb=_megabytes(size))


def _ivf_pq(num_items: int, dim: int) -> Recipe:
    """4-bit product quantisation finds candidates, 8-bit scalar quantisation orders them: 1.25 bytes a dimension."""
    lists, padded = num_lists(num_items), -(-dim // PQ_ALIGNMENT) * PQ_ALIGNMENT
    pad = f"Pad{padded}," if padded != dim else ""
    size = num_items * (padded / 4 + dim + 8) + lists * padded * 4
    settings = tuple(f"nprobe={probes},k_factor_rf={factor}" for probes in _probes(lists) for factor in (4, 16))
    factory = f"{pad}IVF{lists},PQ{padded // 2}x4fs,Refine(SQ8)"
    return Recipe(kind="ivf_pq", factory=factory, settings=settings, memory_mb=_megabytes(size))


def _probes(lists: int) -> Sequence[int]:
    return [probes for probes in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if probes < lists] + [min(lists, 2048)]


def _training_sample(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    size = max(TRAINING_VECTORS_PER_LIST * num_lists(len(vectors)), 10_000)
    if len(vectors) <= size:
        return vectors
    return vectors[np.sort(np.random.default_rng(seed).choice(len(vectors), size, replace=False))]


def _megabytes(size: float) -> float:
    return size / 2**20
