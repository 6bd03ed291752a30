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

    def __post_init__(self) -> None:
        """Refuse rates outside [0, 1]."""
        for name in ("max_duplicate_rate", "max_orphan_rate", "max_invalid_rate", "max_unattributable_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, found {getattr(self, name)}")
