"""What is measured."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """``ks`` are cut-offs of recall and NDCG; intervals are bootstrapped over users."""

    ks: tuple[int, ...] = (10, 50, 100, 500, 1000)
    num_resamples: int = 1000
    confidence_level: float = 0.95
    baselines: tuple[str, ...] = ("popularity", "recent_popularity", "own_history", "item_knn", "pure_svd")
    pure_svd_factors: tuple[int, ...] = (64, 256)
    item_knn_neighbors: tuple[int, ...] = (50, 200)
    popularity_half_lives_days: tuple[float, ...] = (7.0, 14.0, 28.0)
    block_queries: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse cut-offs below one."""
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks must be positive, found {self.ks}")
