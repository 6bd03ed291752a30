"""The tuned index against exact search on clustered synthetic vectors: recall, throughput, latency, memory.

    python benchmarks/index_tradeoff.py [--items 1000000 --queries 2000 --dim 64]

The vectors are Gaussian clusters on the unit sphere, ``--cluster-size`` items each: learned item embeddings cluster,
but these are synthetic, and how many times faster an approximate index is depends on how strongly they do. With
``--spread 1.0`` two items of a cluster have a cosine of 0.5, with 0.7 of 0.67; others have 0 +- 0.125. The index is
tuned on one set of queries and judged on another; the exact side is ``faiss.IndexFlatIP``, and beside it our own exact
search by matrix product. All run on one thread and are timed in processor time.
"""

import argparse
import json
import os
import time
from dataclasses import asdict

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from conversion_retrieval.evaluation.ranking import top_k
from conversion_retrieval.index.config import IndexConfig
from conversion_retrieval.index.flat import Search, search_of
from conversion_retrieval.index.tune import latency_ms, search_recall, tune_index


def clustered(rng: np.random.Generator, centres: NDArray[np.float32], count: int, spread: float) -> NDArray[np.float32]:
    """``count`` unit vectors around random centres."""
    noise = rng.standard_normal((count, centres.shape[1]), np.float32)
    vectors = centres[rng.integers(len(centres), size=count)] + spread * noise
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def queries_per_second(search: Search, queries: NDArray[np.float32], k: int) -> float:
    """Throughput of one batch on one thread, per second of processor time."""
    start = time.thread_time()
    search(queries, k)
    return len(queries) / (time.thread_time() - start)


def main() -> None:
    """Run and print the curve, one setting a line, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--cluster-size", type=int, default=200)
    parser.add_argument("--spread", type=float, default=1.0)
    parser.add_argument("--kind", default="auto")
    parser.add_argument("--exact-queries", type=int, default=500, help="of them, for the throughput of exact search")
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(options.items // options.cluster_size, 1), options.dim), np.float32)
    items = clustered(rng, centres, options.items, options.spread)
    tuning, test = (clustered(rng, centres, count, options.spread) for count in (500, options.queries))
    config = IndexConfig(
        kind=options.kind,
        max_exact_items=min(50_000, options.items - 1),
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
    recalls = search_recall(found, truth, test, items)
    ours = queries_per_second(tuned.index.search, test, config.recall_k)
    theirs = queries_per_second(exact.search, test[: options.exact_queries], config.recall_k)
    product = queries_per_second(search_of(exact), test[: options.exact_queries], config.recall_k)
    p50, p99 = latency_ms(tuned.index, test, config.recall_k)
    summary = {
        "chosen": f"{tuned.chosen.factory} {tuned.chosen.setting}",
        "recall_at_100": round(float(recalls.mean()), 5),
        "standard_error": round(float(recalls.std() / np.sqrt(len(recalls))), 5),
        "met": tuned.met,
        "queries_per_second": round(ours),
        "exact_queries_per_second": round(theirs),
        "times_exact": round(ours / theirs, 1),
        "product_queries_per_second": round(product),
        "times_product": round(ours / product, 1),
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "tuning_s": round(built, 1),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(vars(options) | summary))


if __name__ == "__main__":
    main()
