"""What a candidate must show."""

from dataclasses import dataclass, field

from conversion_retrieval.evaluation.config import BASELINES, ENGAGEMENT_ONLY, SLICES
from conversion_retrieval.options import require_at_least, require_known, require_resamples


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Thresholds of the promotion gate. Recalls are micro averages on conversions at ``k``, through the index."""

    k: int = 100
    min_recall: float = 0.0
    min_conversions: int = 500
    min_queries: int = 100
    # The candidate may be worse than the champion by at most this much (absolute), by the interval's lower bound.
    max_regression: float = 0.01
    # Guardrail slices (surface, advertiser size) with at least ``min_slice_conversions`` may lose at most this much.
    max_slice_regression: float = 0.03
    min_slice_conversions: int = 200
    guardrail_slices: tuple[str, ...] = ("surface", "advertiser_size_decile")
    # Compared with these baselines; the difference's lower bound must exceed zero.
    must_beat: tuple[str, ...] = field(default=("popularity",))
    min_index_recall: float = 0.95
    confidence_level: float = 0.95
    num_resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse thresholds that no candidate or any candidate would pass, and unknown baselines and slices."""
        for name in ("min_recall", "min_index_recall", "max_regression", "max_slice_regression"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, found {getattr(self, name)}")
        require_resamples(self.num_resamples, self.confidence_level)
        require_at_least(self, 0, "seed")
        require_at_least(self, 1, "k", "min_conversions", "min_queries", "min_slice_conversions")
        require_known("must_beat", self.must_beat, (*BASELINES, ENGAGEMENT_ONLY))
        require_known("guardrail_slices", self.guardrail_slices, SLICES)
