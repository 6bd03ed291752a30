"""Limits of the data checks."""

from dataclasses import dataclass, field
from typing import Literal

from conversion_retrieval.options import require_at_least


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
    min_events_per_surface_day: int = 1
    # Share of nulls that a column may have: {"events.surface": 0.3, "items.price": 0.05}.
    max_null_rates: dict[str, float] = field(default_factory=dict)
    # At most this share of conversions may have been reported later than so many days after they happened.
    max_report_delay_days: float = 30.0
    max_late_report_rate: float = 0.05
    max_drift_psi: float = 0.25
    drift_severity: Literal["warning", "error"] = "warning"
    sample_rows: int = 20
    # The working memory of sorting and joining; more data than that goes through temporary files. Each core holds
    # a group of about 120,000 rows in it.
    memory_mb: int = 2048
    # Target rows of a snapshot part file; a part ends where a user ends.
    rows_per_part: int = 1_000_000
    # A user's own expectations see at most this many events.
    max_suite_rows: int = 2_000_000

    def __post_init__(self) -> None:
        """Refuse rates outside [0, 1], negative limits and sizes below one."""
        shares = ("duplicate", "orphan", "invalid", "unattributable", "late_report")
        rates = {f"max_{name}_rate": getattr(self, f"max_{name}_rate") for name in shares}
        rates |= {f"max_null_rates[{name!r}]": rate for name, rate in self.max_null_rates.items()}
        for name, rate in rates.items():
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, found {rate}")
        require_at_least(
            self,
            0,
            "max_report_delay_days",
            "max_future_days",
            "max_drift_psi",
            "min_events_per_day",
            "min_events_per_surface_day",
            "sample_rows",
        )
        require_at_least(self, 1, "memory_mb", "rows_per_part", "max_suite_rows")
