"""Retrieval metrics from the ranks of positives, as per-user sums whose ratio is the metric.

With P_q positives of query q at ranks r (0 is best):

- ``recall@k``: positives with r < k over positives, all queries together (micro average)
- ``recall_macro@k``: the same ratio a query, averaged over queries
- ``ndcg@k``: sum of 1 / log2(r + 2) over positives with r < k, over the same sum for ranks 0 .. min(P_q, k) - 1
  (Järvelin and Kekäläinen, 2002, with binary gains), averaged over queries
- ``mrr``: 1 / (1 + the best positive's r), averaged over queries
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.evaluation.intervals import sum_by_user


@dataclass(frozen=True, kw_only=True)
class MetricSums:
    """Per-user sums [U, M] of the metrics ``names`` [M]: a metric is sum(numerators) / sum(denominators)."""

    names: tuple[str, ...]
    numerators: NDArray[np.float64]
    denominators: NDArray[np.float64]

    def values(self) -> dict[str, float]:
        """The metrics over all users; NaN where there is nothing to measure."""
        numerators, denominators = self.numerators.sum(0), self.denominators.sum(0)
        pairs = zip(self.names, numerators, denominators, strict=True)
        return {name: float(n / d) if d else float("nan") for name, n, d in pairs}


def recall_sums(
    ranks: NDArray[np.integer], users: NDArray[np.integer], ks: Sequence[int], num_users: int
) -> MetricSums:
    """Micro recall at each of ``ks`` from ranks [n] of the positives of ``users`` [n]; -1 is not retrieved."""
    hits = hits_at(ranks, ks)
    denominators = sum_by_user(np.ones_like(hits), users, num_users)
    names = tuple(f"recall@{k}" for k in ks)
    return MetricSums(names=names, numerators=sum_by_user(hits, users, num_users), denominators=denominators)


def hits_at(ranks: NDArray[np.integer], ks: Sequence[int]) -> NDArray[np.float64]:
    """Whether each rank [n] is within each cut-off: [n, len(ks)] of 0 and 1; -1 is not retrieved."""
    return np.stack([(ranks >= 0) & (ranks < k) for k in ks], axis=1).astype(np.float64)


def query_sums(
    ranks: NDArray[np.integer],
    queries: NDArray[np.integer],
    users: NDArray[np.integer],
    ks: Sequence[int],
    num_users: int,
) -> MetricSums:
    """Macro recall, NDCG and MRR; the positives' ``ranks``, ``queries`` and ``users`` are all [n]."""
    _, first, code, lengths = np.unique(queries, return_index=True, return_inverse=True, return_counts=True)
    names = (*(f"{name}@{k}" for name in ("recall_macro", "ndcg") for k in ks), "mrr")
    macro = [_sum_by_query(hits, code, len(first)) / lengths for hits in hits_at(ranks, ks).T]
    ndcg = [_ndcg(ranks, code, lengths, k) for k in ks]
    by_query = np.stack([*macro, *ndcg, _reciprocal_rank(ranks, code, len(first))], axis=1)
    ones = np.ones_like(by_query)
    return MetricSums(
        names=names,
        numerators=sum_by_user(by_query, users[first], num_users),
        denominators=sum_by_user(ones, users[first], num_users),
    )


def coverage(seen: NDArray[np.bool_]) -> float:
    """Share of the catalogue that was retrieved at least once, from a flag per item [N]."""
    return float(seen.mean()) if len(seen) else float("nan")


def _ndcg(
    ranks: NDArray[np.integer], code: NDArray[np.integer], lengths: NDArray[np.integer], k: int
) -> NDArray[np.float64]:
    gains = np.where((ranks >= 0) & (ranks < k), 1 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)
    ideal = np.cumsum(1 / np.log2(np.arange(min(k, int(lengths.max(initial=1)))) + 2.0))
    normalized: NDArray[np.float64] = _sum_by_query(gains, code, len(lengths)) / ideal[np.minimum(lengths, k) - 1]
    return normalized


def _reciprocal_rank(ranks: NDArray[np.integer], code: NDArray[np.integer], num_queries: int) -> NDArray[np.float64]:
    best = np.zeros(num_queries)
    np.maximum.at(best, code, np.where(ranks >= 0, 1 / (np.maximum(ranks, 0) + 1.0), 0.0))
    return best


def _sum_by_query(values: NDArray[np.float64], code: NDArray[np.integer], num_queries: int) -> NDArray[np.float64]:
    return np.bincount(code, weights=values, minlength=num_queries).astype(np.float64)
