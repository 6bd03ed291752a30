"""Encoders of a user's recent events: item, action, surface and recency.

All read ``embedded`` [I + 1, dim], the embeddings of the items that ``queries.history_item`` names, and never see
padding: adding or removing it leaves every query vector as it is. A user without events gets a learned default.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from conversion_retrieval.lookup import look_up, look_up_sums
from conversion_retrieval.model.attention import attend_fixed
from conversion_retrieval.model.config import HistoryConfig
from conversion_retrieval.model.inputs import QueryInputs

RECENCY_BUCKETS = 16


class HistoryEncoder(nn.Module):
    """[B] queries with [I + 1, dim] item embeddings -> [B, ``output_dim``]."""

    output_dim: int


def history_encoder(config: HistoryConfig, dim: int, surfaces: int, actions: int) -> HistoryEncoder:
    """The encoder that the configuration names."""
    if config.encoder == "transformer":
        return TransformerHistory(config, dim, surfaces, actions)
    if config.encoder == "recency_mean":
        return RecencyMeans(config, dim, actions)
    return NoHistory()


class NoHistory(HistoryEncoder):
    """Leaves the history out."""

    output_dim = 0

    def forward(self, queries: QueryInputs, embedded: Tensor) -> Tensor:
        """Nothing: [B, 0]."""
        return embedded.new_zeros(len(queries), 0)


def decayed_shares(queries: QueryInputs, log_action: Tensor, half_life_days: Tensor) -> Tensor:
    """[B, L, H]: ``exp(log_action[action]) * 2 ** (-age / half_life)`` over its sum over L, zero in padding.

    Shares add up to 1 until the newest event is about 20 half-lives old; from there on they fade to zero together. That
    is level with shares that never fade (docs/experiments.md).
    """
    action = queries.history_action
    decay = torch.exp2(-queries.history_age_days.clamp(min=0).unsqueeze(-1) / half_life_days)
    weights: Tensor = decay * look_up(log_action.exp().unsqueeze(1), action) * (action > 0).unsqueeze(-1)
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-6)


class RecencyMeans(HistoryEncoder):
    """A weighted mean of the items for each half-life, side by side: [B, H * dim]."""

    half_life_days: Tensor

    def __init__(self, config: HistoryConfig, dim: int, actions: int) -> None:
        super().__init__()
        self.output_dim = len(config.half_life_days) * dim
        self.log_action = nn.Parameter(torch.zeros(actions))
        self.empty = nn.Parameter(torch.zeros(self.output_dim))
        self.register_buffer("half_life_days", torch.tensor(config.half_life_days), persistent=False)

    def forward(self, queries: QueryInputs, embedded: Tensor) -> Tensor:
        """Average the items of each history."""
        shares = decayed_shares(queries, self.log_action, self.half_life_days).transpose(1, 2)  # [B, H, L]
        items = queries.history_item.unsqueeze(1).expand(shares.shape)
        means = look_up_sums(embedded, items.flatten(0, 1), shares.flatten(0, 1))
        return or_default(means.view(len(queries), self.output_dim), queries, self.empty)


class HistorySummary(nn.Module):
    """One recency-weighted mean of the items, its half-lives mixed by learned shares: [B, dim].

    It is what the residual adds to the query, in the space of the item embeddings.
    """

    half_life_days: Tensor

    def __init__(self, config: HistoryConfig, dim: int, actions: int) -> None:
        super().__init__()
        self.log_action = nn.Parameter(torch.zeros(actions))
        self.mixture = nn.Parameter(torch.zeros(len(config.half_life_days)))
        self.empty = nn.Parameter(torch.zeros(dim))
        self.register_buffer("half_life_days", torch.tensor(config.half_life_days), persistent=False)

    def forward(self, queries: QueryInputs, embedded: Tensor) -> Tensor:
        """Average the items of each history."""
        mixed = decayed_shares(queries, self.log_action, self.half_life_days) @ self.mixture.softmax(0)
        return or_default(look_up_sums(embedded, queries.history_item, mixed), queries, self.empty)


def or_default(encoded: Tensor, queries: QueryInputs, default: Tensor) -> Tensor:
    """``default`` where the history is empty."""
    known = (queries.history_action > 0).any(1, keepdim=True)
    return torch.where(known, encoded, default)


class EventEmbedding(nn.Module):
    """Item, action, surface and recency (a bucket of log age) of every event, summed: [B, L, dim].

    Actions, surfaces and buckets are few, so their sums are tabled and looked up at once.
    """

    def __init__(self, dim: int, surfaces: int, actions: int) -> None:
        super().__init__()
        self.action = nn.Parameter(torch.randn(actions, 1, 1, dim) * dim**-0.5)
        self.surface = nn.Parameter(torch.randn(1, surfaces, 1, dim) * dim**-0.5)
        self.recency = nn.Parameter(torch.randn(1, 1, RECENCY_BUCKETS, dim) * dim**-0.5)

    def forward(self, queries: QueryInputs, embedded: Tensor) -> Tensor:
        """Embed the events."""
        surfaces = self.surface.shape[1]
        kind = (queries.history_action * surfaces + queries.history_surface) * RECENCY_BUCKETS
        kind += recency_bucket(queries.history_age_days)
        table = (self.action + self.surface + self.recency).flatten(0, 2)
        events = look_up(table, kind.flatten()).add_(look_up(embedded, queries.history_item.flatten()))
        return events.view(*kind.shape, -1)


def recency_bucket(age_days: Tensor) -> Tensor:
    """Buckets of doubling age: up to 1 minute, 3, 7, 15 ... the last holds all that is older than 22 days."""
    minutes = age_days.clamp(min=0) * 1440.0
    return torch.log2(minutes + 1).long().clamp(max=RECENCY_BUCKETS - 1)


class TransformerHistory(HistoryEncoder):
    """Pre-norm Transformer over the events, read by a learned summary token in the last layer: [B, dim].

    Only the summary is read, so the last layer computes no other position, and with one layer the cost is about that
    of embedding the events.
    """

    def __init__(self, config: HistoryConfig, dim: int, surfaces: int, actions: int) -> None:
        super().__init__()
        self.output_dim = dim
        self.events = EventEmbedding(dim, surfaces, actions)
        self.summary = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.empty = nn.Parameter(torch.zeros(dim))
        self.layers = nn.ModuleList(AttentionLayer(dim, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: QueryInputs, embedded: Tensor) -> Tensor:
        """Encode the histories."""
        if not queries.history_item.shape[1]:
            return self.empty.expand(len(queries), -1)
        tokens, visible = self.events(queries, embedded), queries.history_action > 0
        for layer in self.layers[:-1]:
            tokens = layer(tokens, tokens, visible)
        encoded: Tensor = self.norm(self.layers[-1](self.summary.expand(1, 1, -1), tokens, visible)).squeeze(1)
        return or_default(encoded, queries, self.empty)


class AttentionLayer(nn.Module):
    """Multi-head attention and a two-layer MLP with residuals: [B, T, dim] attends to [B, S, dim] -> [B, T, dim].

    Tokens [1, 1, dim], one and the same for the whole batch, take a shorter way to the same result.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)  # softmax ignores a key's bias
        self.value, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """``visible`` [B, S] says which positions of ``context`` are not padding."""
        attend = self.attend_from_one if tokens.shape[:2] == (1, 1) else self.attend
        attended = attend(self.attention_norm(tokens), context, visible)
        tokens = tokens + functional.dropout(self.output(attended), self.dropout, self.training)
        refined: Tensor = tokens + functional.dropout(self.mlp(self.mlp_norm(tokens)), self.dropout, self.training)
        return refined

    def attend(self, tokens: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """Softmax attention a head, padding masked."""
        context = self.attention_norm(context)
        query, key, value = (self._split(part) for part in (self.query(tokens), self.key(context), self.value(context)))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        shares = _masked_softmax(scores, visible[:, None, None, :])
        return (shares @ value).transpose(1, 2).flatten(2)

    def attend_from_one(self, token: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """The same for one token, without norming or projecting any position of ``context``.

        Matrices move to the other side: ``q (K x) = (q K) x`` and ``sum a (V x) = V (sum a x)``, and so does the
        norm's weight; its bias adds the same to all scores, and itself to what is attended to.
        """
        size, norm = token.shape[-1] // self.heads, self.attention_norm
        query = self.query(token).view(self.heads, 1, size)
        folded = (query @ self.key.weight.view(self.heads, size, -1)).squeeze(1)  # [heads, dim]
        folded = folded * norm.weight / math.sqrt(size)
        pooled = attend_fixed(folded, context, visible, norm.eps) * norm.weight + norm.bias  # [B, heads, dim]
        weight = self.value.weight.view(self.heads, size, -1)
        attended = torch.einsum("bhd,hsd->bhs", pooled, weight).flatten(1) + self.value.bias
        return attended.unsqueeze(1)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def _masked_softmax(scores: Tensor, visible: Tensor) -> Tensor:
    """Shares of the visible positions; of all where none is, as a row without history is replaced later."""
    return scores.float().masked_fill(~visible, torch.finfo(torch.float32).min).softmax(-1).to(scores.dtype)
