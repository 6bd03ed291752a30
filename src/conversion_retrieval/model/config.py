"""The network's shape."""

from dataclasses import dataclass, field
from typing import Literal

from conversion_retrieval.options import BEFORE, require_at_least


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One tower: a DCNv2 cross network and an MLP, side by side on the same input or one after the other."""

    layout: Literal["parallel", "sequential"] = "parallel"
    cross_layers: int = 2
    cross_rank: int = 0  # 0 is a full-rank weight matrix
    hidden_sizes: tuple[int, ...] = (256, 128, 64)
    dropout: float = 0.0
    # Add the item's own shared embedding (the query's: those of its history and subject item, and its projected
    # context embedding) to the head's output: training starts from matrix factorisation instead of from noise.
    residual: bool = True

    def __post_init__(self) -> None:
        """Refuse impossible shapes."""
        if self.cross_layers < 0 or self.cross_rank < 0:
            raise ValueError(
                f"cross_layers and cross_rank must not be negative, found {self.cross_layers}, {self.cross_rank}"
            )
        if any(size <= 0 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes must be positive, found {self.hidden_sizes}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), found {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """The encoder of a user's recent events.

    ``half_life_days`` also shape the recency-weighted summary that ``TowerConfig.residual`` adds to the query.
    """

    encoder: Literal["transformer", "recency_mean", "none"] = "transformer"
    layers: int = 1
    heads: int = 2
    dropout: float = 0.1
    half_life_days: tuple[float, ...] = (1.0, 7.0, 60.0)

    def __post_init__(self) -> None:
        """Refuse encoders without layers, heads or half-lives."""
        if self.layers < 1 or self.heads < 1:
            raise ValueError(f"history layers and heads must be at least 1, found {self.layers}, {self.heads}")
        if not self.half_life_days or min(self.half_life_days) <= 0:
            raise ValueError(f"half_life_days must be positive, found {self.half_life_days}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"history dropout must be in [0, 1), found {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Two towers and their heads; ``embedding_dim`` is the length of the vectors that the index holds.

    With ``popularity_bias`` one dimension is added: on the item side a fitted function of its performance features,
    on the query side how much popularity counts for this surface and user. The score stays one inner product.
    """

    embedding_dim: int = 64
    feature_dim: int = 16  # of each categorical and projected embedding column
    item_id_embedding: Literal["plain", "hashed", "none"] = "plain"
    # Rows of the table that hashed ids share, two rows summed an id; 0 is a quarter of the ids.
    item_hash_buckets: int = 0
    # Share of items whose id is hidden in a training step, so that the unknown id (cold items) is trained too.
    item_id_dropout: float = 0.3
    share_item_embedding: bool = True  # between history and item tower
    heads: Literal["unified", "multi_head"] = "unified"
    normalize: bool = True  # cosine score with a temperature; otherwise the raw dot product
    popularity_bias: bool = True
    query_tower: TowerConfig = field(default_factory=TowerConfig)
    item_tower: TowerConfig = field(default_factory=TowerConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    # A frozen linear map of this rank from histories to items, beside the trained vectors (see ``model.memory``); 0
    # leaves it out. Worth it where people buy the same things again. ``reduced_rank`` is fitted to what followed the
    # training queries, ``svd`` to the histories alone: the better one where there are a few hundred users.
    memory_dim: int = 0
    memory_fit: Literal["reduced_rank", "svd"] = field(default="reduced_rank", metadata={BEFORE: "svd"})
    # Penalty of the regression: of squared coefficients, histories being of length one.
    memory_ridge: float = field(default=10.0, metadata={BEFORE: 10.0})
    # Of the inner product in logits at the default temperature (raw inner products: at 1); at another it counts as much
    # more or less.
    memory_weight: float = 60.0
    memory_half_life_days: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse empty vectors."""
        require_at_least(self, 0, "seed", "item_hash_buckets", "memory_dim", "memory_weight")
        if self.embedding_dim <= 0 or self.feature_dim <= 0:
            raise ValueError(f"embedding sizes must be positive, found {self.embedding_dim} and {self.feature_dim}")
        if not 0 <= self.item_id_dropout < 1:
            raise ValueError(f"item_id_dropout must be in [0, 1), found {self.item_id_dropout}")
        if self.embedding_dim % self.history.heads:
            raise ValueError(
                f"embedding_dim must be a multiple of history.heads, found {self.embedding_dim}, {self.history.heads}"
            )
        if self.memory_ridge <= 0 or self.memory_half_life_days <= 0:
            raise ValueError(
                "memory_ridge and memory_half_life_days must be positive, "
                f"found {self.memory_ridge} and {self.memory_half_life_days}"
            )
