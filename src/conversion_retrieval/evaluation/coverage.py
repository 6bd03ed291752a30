"""How much of the catalogue a model's lists show."""

from collections.abc import Iterator, Sequence

import numpy as np

from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.evaluation.ranking import ScoreBlock, query_blocks, top_k_of
from conversion_retrieval.evaluation.results import Measurement


def coverage_at(
    scores: ScoreBlock, num_queries: int, num_items: int, ks: Sequence[int], config: EvaluationConfig
) -> dict[int, float]:
    """Share of all items in at least one query's top k, for each k, over up to ``coverage_queries`` queries.

    It grows with the number of queries: compare models on the same ones.
    """
    rows = sampled_queries(num_queries, config)
    shown = {k: np.zeros(num_items, np.bool_) for k in ks}
    for block in query_blocks(rows, num_items, config.block_queries):
        _, items = top_k_of(scores(block), max(ks))
        for k, flags in shown.items():
            flags[items[:, :k].ravel()] = True
    return {k: float(flags.mean()) for k, flags in shown.items()}


def measure_coverage(
    model: str, scores: ScoreBlock, num_queries: int, num_items: int, ks: Sequence[int], config: EvaluationConfig
) -> Iterator[Measurement]:
    """Coverage as rows of ``metrics.json``, without intervals."""
    if not num_queries or not num_items:
        return
    sampled = len(sampled_queries(num_queries, config))
    for k, value in coverage_at(scores, num_queries, num_items, ks, config).items():
        yield Measurement(name=f"catalogue/coverage@{k}", model=model, slice="all", value=value, n_queries=sampled)


def sampled_queries(num_queries: int, config: EvaluationConfig) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The query rows that coverage looks at: all, or a seeded sample."""
    if num_queries <= config.coverage_queries:
        return np.arange(num_queries)
    return np.sort(np.random.default_rng(config.seed).choice(num_queries, config.coverage_queries, replace=False))
