"""How items are indexed."""

from dataclasses import dataclass
from typing import Literal

from conversion_retrieval.options import require_at_least


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Up to ``max_exact_items`` items are searched exactly; above, exact and approximate kinds are measured.

    The target is recall@``recall_k`` of exact search on validation queries; among the settings that reach it within
    the latency and memory budget the one with the most queries a second is taken. Where none is within both, latency
    gives way before recall does.
    """

    kind: Literal["auto", "exact", "hnsw", "ivf", "ivf_pq"] = "auto"
    max_exact_items: int = 50_000
    target_recall: float = 0.98
    recall_k: int = 100
    max_latency_ms: float = 20.0  # p99 of one query in processor time on one thread
    max_memory_mb: float = 4096.0
    tuning_queries: int = 1000
    # Positives are ranked through the index down to this depth.
    rank_depth: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a target that cannot be met or missed, and budgets and counts of nothing."""
        if not 0 < self.target_recall <= 1:
            raise ValueError(f"target_recall must be in (0, 1], found {self.target_recall}")
        require_at_least(self, 0, "max_exact_items", "seed")
        for name in ("recall_k", "max_latency_ms", "max_memory_mb", "tuning_queries", "rank_depth"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
