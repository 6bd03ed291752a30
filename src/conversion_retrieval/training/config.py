"""The optimisation."""

import re
from dataclasses import dataclass, replace
from typing import Final, Literal

from conversion_retrieval.options import require_at_least

# Task, whether only items new to the user count, and the cut-off.
METRIC: Final = re.compile(r"(conversion|engagement)/(new_)?recall@([1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """``batch_size`` counts queries, over all processes; a query brings all its positives."""

    batch_size: int = 1024
    max_epochs: int = 6  # the learning rate decays over these
    max_steps: int = 0  # all in all; 0 is no limit
    learning_rate: float = 2e-3
    embedding_learning_rate: float = 0.0  # 0 is the same as learning_rate
    weight_decay: float = 1e-4
    # "adamw_sparse" updates only the embedding rows that a batch touched, for id tables far larger than a batch; they
    # have neither weight decay nor a moving average then. "auto" takes it on a CPU for sampled softmaxes over id tables
    # of more than ``training.optimizer.MAX_DENSE_ROWS`` rows.
    optimizer: Literal["auto", "adamw", "adamw_sparse"] = "auto"
    warmup_steps: int = 50
    decay: Literal["cosine", "constant"] = "cosine"
    max_gradient_norm: float = 1.0  # 0 is no limit
    # Decay of the moving average of the weights that is validated and kept; 0 keeps the weights themselves.
    average_decay: float = 0.99
    early_stopping_metric: str = "conversion/recall@100"
    patience: int = 3  # validations without improvement
    # What follows when validation is over: so many epochs over the queries since the training window's end, with this
    # share of the learning rate, so that what is promoted knows the time up to the test window. 0 is none.
    recent_epochs: int = 3
    recent_rate_share: float = 0.3
    # Validation chooses how strongly the fit of popularity is held to a list of new buyers, before the first step (the
    # first of these where nothing can be validated on; see ``training.popularity``), and after the last by what the
    # part of the score that steps learned is multiplied (see ``training.tower_share``).
    popularity_ridges: tuple[float, ...] = (0.1, 0.01, 1.0, 10.0)
    tower_shares: tuple[float, ...] = (1.0, 0.5, 0.25, 0.0)
    validate_every_steps: int = 0  # 0 is once an epoch
    max_validation_queries: int = 20_000  # a seeded sample of them when there are more
    checkpoint_every_steps: int = 0  # 0 is at each validation
    # So many minutes after the last one, or after the start, the next step ends with a checkpoint too: what a preempted
    # training loses depends neither on how long steps take nor on how rare validations are. 0 is never.
    checkpoint_every_minutes: float = 10.0
    keep_checkpoints: int = 2
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an optimisation that cannot take a step."""
        if self.batch_size <= 0 or self.max_epochs <= 0 or self.learning_rate <= 0:
            raise ValueError(
                "batch_size, max_epochs and learning_rate must be positive, found "
                f"{self.batch_size}, {self.max_epochs}, {self.learning_rate}"
            )
        if self.patience < 1 or self.keep_checkpoints < 1 or self.max_validation_queries < 1:
            raise ValueError(
                "patience, keep_checkpoints and max_validation_queries must be at least 1, found "
                f"{self.patience}, {self.keep_checkpoints}, {self.max_validation_queries}"
            )
        require_at_least(
            self,
            0,
            "max_steps",
            "embedding_learning_rate",
            "weight_decay",
            "warmup_steps",
            "max_gradient_norm",
            "validate_every_steps",
            "checkpoint_every_steps",
            "checkpoint_every_minutes",
            "seed",
        )
        if self.recent_epochs < 0 or not 0 < self.recent_rate_share <= 1:
            raise ValueError(
                "recent_epochs must not be negative and recent_rate_share in (0, 1], "
                f"found {self.recent_epochs} and {self.recent_rate_share}"
            )
        if not self.popularity_ridges or min(self.popularity_ridges) <= 0:
            raise ValueError(f"popularity_ridges must be positive, found {self.popularity_ridges}")
        if not self.tower_shares or not all(0 <= share <= 1 for share in self.tower_shares):
            raise ValueError(f"tower_shares must be from 0 to 1, found {self.tower_shares}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must be in [0, 1), found {self.average_decay}")
        if not METRIC.fullmatch(self.early_stopping_metric):
            raise ValueError(
                "early_stopping_metric must be like conversion/recall@100 or conversion/new_recall@100, "
                f"found {self.early_stopping_metric!r}"
            )

    @property
    def of_weights(self) -> "TrainingConfig":
        """What decides the weights: when checkpoints are written, and how many are kept, as by default.

        A training goes on from its checkpoints whatever these say now.
        """
        default = TrainingConfig()
        return replace(
            self,
            checkpoint_every_steps=default.checkpoint_every_steps,
            checkpoint_every_minutes=default.checkpoint_every_minutes,
            keep_checkpoints=default.keep_checkpoints,
        )
