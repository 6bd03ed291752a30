"""Choosing a kind of index and its search parameters by measurement, on queries of the validation window."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.evaluation.ranking import top_k
from conversion_retrieval.index.build import Kind, Recipe, apply_setting, build, recipe
from conversion_retrieval.index.config import IndexConfig
from conversion_retrieval.progress import say

APPROXIMATE: Final[tuple[Kind, ...]] = ("ivf", "hnsw", "ivf_pq")
LATENCY_QUERIES: Final = 200
SETTINGS_BEYOND_TARGET: Final = 3


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured setting: recall against exact search, latency of single queries on one core, batch throughput."""

    kind: Kind
    factory: str
    setting: str
    recall: float
    p50_ms: float
    p99_ms: float
    queries_per_second: float
    memory_mb: float

    def fits(self, config: IndexConfig) -> bool:
        """Whether it keeps the latency and memory budget."""
        return self.p99_ms <= config.max_latency_ms and self.memory_mb <= config.max_memory_mb


@dataclass(frozen=True, kw_only=True)
class TunedIndex:
    """The chosen index with its parameters set, and everything that was measured on the way."""

    index: Any
    chosen: Point
    target_met: bool
    trade_off: tuple[Point, ...]


def tune_index(vectors: NDArray[np.float32], queries: NDArray[np.float32], config: IndexConfig) -> TunedIndex:
    """The fastest index of ``vectors`` [N, D] that reaches the target on ``queries`` [Q, D] within the budget.

    Where none does: the one of highest recall within the budget, or without the budget if nothing fits it.
    """
    _, truth = top_k(queries, vectors, config.recall_k)
    points: list[Point] = []
    best: tuple[Any, Point] | None = None
    for candidate in _candidates(len(vectors), vectors.shape[1], config):
        say(f"build_index: building {candidate.factory} over {len(vectors):,} items")
        index = build(candidate, vectors, seed=config.seed)
        measured = list(_measure_settings(index, candidate, queries, truth, config))
        points += measured
        winner = choose(measured, config)
        if best is None or choose([best[1], winner], config) is winner:
            best = (index, winner)
    assert best is not None
    index, chosen = best
    apply_setting(index, chosen.setting)
    target_met = chosen.fits(config) and chosen.recall >= config.target_recall
    return TunedIndex(index=index, chosen=chosen, target_met=target_met, trade_off=tuple(points))


def choose(points: list[Point], config: IndexConfig) -> Point:
    """The fastest point that meets target and budget; else the best recall within budget; else the best recall."""
    fitting = [point for point in points if point.fits(config)]
    reaching = [point for point in fitting if point.recall >= config.target_recall]
    if reaching:
        return max(reaching, key=lambda point: point.queries_per_second)
    return max(fitting or points, key=lambda point: point.recall)


def search_recall(found: NDArray[np.integer], truth: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of each query's exact list [Q, k] that was found [Q, k]; -1 is nothing."""
    hits = [np.isin(exact, rows).mean() for exact, rows in zip(truth, found, strict=True)]
    return np.array(hits, np.float64)


def latency_ms(index: Any, queries: NDArray[np.float32], k: int) -> tuple[float, float]:
    """Median and 99th percentile of searching one query at a time on one core, in milliseconds."""
    seconds = []
    with one_thread():
        for query in queries[:LATENCY_QUERIES]:
            start = time.perf_counter()
            index.search(query[None], k)
            seconds.append(time.perf_counter() - start)
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
    return float(p50), float(p99)


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS on one thread for a while."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _candidates(num_items: int, dim: int, config: IndexConfig) -> list[Recipe]:
    if config.kind != "auto":
        return [recipe(config.kind, num_items, dim)]
    if num_items <= config.max_exact_items:
        return [recipe("exact", num_items, dim)]
    recipes = [recipe(kind, num_items, dim) for kind in APPROXIMATE]
    fitting = [candidate for candidate in recipes if candidate.memory_mb <= config.max_memory_mb]
    return fitting or [min(recipes, key=lambda candidate: candidate.memory_mb)]


def _measure_settings(
    index: Any, candidate: Recipe, queries: NDArray[np.float32], truth: NDArray[np.int64], config: IndexConfig
) -> Iterator[Point]:
    """Measure settings from fast to accurate, up to a few beyond the target: those can only be slower."""
    reached = 0
    for setting in candidate.settings:
        apply_setting(index, setting)
        start = time.perf_counter()
        _, found = index.search(queries, truth.shape[1])
        seconds = time.perf_counter() - start
        p50, p99 = latency_ms(index, queries, truth.shape[1])
        point = Point(
            kind=candidate.kind,
            factory=candidate.factory,
            setting=setting,
            recall=float(search_recall(found, truth).mean()),
            p50_ms=p50,
            p99_ms=p99,
            queries_per_second=len(queries) / max(seconds, 1e-9),
            memory_mb=candidate.memory_mb,
        )
        yield point
        reached += point.recall >= config.target_recall
        if reached == SETTINGS_BEYOND_TARGET:
            return
