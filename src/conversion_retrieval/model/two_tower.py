"""The two towers: queries and items to vectors whose inner product is the score."""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from conversion_retrieval.lookup import look_up
from conversion_retrieval.model.config import ModelConfig
from conversion_retrieval.model.embedding import (
    CategoricalEmbedding,
    ColumnEncoder,
    ItemEmbedding,
    unit_length,
)
from conversion_retrieval.model.history import history_encoder
from conversion_retrieval.model.inputs import EntityInputs, QueryInputs
from conversion_retrieval.model.memory import Memory
from conversion_retrieval.model.residual import QueryResidual
from conversion_retrieval.model.sizes import InputSizes
from conversion_retrieval.model.tower import Tower

TASKS: Final = ("conversion", "engagement")
UNIFIED_HEAD: Final = "unified"
SERVED_HEAD: Final = "conversion"
# Cosine scores are divided by about this (the default of ``LossConfig.temperature``, which the model does not know: at
# another, popularity and memory start in other proportions), inner products by 1.
START_TEMPERATURE: Final = 0.07
START_WEIGHT: Final = math.log(math.e - 1)  # softplus of this is 1


class Heads(nn.ModuleDict):
    """One linear head for all tasks (``unified``) or one a task (``multi_head``); [M, input_dim] -> [M, dim]."""

    def __init__(self, input_dim: int, config: ModelConfig, *, residual: bool) -> None:
        names = TASKS if config.heads == "multi_head" else (UNIFIED_HEAD,)
        # With a residual start near the shared embeddings' own inner product.
        gain = 0.1 if residual else 1.0
        super().__init__({name: _linear(input_dim, config.embedding_dim, gain) for name in names})

    def forward(self, hidden: Tensor, residual: Tensor | None) -> dict[str, Tensor]:
        """A vector a head, each with the residual added."""
        return {name: head(hidden) if residual is None else head(hidden) + residual for name, head in self.items()}


