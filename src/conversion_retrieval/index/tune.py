"""Choosing a kind of index and its search parameters by measurement, on queries of the validation window.

Everything is timed on one thread in processor time: what else runs on the machine must not decide what is served.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from conversion_retrieval.evaluation.ranking import top_k
from conversion_retrieval.index.build import Kind, Recipe, apply_setting, build, can_be_trained, needs_lifting, recipe
from conversion_retrieval.index.config import IndexConfig
from conversion_retrieval.index.flat import Search, search_of
from conversion_retrieval.progress import say

# Exact search first: the one that reaches any target, by which the others are judged.
LARGE: Final[tuple[Kind, ...]] = ("exact", "ivf_pq", "ivf", "hnsw")
LATENCY_QUERIES: Final = 200
SETTINGS_BEYOND_TARGET: Final = 3
SLOWER_SETTINGS: Final = 2
SCORE_ROUNDING: Final = 1e-5  # of a list's largest score


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured setting: recall against exact search, latency of single queries, throughput of a batch.

    Times are processor time on one thread: the latency on a core of one's own, and queries per second and core.
    """

    kind: Kind
    factory: str
    setting: str
    recall: float
    p50_ms: float
    p99_ms: float
    queries_per_second: float
    memory_mb: float

    def met(self, config: IndexConfig) -> dict[str, bool]:
        """Which of recall target, latency and memory budget it keeps."""
        return {
            "recall": self.recall >= config.target_recall,
            "latency": self.p99_ms <= config.max_latency_ms,
            "memory": self.memory_mb <= config.max_memory_mb,
        }


@dataclass(frozen=True, kw_only=True)
class TunedIndex:
    """The chosen index with its parameters set, what it keeps (``Point.met``), and everything that was measured."""

    index: Any
    chosen: Point
    met: dict[str, bool]
    trade_off: tuple[Point, ...]


def tune_index(vectors: NDArray[np.float32], queries: NDArray[np.float32], config: IndexConfig) -> TunedIndex:
    """The fastest index of ``vectors`` [N, D] that reaches the target on ``queries`` [Q, D]; see ``choose``."""
    _, truth = top_k(queries, vectors, config.recall_k)
    points: list[Point] = []
    best: tuple[Any, Point] | None = None
    for candidate in _candidates(vectors, config):
        say(f"build_index: building {candidate.factory} over {len(vectors):,} items")
        index = build(candidate, vectors, seed=config.seed)
        enough = best[1].queries_per_second if best and all(best[1].met(config).values()) else 0.0
        measured = list(_measure_settings(index, candidate, queries, vectors, truth, config, enough))
        points += measured
        winner = choose(measured, config)
        if best is None or choose([best[1], winner], config) is winner:
            best = (index, winner)
    assert best is not None
    index, chosen = best
    apply_setting(index, chosen.setting)
    return TunedIndex(index=index, chosen=chosen, met=chosen.met(config), trade_off=tuple(points))


def choose(points: list[Point], config: IndexConfig) -> Point:
    """The fastest point that keeps target and budgets. Where there is none, latency gives way first, then recall.

    Memory is a hard limit as long as anything keeps it: a service that does not fit serves nothing. Recall outranks
    latency: an index that loses conversions does so in silence, a slow one is seen and answered by more cores.
    """
    small = [point for point in points if point.met(config)["memory"]] or points
    reaching = [point for point in small if point.met(config)["recall"]]
    within = [point for point in reaching if point.met(config)["latency"]]
    if within:
        return max(within, key=lambda point: point.queries_per_second)
    if reaching:
        return min(reaching, key=lambda point: point.p99_ms)
    return max(small, key=lambda point: point.recall)


def search_recall(
    found: NDArray[np.integer], truth: NDArray[np.integer], queries: NDArray[np.float32], vectors: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Share of each query's exact list [Q, k] that was found [Q, k]; -1 is nothing.

    Which of equally scored items end a list is chance, and another one the next time: any of them fills a place there.
    ``queries`` [Q, D], ``vectors`` [N, D].
    """
    hits = [_hits(rows, exact, query, vectors) for rows, exact, query in zip(found, truth, queries, strict=True)]
    shares: NDArray[np.float64] = np.array(hits, np.float64) / truth.shape[1]
    return shares


def _hits(
    found: NDArray[np.integer], truth: NDArray[np.integer], query: NDArray[np.float32], vectors: NDArray[np.float32]
) -> int:
    rows, exact = found[found >= 0], vectors[truth] @ query
    last, rounding = exact.min(initial=np.inf), SCORE_ROUNDING * np.abs(exact).max(initial=0.0)
    ending = exact <= last + rounding
    better = np.isin(rows, truth[~ending])
    equal = ~better & (np.isin(rows, truth) | (vectors[rows] @ query >= last - rounding))
    return int(better.sum() + min(equal.sum(), ending.sum()))


def latency_ms(index: Any, queries: NDArray[np.float32], k: int) -> tuple[float, float]:
    """Median and 99th percentile of searching one query at a time, in milliseconds of processor time on one thread."""
    search = search_of(index)
    with one_thread():
        seconds = [_processor_seconds(search, query[None], k)[0] for query in queries[:LATENCY_QUERIES]]
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
    return float(p50), float(p99)


def _processor_seconds(search: Search, queries: NDArray[np.float32], k: int) -> tuple[float, NDArray[np.int64]]:
    start = time.thread_time()
    _, found = search(queries, k)
    return time.thread_time() - start, found


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS and torch on one thread for a while."""
    threads = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads[0])
        torch.set_num_threads(threads[1])


def _candidates(vectors: NDArray[np.float32], config: IndexConfig) -> list[Recipe]:
    (num_items, dim), lift = vectors.shape, needs_lifting(vectors)
    if config.kind != "auto":
        return [recipe(config.kind, num_items, dim, lift=lift)]
    if num_items <= config.max_exact_items:
        return [recipe("exact", num_items, dim)]
    recipes = [recipe(kind, num_items, dim, lift=lift) for kind in LARGE if can_be_trained(kind, num_items)]
    fitting = [candidate for candidate in recipes if candidate.memory_mb <= config.max_memory_mb]
    return fitting or [min(recipes, key=lambda candidate: candidate.memory_mb)]


def _measure_settings(
    index: Any,
    candidate: Recipe,
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    truth: NDArray[np.int64],
    config: IndexConfig,
    enough: float = 0.0,
) -> Iterator[Point]:
    """Measure settings from fast to accurate, up to a few beyond the target: those can only be slower.

    Nor beyond some in a row with fewer than ``enough`` queries a second, what an index that keeps all targets has.
    """
    reached = slower = 0
    for setting in candidate.settings:
        apply_setting(index, setting)
        with one_thread():
            seconds, found = _processor_seconds(search_of(index), queries, truth.shape[1])
        p50, p99 = latency_ms(index, queries, truth.shape[1])
        point = Point(
            kind=candidate.kind,
            factory=candidate.factory,
            setting=setting,
            recall=float(search_recall(found, truth, queries, vectors).mean()),
            p50_ms=p50,
            p99_ms=p99,
            queries_per_second=len(queries) / max(seconds, 1e-9),
            memory_mb=candidate.memory_mb,
        )
        yield point
        reached += point.recall >= config.target_recall
        slower = slower + 1 if point.queries_per_second < enough else 0
        if reached == SETTINGS_BEYOND_TARGET or slower == SLOWER_SETTINGS:
            return
