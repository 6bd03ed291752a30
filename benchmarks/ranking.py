"""Ranking all positives of many queries in a full catalogue: its time over a bare matrix product's, and its memory.

    python -m benchmarks.ranking [--items 1000000 --queries 50000 --dim 64 --positives 2]

Both take the same queries in turns, a round at a time; the ratio is of total processor times. Memory is what the
process's peak grew by beyond its inputs. Beside it stands what the whole score matrix would take.
"""

import argparse
import json
import os
import resource

import numpy as np
import torch

from benchmarks.exact_search import timed
from conversion_retrieval.evaluation.ranking import DotProductScores, exact_ranks, query_blocks

MIB = 2**20


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--positives", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    items, queries = (rng.standard_normal((n, options.dim), np.float32) for n in (options.items, options.queries))
    wanted = rng.integers(0, options.items, (options.queries, options.positives)).astype(np.int32)
    before = peak_bytes()
    product_s = ranking_s = 0.0
    for chosen in np.array_split(np.arange(options.queries), options.rounds):
        vectors, offsets = queries[chosen], np.arange(len(chosen) + 1) * options.positives
        ranking_s += timed(lambda v=vectors, o=offsets, c=chosen: exact_ranks(v, items, o, wanted[c].ravel()))[0]
        scores = DotProductScores(vectors, items)
        blocks = query_blocks(np.arange(len(vectors)), options.items, 512)
        product_s += timed(lambda s=scores, b=blocks: [s(rows) for rows in b])[0]
        del scores
    summary = {
        "product_s": round(product_s, 1),
        "ranking_s": round(ranking_s, 1),
        "ranking_over_product": round(ranking_s / product_s, 2),
        "peak_beyond_inputs_mib": round((peak_bytes() - before) / MIB),
        "score_matrix_mib": round(options.items * options.queries * 4 / MIB),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(vars(options) | summary))


if __name__ == "__main__":
    main()
