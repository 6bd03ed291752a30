"""How events become labels, splits and features."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from conversion_retrieval.options import require_at_least, require_known
from conversion_retrieval.schema import EVENT_TYPES


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Attribution, weights and negatives. Windows are in days, durations in seconds."""

    attribution_level: Literal["item", "advertiser"] = "item"
    click_window_days: float = 30.0
    view_window_days: float = 7.0
    keep_unattributed: bool = True
    # A click is joined to the impression that led to it when that is no older than this.
    session_minutes: float = 30.0
    # 0 takes the percentile of the training window's durations instead.
    click_duration_cap_seconds: float = 0.0
    click_duration_cap_percentile: float = 95.0
    missing_click_duration_weight: float = 0.5
    click_duration_weighting: bool = True
    event_weights: dict[str, float] = field(
        default_factory=lambda: {"click": 1.0, "save": 1.0, "add_to_cart": 1.0, "checkout": 1.0}
    )
    max_hard_negatives_per_query: int = 8
    max_hard_negatives_per_user: int = 200

    def __post_init__(self) -> None:
        """Refuse negative windows and weights."""
        require_at_least(
            self,
            0,
            "click_window_days",
            "view_window_days",
            "session_minutes",
            "click_duration_cap_seconds",
            "missing_click_duration_weight",
            "max_hard_negatives_per_query",
            "max_hard_negatives_per_user",
        )
        if not 0 < self.click_duration_cap_percentile <= 100:
            raise ValueError(
                f"click_duration_cap_percentile must be in (0, 100], found {self.click_duration_cap_percentile}"
            )
        require_known("event_weights", self.event_weights, EVENT_TYPES)
        if any(weight < 0 for weight in self.event_weights.values()):
            raise ValueError(f"event_weights must not be negative, found {self.event_weights}")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Three windows by query time: train, validation, test, each ``gap_days`` apart; the newest end at ``as_of``.

    What lies between the first and the last is also ``recent``: training learns from it once validation is over.

    ``maturity_days`` before ``as_of`` are left out of all windows: their conversions have not all been reported yet.
    With ``window_start`` queries a user asks once, at the start of the window, and everything that user does in the
    window is relevant (batch candidate generation); with ``request`` every request is a query of its own.
    """

    as_of: str = ""
    train_days: float = 0.0  # 0 is everything before the validation window
    validation_days: float = 0.0  # 0 is a week, or a fifth of a log shorter than five weeks
    test_days: float = 0.0
    gap_days: float = 0.0
    maturity_days: float = 0.0
    evaluation_queries: Literal["request", "window_start"] = "request"
    # Training queries of the "window" kind: one a user every ``training_stride_days``, whose positives are the
    # conversions and engagements of the ``training_window_days`` that follow.
    training_queries: Literal["request", "window"] = "request"
    training_window_days: float = 14.0
    training_stride_days: float = 7.0
    max_evaluation_queries: int = 50_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an end that is no time, and windows that are empty or negative."""
        if self.as_of:
            try:
                datetime.fromisoformat(self.as_of)
            except ValueError:
                raise ValueError(
                    f"as_of must be an ISO date or time such as 2026-11-23, found {self.as_of!r}"
                ) from None
        require_at_least(self, 1, "max_evaluation_queries")
        for name in ("training_window_days", "training_stride_days"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        require_at_least(self, 0, "train_days", "validation_days", "test_days", "gap_days", "maturity_days", "seed")


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """What is computed from the tables beside the columns they hold."""

    spec_path: str = ""
    history_length: int = 64  # 0 leaves histories out: every encoder then sees users without events
    # Impressions are left out by default: they are many, and say what was shown rather than what was wanted.
    history_events: tuple[str, ...] = ("click", "save", "add_to_cart", "checkout")
    aggregate_windows_days: tuple[float, ...] = (1.0, 7.0, 28.0)
    # Item performance is recomputed at snapshots this far apart; 0 picks whole days so that at most 64 cover the data.
    performance_period_days: float = 0.0
    # Decayed counts of clicks and conversions: after so many days an event counts half.
    popularity_half_lives_days: tuple[float, ...] = (3.0, 7.0, 14.0, 30.0, 90.0)
    # The same for conversions of users who had never converted on the item before.
    new_buyer_half_lives_days: tuple[float, ...] = (7.0, 30.0)
    # Rates are smoothed towards the training window's as if it had contributed so many trials to each item.
    rate_prior_strength: float = 20.0
    max_vocabulary_size: int = 100_000
    min_vocabulary_count: int = 1
    # Plain item ids up to this many items, hashed beyond.
    max_plain_item_ids: int = 1_000_000
    item_id_buckets: int = 0  # 0 is plain ids where allowed, else one bucket an item
    num_partitions: int = 0  # 0 chooses from the number of events
    # Partitions run on threads, or with ``use_dask`` on a Dask cluster in this process, or on that at ``dask_address``.
    use_dask: bool = False
    dask_address: str = ""
    # Where the stage and the workers of a cluster meet; empty: they see snapshot and output under the same paths.
    shared_dir: str = ""

    def __post_init__(self) -> None:
        """Refuse a history of negative length, and windows that are not positive or would give columns one name."""
        require_known("history_events", self.history_events, EVENT_TYPES)
        if self.history_length < 0:
            raise ValueError(f"history_length must not be negative, found {self.history_length}")
        for name in ("aggregate_windows_days", "popularity_half_lives_days", "new_buyer_half_lives_days"):
            if any(days <= 0 for days in getattr(self, name)):
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
            if len({f"{days:g}" for days in getattr(self, name)}) < len(getattr(self, name)):  # as columns are called
                raise ValueError(f"{name} must differ in their first six digits, found {getattr(self, name)}")
        if self.rate_prior_strength <= 0:
            raise ValueError(f"rate_prior_strength must be positive, found {self.rate_prior_strength}")
        require_at_least(
            self,
            0,
            "performance_period_days",
            "max_vocabulary_size",
            "min_vocabulary_count",
            "max_plain_item_ids",
            "item_id_buckets",
            "num_partitions",
        )
