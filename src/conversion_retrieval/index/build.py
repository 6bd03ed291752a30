"""The kinds of index: how each is built, which settings its search can have, and what it weighs.

Cells and graphs find neighbours by distance, and the item of largest inner product need not be near: popular items are
long vectors, and as they are they hide the others from both. So all kinds but the exact one hold lifted vectors, with
one more coordinate that makes all lengths equal: then the nearest is the one of largest inner product (Bachrach et al.,
"Speeding up the Xbox recommender system", RecSys 2014). A query has 0 there, so that scores stay what they are; the
transform that puts it there is part of the FAISS index and of its file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.errors import UserError

Kind = Literal["exact", "hnsw", "ivf", "ivf_pq"]
HNSW_NEIGHBORS: Final = 32
HNSW_BUILD_DEPTH: Final = 80
TRAINING_VECTORS_PER_LIST: Final = 64
MIN_VECTORS_PER_LIST: Final = 39  # FAISS warns below
EQUAL_LENGTHS: Final = 1e-3
PQ_CENTROIDS: Final = 16  # of each quantiser of 4 bits: FAISS trains them on no fewer vectors
PQ_ALIGNMENT: Final = 4  # the quantiser codes pairs of dimensions, and needs an even number of pairs


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One kind of index for N vectors of length D.

    ``factory`` is FAISS's description. With a ``lifted_dim`` its ``Pad`` lifts the vectors to so many dimensions.
    ``settings`` are the search parameters to try, from fast to accurate, as ``faiss.ParameterSpace`` reads them; they
    are stored inside the index file.
    """

    kind: Kind
    factory: str
    settings: tuple[str, ...]
    memory_mb: float
    lifted_dim: int = 0


def recipe(kind: Kind, num_items: int, dim: int, *, lift: bool = True) -> Recipe:
    """How an index of this kind is built for ``num_items`` vectors of ``dim`` dimensions; lifted only if not exact.

    Raises ``UserError`` for a kind that cannot be trained on so few.
    """
    if kind == "exact":
        return _exact(num_items, dim)
    if not can_be_trained(kind, num_items):
        raise UserError(
            f"expected {PQ_CENTROIDS} items or more for index.kind=ivf_pq, found {num_items}: set index.kind=exact"
        )
    return {"hnsw": _hnsw, "ivf": _ivf, "ivf_pq": _ivf_pq}[kind](num_items, dim, lift)


def can_be_trained(kind: Kind, num_items: int) -> bool:
    """Whether a catalogue has as many items as this kind of index learns from."""
    return kind != "ivf_pq" or num_items >= PQ_CENTROIDS


def needs_lifting(vectors: NDArray[np.float32]) -> bool:
    """Whether the lengths of ``vectors`` [N, D] differ, by more than rounding."""
    squares = np.einsum("nd,nd->n", vectors, vectors)
    return bool(squares.max(initial=0.0) - squares.min(initial=np.inf) > EQUAL_LENGTHS * squares.max(initial=0.0))


def build(recipe: Recipe, vectors: NDArray[np.float32], *, seed: int = 0) -> Any:
    """A FAISS inner-product index of ``vectors`` [N, D]; ids are rows."""
    if not recipe.lifted_dim:
        return _filled(recipe, recipe.factory, vectors, seed)
    inner = _filled(recipe, recipe.factory.partition(",")[2], lifted(vectors, recipe.lifted_dim), seed)
    index = faiss.IndexPreTransform(inner)
    pad = faiss.RemapDimensionsTransform(vectors.shape[1], recipe.lifted_dim, False)  # type: ignore[arg-type]  # FAISS overloads it
    index.prepend_transform(pad)
    return index


def lifted(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """``vectors`` [N, D] with a coordinate more that makes all as long as the longest, and zeros up to ``dim``."""
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    result = np.zeros((len(vectors), dim), np.float32)
    result[:, : vectors.shape[1]] = vectors
    result[:, vectors.shape[1]] = np.sqrt(np.maximum(squares.max(initial=0.0) - squares, 0))
    return result


def _filled(recipe: Recipe, factory: str, vectors: NDArray[np.float32], seed: int) -> Any:
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
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


def _hnsw(num_items: int, dim: int, lift: bool) -> Recipe:
    stored = dim + lift
    size = num_items * (stored * 4 + 2 * HNSW_NEIGHBORS * 4)
    settings = tuple(f"efSearch={depth}" for depth in (64, 128, 256, 512, 1024))
    return _padded_recipe("hnsw", f"HNSW{HNSW_NEIGHBORS},Flat", settings, size, dim, stored, lift)


def _ivf(num_items: int, dim: int, lift: bool) -> Recipe:
    lists, stored = num_lists(num_items), dim + lift
    size = num_items * (stored * 4 + 8) + lists * stored * 4
    settings = tuple(f"nprobe={probes}" for probes in _probes(lists))
    return _padded_recipe("ivf", f"IVF{lists},Flat", settings, size, dim, stored, lift)


def _ivf_pq(num_items: int, dim: int, lift: bool) -> Recipe:
    """4-bit product quantisation finds candidates, 8-bit scalar quantisation orders them: 1.25 bytes a dimension."""
    lists, stored = num_lists(num_items), -(-(dim + lift) // PQ_ALIGNMENT) * PQ_ALIGNMENT
    size = num_items * (stored / 4 + stored + 8) + lists * stored * 4
    settings = tuple(f"nprobe={probes},k_factor_rf={factor}" for probes in _probes(lists) for factor in (4, 16))
    return _padded_recipe("ivf_pq", f"IVF{lists},PQ{stored // 2}x4fs,Refine(SQ8)", settings, size, dim, stored, lift)


def _padded_recipe(
    kind: Kind, factory: str, settings: tuple[str, ...], size: float, dim: int, stored: int, lift: bool
) -> Recipe:
    pad = f"Pad{stored}," if stored > dim else ""
    lifted_dim = stored if lift else 0
    return Recipe(
        kind=kind, factory=pad + factory, settings=settings, memory_mb=_megabytes(size), lifted_dim=lifted_dim
    )


def _probes(lists: int) -> Sequence[int]:
    return [probes for probes in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if probes < lists] + [min(lists, 2048)]


def _training_sample(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    size = max(TRAINING_VECTORS_PER_LIST * num_lists(len(vectors)), 10_000)
    if len(vectors) <= size:
        return vectors
    return vectors[np.sort(np.random.default_rng(seed).choice(len(vectors), size, replace=False))]


def _megabytes(size: float) -> float:
    return size / 2**20
