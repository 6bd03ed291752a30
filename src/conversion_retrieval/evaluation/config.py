"""What is measured."""

from dataclasses import dataclass
from typing import Final

from conversion_retrieval.options import require_at_least, require_known, require_resamples

BASELINES: Final = ("popularity", "recent_popularity", "own_history", "item_knn", "pure_svd")
"""The baselines' names; ``baselines`` has what they do."""
ENGAGEMENT_ONLY: Final = "engagement_only"
"""The list by engagement alone, measured beside the baselines wherever one can be made."""
SLICES: Final = (
    "surface",
    "advertiser_size_decile",
    "item_popularity_decile",
    "item_status",
    "user_status",
    "history_length",
    "new_to_user",
)
"""The slices' names; ``slices`` says of what."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """``ks`` are cut-offs of recall and NDCG; intervals are bootstrapped over users.

    Baselines are tuned on up to ``tuning_queries`` validation queries by conversion recall at ``tuning_k``, once for
    the full list and once for that of items new to the user. A half-life of a million days counts all events alike;
    item-kNN's histories fade as one's own do.
    """

    ks: tuple[int, ...] = (10, 50, 100, 500, 1000)
    num_resamples: int = 1000
    confidence_level: float = 0.95
    baselines: tuple[str, ...] = BASELINES
    pure_svd_factors: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    item_knn_neighbors: tuple[int, ...] = (5, 20, 100, 1000)
    popularity_half_lives_days: tuple[float, ...] = (7.0, 14.0, 28.0)
    own_history_half_lives_days: tuple[float, ...] = (7.0, 28.0, 112.0, 448.0)
    # An engagement counts this much of a conversion in a user's history.
    engagement_weights: tuple[float, ...] = (0.1, 1.0)
    # Only a user's newest events enter co-occurrences and factors: their cost grows with the square of this.
    max_events_per_user: int = 1000
    tuning_k: int = 100
    tuning_queries: int = 5000
    # Coverage is the share of the catalogue in the lists of this many queries.
    coverage_queries: int = 5000
    block_queries: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown baselines, cut-offs below one, empty grids and impossible counts."""
        require_known("baselines", self.baselines, BASELINES)
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks must be positive, found {self.ks}")
        for name in (
            "pure_svd_factors",
            "item_knn_neighbors",
            "popularity_half_lives_days",
            "own_history_half_lives_days",
        ):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} must hold positive numbers, found {getattr(self, name)}")
        if not self.engagement_weights or min(self.engagement_weights) < 0:
            raise ValueError(f"engagement_weights must hold numbers from 0, found {self.engagement_weights}")
        require_resamples(self.num_resamples, self.confidence_level)
        require_at_least(self, 0, "seed")
        require_at_least(
            self,
            1,
            "max_events_per_user",
            "tuning_k",
            "tuning_queries",
            "coverage_queries",
            "block_queries",
        )
