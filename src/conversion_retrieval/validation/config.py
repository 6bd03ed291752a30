"""Limits of the data checks."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Rates are shares of rows in [0, 1]; a check beyond its ``max_*`` limit has the severity documented for it."""

    suite_path: str = ""
    max_duplicate_rate: float = 0.01
    max_orphan_rate: float = 0.01
    max_invalid_rate: float = 0.01
    max_unattributable_rate: float = 1.0
    max_future_days: float = 1.0
    min_events_per_day: int = 1
    max_drift_psi: float = 0.25
    sample_rows: int = 20
    # The working memory of sorting and joining; more data than that goes through temporary files.
    memory_mb: int = 2048
    # Target rows of a snapshot part file; a part ends where a user ends.
    rows_per_part: int = 1_000_000
    # A user's own expectations see at most this many events.
    max_suite_rows: int = 2_000_000

    def __post_init__(self) -> None:
        """Refuse rates outside [0, 1] and sizes below one."""
        for name in ("max_duplicate_rate", "max_orphan_rate", "max_invalid_rate", "max_unattributable_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, found {getattr(self, name)}")
        for name in ("memory_mb", "rows_per_part", "max_suite_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