def _linear(input_dim: int, output_dim: int, gain: float) -> nn.Linear:
    layer = nn.Linear(input_dim, output_dim)
    nn.init.normal_(layer.weight, std=gain * input_dim**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


class PopularityBias(nn.Module):
    """One more dimension, so that a score can rise with popularity by as much as surface and user ask for.

    Item side: a linear function of the performance features, fitted and frozen (see ``start``), corrected by a small
    network over them. Query side: a positive weight, 1 in the loss's scale before training. Of what is trained, the
    correction and the weight's distance from its start, a ``share`` counts. Both sides are part of the score and stay
    in float32.
    """

    def __init__(self, sizes: InputSizes, query_dim: int, *, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(sizes.item_performance, 1)
        hidden, output = nn.Linear(sizes.item_performance, 32), nn.Linear(32, 1)
        self.correction = nn.Sequential(hidden, nn.ReLU(), output)
        self.query = nn.Linear(query_dim, 1)
        with torch.no_grad():
            output.weight.mul_(0.1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        # Trained on, it would follow the task with the most positives, clicks as a rule, whatever validation chose.
        self.linear.requires_grad_(False)
        nn.init.zeros_(self.query.weight)
        nn.init.constant_(self.query.bias, START_WEIGHT)

    @torch.no_grad()
    def start(self, weights: Tensor) -> None:
        """Take these weights [F] of the performance features, in logits."""
        self.linear.weight.copy_(weights.unsqueeze(0))

    def item(self, performance: Tensor, share: Tensor) -> Tensor:
        """The items' dimension, [M, 1]."""
        with torch.autocast(performance.device.type, enabled=False):
            popularity: Tensor = self.linear(performance) + share * self.correction(performance)
        return popularity

    def weight(self, preferences: Tensor, share: Tensor) -> Tensor:
        """The queries' dimension, [B, 1]."""
        with torch.autocast(preferences.device.type, enabled=False):
            trained: Tensor = self.query(preferences.float())
        return self.scale * functional.softplus(torch.full_like(trained, START_WEIGHT).lerp(trained, share))


class ItemTower(nn.Module):
    """Static columns, performance features and the shared embedding -> item vectors."""

    def __init__(self, sizes: InputSizes, config: ModelConfig) -> None:
        super().__init__()
        self.residual = config.item_tower.residual
        self.columns = ColumnEncoder(sizes.items, config.feature_dim)
        self.body = Tower(config.embedding_dim + self.columns.output_dim + sizes.item_performance, config.item_tower)
        self.heads = Heads(self.body.output_dim, config, residual=self.residual)

    def forward(self, items: EntityInputs, performance: Tensor, embedded: Tensor) -> dict[str, Tensor]:
        """A vector a head; ``performance`` [M, F] as of the query's time, ``embedded`` [M, embedding_dim]."""
        hidden = self.body(torch.cat([embedded, self.columns(items), performance], dim=1))
        vectors: dict[str, Tensor] = self.heads(hidden, embedded if self.residual else None)
        return vectors


class QueryTower(nn.Module):
    """Context, preferences and history -> query vectors."""

    def __init__(self, sizes: InputSizes, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.surface = CategoricalEmbedding((sizes.surfaces,), config.feature_dim)
        self.context = nn.Linear(sizes.context_embedding, config.feature_dim) if sizes.context_embedding else None
        self.users = ColumnEncoder(sizes.users, config.feature_dim)
        self.history = history_encoder(config.history, dim, sizes.surfaces, sizes.actions)
        self.residual = QueryResidual(sizes, config) if config.query_tower.residual else None
        context_dim = config.feature_dim if sizes.context_embedding else 0
        self.preference_dim = config.feature_dim + context_dim + self.users.output_dim + sizes.user_aggregates
        input_dim = self.preference_dim + dim + self.history.output_dim
        self.body = Tower(input_dim, config.query_tower)
        self.heads = Heads(self.body.output_dim, config, residual=self.residual is not None)

    def preferences(self, queries: QueryInputs) -> Tensor:
        """Everything about the query but items: [B, ``preference_dim``]."""
        surface = self.surface(queries.surface.unsqueeze(1)).squeeze(1)
        parts = [surface, self.users(queries.users), queries.user_aggregates]
        if self.context is not None:
            parts.append(self.context(queries.context_embedding))
        return torch.cat(parts, dim=1)

    def forward(self, queries: QueryInputs, preferences: Tensor, embedded: Tensor) -> dict[str, Tensor]:
        """A vector a head; ``embedded`` [I + 1, embedding_dim]: the items referred to, the unknown item last."""
        subject = look_up(embedded, queries.context_item)
        hidden = self.body(torch.cat([preferences, subject, self.history(queries, embedded)], dim=1))
        residual = None if self.residual is None else self.residual(queries, embedded, subject)
        vectors: dict[str, Tensor] = self.heads(hidden, residual)
        return vectors


class TwoTower(nn.Module):
    """Scores are inner products of ``encode_queries`` and ``encode_items``, both ``output_dim`` long.

    The catalogue is no part of the model: callers hold it as ``EntityInputs`` (``model.inputs.item_inputs``), embed it
    once with ``embed_items`` and pass the result wherever items are looked up.

    ``tower_share`` is what the towers' part of the score, and what was trained of popularity, are multiplied by, beside
    the fitted popularity and memory; training starts with 1, validation chooses (``training.tower_share``).
    """

    tower_share: Tensor

    def __init__(self, sizes: InputSizes, config: ModelConfig, *, sparse: bool = False) -> None:
        super().__init__()
        self.sizes, self.config = sizes, config
        self.item_embedding = ItemEmbedding(sizes.items, config, sparse=sparse)
        shared = config.share_item_embedding
        self.history_embedding = None if shared else ItemEmbedding(sizes.items, config, sparse=sparse)
        self.query_tower, self.item_tower = QueryTower(sizes, config), ItemTower(sizes, config)
        has_bias = config.popularity_bias and sizes.item_performance > 0
        scale = START_TEMPERATURE if config.normalize else 1.0
        self.bias = PopularityBias(sizes, self.query_tower.preference_dim, scale=scale) if has_bias else None
        has_memory = config.memory_dim > 0 and sizes.items.num_ids > 1
        self.memory = Memory(sizes.items.num_ids, config, scale=scale) if has_memory else None
        self.register_buffer("tower_share", torch.ones(()))

    @property
    def output_dim(self) -> int:
        """The length of the served vectors: ``embedding_dim``, one more for the popularity bias, and the memory's."""
        return self.config.embedding_dim + (self.bias is not None) + (self.config.memory_dim if self.memory else 0)

    def embed_items(self, items: EntityInputs) -> Tensor:
        """The item tower's static embedding, [M, embedding_dim]."""
        embedded: Tensor = self.item_embedding(items)
        return embedded

    def embed_history_items(self, items: EntityInputs, embedded: Tensor | None = None) -> Tensor:
        """The same for history and subject items; ``embedded`` is returned when the embedding is shared."""
        if self.history_embedding is not None:
            return self.history_embedding(items)  # type: ignore[no-any-return]  # nn.Module.__call__ is Any
        return self.embed_items(items) if embedded is None else embedded

    def encode_items(
        self, items: EntityInputs, performance: Tensor, embedded: Tensor | None = None, head: str = SERVED_HEAD
    ) -> Tensor:
        """[M] items with ``performance`` [M, F] -> [M, output_dim] of the head of one task."""
        vectors = self.item_vectors(items, performance, embedded)[self.head_of(head)]
        return vectors if self.memory is None else torch.cat([vectors, self.memory.items(items.id_code)], dim=1)

    def encode_queries(
        self, queries: QueryInputs, embedded: Tensor, id_code: Tensor, head: str = SERVED_HEAD
    ) -> Tensor:
        """[B] queries -> [B, output_dim].

        ``embedded`` is ``embed_history_items`` of the items that the queries refer to, ``id_code`` their id codes.
        """
        vectors = self.query_vectors(queries, embedded)[self.head_of(head)]
        return vectors if self.memory is None else torch.cat([vectors, self.memory.queries(queries, id_code)], dim=1)

    def item_vectors(
        self, items: EntityInputs, performance: Tensor, embedded: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What is trained of ``encode_items``, for every head by its name; the memory is frozen and left out."""
        embedded = self.embed_items(items) if embedded is None else embedded
        bias = None if self.bias is None else self.bias.item(performance, self.tower_share)
        return self._finished(self.item_tower(items, performance, embedded), bias)

    def query_vectors(self, queries: QueryInputs, embedded: Tensor) -> dict[str, Tensor]:
        """What is trained of ``encode_queries``, for every head by its name."""
        preferences = self.query_tower.preferences(queries)
        weight = None if self.bias is None else self.bias.weight(preferences, self.tower_share)
        return self._finished(self.query_tower(queries, preferences, embedded), weight, self.tower_share)

    def head_of(self, task: str) -> str:
        """The name of the head that a task trains."""
        return task if self.config.heads == "multi_head" else UNIFIED_HEAD

    def renormalize(self, vectors: Tensor) -> Tensor:
        """Bring means of item vectors back to the scale of item vectors."""
        dim = self.config.embedding_dim
        return torch.cat([self._scaled(vectors[:, :dim]), vectors[:, dim:]], dim=1)

    def _finished(
        self, vectors: dict[str, Tensor], bias: Tensor | None, share: Tensor | None = None
    ) -> dict[str, Tensor]:
        scaled = {name: self._scaled(values) for name, values in vectors.items()}
        if share is not None:
            scaled = {name: values * share for name, values in scaled.items()}
        return scaled if bias is None else {name: torch.cat([v, bias], dim=1) for name, v in scaled.items()}

    def _scaled(self, vectors: Tensor) -> Tensor:
        return unit_length(vectors) if self.config.normalize else vectors.float()


def make_model(sizes: InputSizes, config: ModelConfig, *, sparse: bool = False) -> TwoTower:
    """A freshly initialised model, the same for the same ``config.seed`` whatever ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return TwoTower(sizes, config, sparse=sparse)
