"""The parameters of the synthetic world."""

from dataclasses import dataclass
from datetime import UTC, datetime

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
    "num_advertisers",
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


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """A seeded world; the defaults make about 300,000 events of 2,000 users on 2,000 items over 60 days.

    Rates are means over what the logging policy shows. Strengths are the standard deviations, in logits, that a part
    of the world adds to the decision to click or buy.
    """

    num_users: int = 2_000
    num_items: int = 2_000
    num_advertisers: int = 150
    num_days: int = 60
    start_date: str = "2026-01-01"
    seed: int = 0

    num_categories: int = 12
    num_price_tiers: int = 4
    num_segments: int = 6
    taste_dim: int = 8
    embedding_dim: int = 16

    requests_per_user_day: float = 0.25
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

    taste_strength: float = 1.2
    cross_strength: float = 1.0
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
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], found {getattr(self, name)}")
        if self.embedding_dim < self.taste_dim:
            raise ValueError(
                f"embedding_dim must be at least taste_dim {self.taste_dim}, found {self.embedding_dim}: "
                "an embedding holds the whole taste"
            )
        if self.num_items < self.num_advertisers:
            raise ValueError(f"num_items must be at least num_advertisers, found {self.num_items}")
        if len(self.surface_shares) != 3 or min(self.surface_shares) < 0 or abs(sum(self.surface_shares) - 1) > 1e-9:
            raise ValueError(f"surface_shares must be three shares that sum to 1, found {self.surface_shares}")
        self.start_us  # noqa: B018 - parses the date

    @property
    def start_us(self) -> int:
        """The first moment, in microseconds since the epoch."""
        return int(datetime.fromisoformat(self.start_date).replace(tzinfo=UTC).timestamp()) * 1_000_000

    @property
    def end_us(self) -> int:
        """The moment at which the log is taken: what is reported later is not in it."""
        return self.start_us + self.num_days * 86_400_000_000
