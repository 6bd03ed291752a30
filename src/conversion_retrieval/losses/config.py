"""The training objective."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which softmax, which negatives, which corrections, and what each task weighs."""

    # "auto" takes the full softmax when the catalogue has at most ``max_full_softmax_items`` items.
    softmax: Literal["auto", "full", "sampled"] = "auto"
    max_full_softmax_items: int = 100_000
    # Without them the advertiser loss leaves out conversions of advertisers that no uniform draw hit.
    in_batch_negatives: bool = True
    uniform_negatives: int = 4096
    hard_negatives: bool = True
    # How many times more than its ordinary share a hard negative counts in its query's softmax.
    hard_negative_weight: float = 1.0
    logq_correction: bool = True
    mask_accidental_hits: bool = True
    mask_same_user_positives: bool = True
    # Which positives of the query's user are no negatives of it: those of queries in the same batch, or all of the
    # training window, earlier and later ones (labels, not features: nothing of them reaches a tower).
    same_user_scope: Literal["batch", "training_window"] = "batch"
    # Of cosine scores; raw inner products (``model.normalize: false``) have none.
    temperature: float = 0.07
    learn_temperature: bool = True
    min_temperature: float = 0.01
    max_temperature: float = 1.0
    task_weights: dict[str, float] = field(default_factory=lambda: {"conversion": 1.0, "engagement": 0.3})
    advertiser_weight: float = 0.1

    def __post_init__(self) -> None:
        """Refuse negative weights, an empty temperature range and a softmax without negatives."""
        weights = (*self.task_weights.values(), self.advertiser_weight, self.hard_negative_weight)
        if any(weight < 0 for weight in weights):
            raise ValueError(
                "loss weights must not be negative, found "
                f"{self.task_weights}, {self.advertiser_weight}, {self.hard_negative_weight}"
            )
        if not 0 < self.min_temperature <= self.temperature <= self.max_temperature:
            raise ValueError(
                "temperature must lie between min_temperature > 0 and max_temperature, found "
                f"{self.min_temperature}, {self.temperature}, {self.max_temperature}"
            )
        if unknown := set(self.task_weights) - {"conversion", "engagement"}:
            raise ValueError(f"task_weights knows conversion and engagement, found {sorted(unknown)}")
        if self.uniform_negatives < 0:
            raise ValueError(f"uniform_negatives must not be negative, found {self.uniform_negatives}")
        if self.softmax != "full" and not (self.in_batch_negatives or self.uniform_negatives):
            raise ValueError('a softmax other than "full" needs in_batch_negatives or uniform_negatives')
