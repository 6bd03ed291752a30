"""The optimisation."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """``batch_size`` counts queries; a query brings all its positives."""

    batch_size: int = 1024
    max_epochs: int = 20
    max_steps: int = 0  # 0 is no limit
    learning_rate: float = 3e-3
    embedding_learning_rate: float = 0.0  # 0 is the same as learning_rate
    weight_decay: float = 1e-4
    optimizer: Literal["adamw", "adamw_sparse"] = "adamw"
    warmup_steps: int = 50
    decay: Literal["cosine", "constant"] = "cosine"
    max_gradient_norm: float = 1.0
    early_stopping_metric: str = "conversion/recall@100"
    patience: int = 3  # validations without improvement
    validate_every_steps: int = 0  # 0 is once an epoch
    checkpoint_every_steps: int = 0  # 0 is at each validation
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
