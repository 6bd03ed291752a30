"""The network's shape."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One tower: a DCNv2 cross network and an MLP, side by side on the same input or one after the other."""

    layout: Literal["parallel", "sequential"] = "parallel"
    cross_layers: int = 2
    cross_rank: int = 0  # 0 is a full-rank weight matrix
    hidden_sizes: tuple[int, ...] = (256, 128, 64)
    dropout: float = 0.0
    # Add the item's own (or the recency-weighted history's) shared embedding to the head's output: on small
    # catalogues this starts training from matrix factorisation instead of from noise.
    residual: bool = True

    def __post_init__(self) -> None:
        """Refuse impossible shapes."""
        if self.cross_layers < 0 or self.cross_rank < 0:
            raise ValueError(f"cross_layers and cross_rank must not be negative, found {self.cross_layers}, {self.cross_rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), found {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """The encoder of a user's recent events."""

    encoder: Literal["transformer", "recency_mean", "none"] = "transformer"
    layers: int = 1
    heads: int = 2
    dropout: float = 0.1
    half_life_days: tuple[float, ...] = (1.0, 7.0, 60.0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Two towers and their heads; ``embedding_dim`` is the length of the vectors that the index holds."""

    embedding_dim: int = 64
    feature_dim: int = 16  # of each categorical and projected embedding column
    item_id_embedding: Literal["plain", "hashed", "none"] = "plain"
    share_item_embedding: bool = True  # between history and item tower
    heads: Literal["unified", "multi_head"] = "unified"
    normalize: bool = True  # cosine score with a temperature; otherwise the raw dot product
    query_tower: TowerConfig = field(default_factory=TowerConfig)
    item_tower: TowerConfig = field(default_factory=TowerConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse empty vectors."""
        if self.embedding_dim <= 0 or self.feature_dim <= 0:
            raise ValueError(f"embedding sizes must be positive, found {self.embedding_dim} and {self.feature_dim}")
