"""Exact top-k over a large catalogue: ``evaluation.ranking.top_k`` against ``faiss.IndexFlatIP``, in one process.

    python benchmarks/exact_search.py [--items 1000000 --queries 10000 --dim 64 --k 1000]

Both see the same vectors and use the same number of threads, in alternating rounds over blocks of the queries; the
ratio is of total processor times, which other work on the machine does not change much. Ranking positives
(``exact_ranks``) is timed beside it, in units of the bare matrix product.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from conversion_retrieval.evaluation.ranking import DotProductScores, exact_ranks, query_blocks, top_k


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds that a piece of work took, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def compare_searches(items: NDArray[np.float32], queries: NDArray[np.float32], k: int, rounds: int) -> dict[str, float]:
    """Total seconds of both searches, and in how many places their lists differ by more than a tie."""
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    ours = theirs = 0.0
    worst = 0.0
    for block in np.array_split(queries, rounds):
        seconds, (scores, _) = timed(lambda block=block: top_k(block, items, k))
        ours += seconds
        seconds, (expected, _) = timed(lambda block=block: index.search(block, k))
        theirs += seconds
        worst = max(worst, float(np.abs(scores - expected).max()))
        print(f"{len(block)} queries more: {theirs / ours:.2f} times as fast as FAISS so far", file=sys.stderr)
    return {"ours_s": ours, "faiss_s": theirs, "speed_of_faiss": theirs / ours, "worst_score_difference": worst}


def time_ranks(items: NDArray[np.float32], queries: NDArray[np.float32], positives: int) -> dict[str, float]:
    """Seconds to rank some positives a query, and of the matrix product alone."""
    rng = np.random.default_rng(1)
    offsets = np.arange(len(queries) + 1) * positives
    wanted = rng.integers(0, len(items), len(queries) * positives).astype(np.int32)
    scores = DotProductScores(queries, items)
    product, _ = timed(lambda: [scores(rows) for rows in query_blocks(np.arange(len(queries)), len(items), 512)])
    ranking, _ = timed(lambda: exact_ranks(queries, items, offsets, wanted))
    return {"rank_s": ranking, "product_s": product, "rank_over_product": ranking / product}


def main() -> None:
    """Run and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--positives", type=int, default=2)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    items = rng.standard_normal((options.items, options.dim), np.float32)
    queries = rng.standard_normal((options.queries, options.dim), np.float32)
    found = compare_searches(items, queries, options.k, options.rounds)
    found |= time_ranks(items, queries[: min(1000, options.queries)], options.positives)
    threads = {"torch_threads": torch.get_num_threads(), "faiss_threads": faiss.omp_get_max_threads()}
    print(json.dumps(vars(options) | threads | {name: round(value, 6) for name, value in found.items()}))


if __name__ == "__main__":
    main()
