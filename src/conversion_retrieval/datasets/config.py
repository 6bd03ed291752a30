"""The parameters of the synthetic world."""

from dataclasses import dataclass
from datetime import UTC, datetime

from conversion_retrieval.errors import UserError

_SHARES = (
    "click_rate",
    "accidental_click_rate",
    "cart_rate",
    "checkout_rate",
    "view_through_rate",
    "save_rate",
    "reporting_rate",
    "wrong_item_rate",
    "organic_share",
    "cold_item_share",
    "exploration_share",
)
_COUNTS = (
    "num_users",
    "num_items",
    "num_days",
    "num_categories",
    "num_price_tiers",
    "num_segments",
    "slots_per_request",
    "policy_refresh_days",
    "taste_dim",
    "embedding_dim",
    "users_per_part",
)


_NOT_NEGATIVE = (
    "num_advertisers",
    "seed",
    "requests_per_user_day",
    "median_purchase_delay_hours",
    "median_reporting_delay_hours",
    "taste_strength",
    "cross_strength",
    "season_strength",
    "advertiser_strength",
    "item_strength",
    "clickbait_strength",
    "taste_drift_degrees",
    "advertiser_size_exponent",
)


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """A seeded world; the defaults make about 480,000 events of 2,000 users on 2,000 items over 60 days.

    Rates are means over what the logging policy shows. Strengths are the standard deviations, in logits, that a part
    of the world adds to the decision to click or buy.
    """

    num_users: int = 2_000
    num_items: int = 2_000
    num_advertisers: int = 0  # 0 is one for 13 items
    num_days: int = 60
    start_date: str = "2026-01-01"
    seed: int = 0

    num_categories: int = 12
    num_price_tiers: int = 4
    num_segments: int = 6
    taste_dim: int = 8
    embedding_dim: int = 16

    requests_per_user_day: float = 0.4
    slots_per_request: int = 10
    # home_feed, related_items, search
    surface_shares: tuple[float, float, float] = (0.5, 0.2, 0.3)
    # Requests that happen elsewhere: only their conversions are seen, and nothing on the platform explains them.
    organic_share: float = 0.1

    click_rate: float = 0.08
    accidental_click_rate: float = 0.02
    save_rate: float = 0.15  # of clicks that were meant
    cart_rate: float = 0.25  # of clicks that were meant
    checkout_rate: float = 0.5  # of carts
    view_through_rate: float = 0.03  # buying without a click, relative to buying after one
    reporting_rate: float = 0.85  # conversions that advertisers report, on average
    wrong_item_rate: float = 0.1  # reports that name another item of the same advertiser
    median_purchase_delay_hours: float = 4.0
    median_reporting_delay_hours: float = 8.0

    taste_strength: float = 1.5
    cross_strength: float = 1.3
    season_strength: float = 0.4
    advertiser_strength: float = 0.5
    item_strength: float = 0.8
    clickbait_strength: float = 0.7
    taste_drift_degrees: float = 40.0
    advertiser_size_exponent: float = 1.1

    cold_item_share: float = 0.3
    # Days between two refreshes of the logging policy: a new item is shown from the first one after its launch.
    policy_refresh_days: int = 2
    # Share of the slots that the logging policy fills without regard to the user.
    exploration_share: float = 0.1
    users_per_part: int = 2_000

    def __post_init__(self) -> None:
        """Refuse empty worlds, rates outside [0, 1] and dates that are none."""
        for name in _COUNTS:
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in _SHARES:
            self._require(0 <= getattr(self, name) <= 1, name, "in [0, 1]")
        for name in _NOT_NEGATIVE:
            self._require(getattr(self, name) >= 0, name, "0 or more")
        self._require(self.num_advertisers <= self.num_items, "num_advertisers", f"at most num_items {self.num_items}")
        self._require(self.embedding_dim >= self.taste_dim, "embedding_dim", f"at least taste_dim {self.taste_dim}")
        shares = self.surface_shares
        is_distribution = len(shares) == 3 and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-9
        self._require(is_distribution, "surface_shares", "three shares that sum to 1")
        try:
            datetime.fromisoformat(self.start_date)
        except ValueError:
            raise UserError(f"start_date must be a date such as 2026-01-01, found {self.start_date!r}") from None

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise UserError(f"{name} must be {expected}, found {getattr(self, name)}")

    @property
    def advertisers(self) -> int:
        """The number of advertisers, chosen where it is 0."""
        return self.num_advertisers or max(1, self.num_items // 13)

    @property
    def start_us(self) -> int:
        """The first moment, in microseconds since the epoch."""
        return int(datetime.fromisoformat(self.start_date).replace(tzinfo=UTC).timestamp()) * 1_000_000

    @property
    def end_us(self) -> int:
        """The moment at which the log is taken: what is reported later is not in it."""
        return self.start_us + self.num_days * 86_400_000_000
