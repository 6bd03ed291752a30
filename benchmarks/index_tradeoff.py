"""The tuned index against exact search on clustered synthetic vectors: recall, throughput, latency, memory.

    python benchmarks/index_tradeoff.py [--items 1000000 --queries 2000 --dim 64]

The vectors are Gaussian clusters on the unit sphere, ``--cluster-size`` items each: learned item embeddings cluster,
but these are synthetic, and how many times faster an approximate index is depends on how strongly they do. The index is
tuned on one set of queries and judged on another; the exact side is ``faiss.IndexFlatIP`` on the same batches.
"""

import argparse
import json
import time
from dataclasses import asdict

import faiss
import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.evaluation.ranking import top_k
from conversion_retrieval.index.config import IndexConfig
from conversion_retrieval.index.tune import latency_ms, search_recall, tune_index


def clustered(rng: np.random.Generator, centres: NDArray[np.float32], count: int, spread: float) -> NDArray[np.float32]:
    """``count`` unit vectors around random centres."""
    noise = rng.standard_normal((count, centres.shape[1]), np.float32)
    vectors = centres[rng.integers(len(centres), size=count)] + spread * noise
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def queries_per_second(index: faiss.Index, queries: NDArray[np.float32], k: int) -> float:
    """Throughput of one batch."""
    start = time.perf_counter()
    index.search(queries, k)
    return len(queries) / (time.perf_counter() - start)


def main() -> None:
    """Run and print the curve, one setting a line, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--cluster-size", type=int, default=200)
    parser.add_argument("--spread", type=float, default=0.7)
    parser.add_argument("--kind", default="auto")
    parser.add_argument("--max-latency-ms", type=float, default=20.0, help="raise it on a shared machine")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(options.items // options.cluster_size, 1), options.dim), np.float32)
    items = clustered(rng, centres, options.items, options.spread)
    tuning, test = (clustered(rng, centres, count, options.spread) for count in (500, options.queries))
    config = IndexConfig(
        kind=options.kind,
        max_exact_items=min(50_000, options.items - 1),
        max_latency_ms=options.max_latency_ms,
    )
    start = time.perf_counter()
    tuned = tune_index(items, tuning, config)
    built = time.perf_counter() - start
    for point in tuned.trade_off:
        print(json.dumps(asdict(point)))
    exact = faiss.IndexFlatIP(options.dim)
    exact.add(items)
    _, truth = top_k(test, items, config.recall_k)
    _, found = tuned.index.search(test, config.recall_k)
    recalls = search_recall(found, truth)
    ours, theirs = (queries_per_second(index, test, config.recall_k) for index in (tuned.index, exact))
    p50, p99 = latency_ms(tuned.index, test, config.recall_k)
    summary = {
        "chosen": f"{tuned.chosen.factory} {tuned.chosen.setting}",
        "recall_at_100": round(float(recalls.mean()), 5),
        "standard_error": round(float(recalls.std() / np.sqrt(len(recalls))), 5),
        "queries_per_second": round(ours),
        "exact_queries_per_second": round(theirs),
        "times_exact": round(ours / theirs, 1),
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "tuning_s": round(built, 1),
        "threads": faiss.omp_get_max_threads(),
    }
    print(json.dumps(vars(options) | summary))


if __name__ == "__main__":
    main()
