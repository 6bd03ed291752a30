"""Ids, categories and content as vectors: the inputs of the towers and the item embedding that both towers share."""

from typing import Any

import torch
from torch import Tensor, nn

from conversion_retrieval.lookup import look_up
from conversion_retrieval.model.config import ModelConfig
from conversion_retrieval.model.inputs import EntityInputs
from conversion_retrieval.model.sizes import EntitySizes

# Odd multipliers of the multiply-shift hash (Dietzfelbinger et al. 1997): golden ratio and a prime of xxHash.
HASH_MULTIPLIERS = (0x9E3779B1, 0x85EBCA77)

# Content says what an item is before anything is learned; an id of the same length would start as that much noise.
ID_SCALE_BESIDE_CONTENT = 0.1


def table_rows(table: nn.Embedding, codes: Tensor) -> Tensor:
    """Rows of a table; a sparse one's gradient holds those rows alone."""
    found: Tensor = table(codes) if table.sparse else look_up(table.weight, codes)
    return found


class CategoricalEmbedding(nn.Module):
    """K categorical columns in one table: [M, K] codes -> [M, K, dim]. Code 0 is unknown, a row of its own a column."""

    offsets: Tensor

    def __init__(self, sizes: tuple[int, ...], dim: int, *, sparse: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(sizes), dim, sparse=sparse)
        nn.init.normal_(self.table.weight, std=dim**-0.5)
        offsets = torch.tensor((0, *sizes[:-1])).cumsum(0)
        self.register_buffer("offsets", offsets[: len(sizes)], persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Look up ``codes`` [M, K]."""
        return table_rows(self.table, codes + self.offsets)


class IdEmbedding(nn.Module):
    """[M] id codes -> [M, dim]; code 0, an id unseen in training, starts at zero: content alone speaks for it."""

    def __init__(self, num_ids: int, dim: int, *, dropout: float = 0.0, sparse: bool = False) -> None:
        super().__init__()
        self.dropout = dropout
        self.table = nn.Embedding(num_ids, dim, sparse=sparse)
        nn.init.normal_(self.table.weight, std=dim**-0.5)
        with torch.no_grad():
            self.table.weight[0] = 0

    def forward(self, codes: Tensor) -> Tensor:
        """Look up ``codes``, hiding a share of them while training."""
        if self.training and self.dropout:
            codes = codes * (torch.rand(codes.shape, device=codes.device) >= self.dropout)
        return self.look_up(codes)

    def look_up(self, codes: Tensor) -> Tensor:
        """The rows of ``codes``."""
        return table_rows(self.table, codes)


class HashedIdEmbedding(IdEmbedding):
    """As ``IdEmbedding`` with fewer rows than ids: the sum of two rows picked by two hashes, so that two ids rarely
    share both (Svenstrup et al. 2017, https://arxiv.org/abs/1709.03933). Row 0 stays the unknown id's own.
    """

    def __init__(self, num_ids: int, dim: int, *, buckets: int = 0, dropout: float = 0.0, sparse: bool = False) -> None:
        self.buckets = _buckets(num_ids, buckets)
        super().__init__(self.buckets + 1, dim, dropout=dropout, sparse=sparse)

    def look_up(self, codes: Tensor) -> Tensor:
        """The sum of each code's two rows."""
        rows = (table_rows(self.table, self._bucket(codes, multiplier)) for multiplier in HASH_MULTIPLIERS)
        return sum(rows, torch.zeros(()))

    def _bucket(self, codes: Tensor, multiplier: int) -> Tensor:
        mixed = (codes * multiplier) & 0xFFFFFFFF
        return torch.where(codes == 0, 0, 1 + (mixed ^ (mixed >> 15)) % self.buckets)


def _buckets(num_ids: int, buckets: int) -> int:
    return buckets or max(num_ids // 4, 1)


def id_table_rows(num_ids: int, config: ModelConfig) -> int:
    """Rows of the table that ``id_embedding`` makes; 0 without one."""
    if num_ids <= 1 or config.item_id_embedding == "none":
        return 0
    return _buckets(num_ids, config.item_hash_buckets) + 1 if config.item_id_embedding == "hashed" else num_ids


def id_embedding(num_ids: int, config: ModelConfig, *, sparse: bool) -> IdEmbedding:
    """The id embedding that the configuration names."""
    if config.item_id_embedding == "hashed":
        return HashedIdEmbedding(
            num_ids,
            config.embedding_dim,
            buckets=config.item_hash_buckets,
            dropout=config.item_id_dropout,
            sparse=sparse,
        )
    return IdEmbedding(num_ids, config.embedding_dim, dropout=config.item_id_dropout, sparse=sparse)


class ItemEmbedding(nn.Module):
    """What an item is, apart from how it performs: id, categories and content summed, [M] items -> [M, embedding_dim].

    Shared between history, subject item and item tower (``share_item_embedding``), it makes the score of an item
    that resembles the history high before anything is learned.
    """

    def __init__(self, sizes: EntitySizes, config: ModelConfig, *, sparse: bool = False) -> None:
        super().__init__()
        dim = config.embedding_dim
        has_ids = id_table_rows(sizes.num_ids, config) > 0
        self.ids = id_embedding(sizes.num_ids, config, sparse=sparse) if has_ids else None
        if self.ids is not None and sizes.embeddings:
            with torch.no_grad():
                self.ids.table.weight.mul_(ID_SCALE_BESIDE_CONTENT)
        self.categories = CategoricalEmbedding(sizes.categorical, dim, sparse=sparse) if sizes.categorical else None
        self.content = projections(sizes.embeddings, dim)
        self.default = nn.Parameter(torch.zeros(dim))

    def forward(self, items: EntityInputs) -> Tensor:
        """Embed the items."""
        # Added up in place: for a whole catalogue every part is as large as the id table.
        embedded = self.default.repeat(len(items), 1)
        if self.ids is not None:
            embedded += self.ids(items.id_code)
        if self.categories is not None:
            embedded += self.categories(items.categorical).sum(1)
        for name, project in self.content.items():
            embedded += project(items.embeddings[name])
        return embedded


class ColumnEncoder(nn.Module):
    """All columns of an entity side by side for a tower's input: [M] entities -> [M, ``output_dim``]."""

    def __init__(self, sizes: EntitySizes, dim: int) -> None:
        super().__init__()
        self.categories = CategoricalEmbedding(sizes.categorical, dim) if sizes.categorical else None
        self.content = projections(sizes.embeddings, dim)
        self.output_dim = dim * (len(sizes.categorical) + len(sizes.embeddings)) + sizes.numeric

    def forward(self, entities: EntityInputs) -> Tensor:
        """Encode the columns."""
        parts = [entities.numeric]
        if self.categories is not None:
            parts.append(self.categories(entities.categorical).flatten(1))
        parts += [project(entities.embeddings[name]) for name, project in self.content.items()]
        return torch.cat(parts, dim=1)


def projections(sizes: dict[str, int], dim: int) -> nn.ModuleDict:
    """A linear map to ``dim`` for each embedding column; without a bias, so that a missing one adds nothing."""
    return nn.ModuleDict({name: nn.Linear(size, dim, bias=False) for name, size in sorted(sizes.items())})


def unit_length(vectors: Tensor) -> Tensor:
    """Vectors scaled to length one, in float32; the small constant bounds the gradient at the zero vector, which stays
    zero. With products in bfloat16, as autocast would take them, lengths were half a percent off.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        scaled: Tensor = _UnitLength.apply(vectors.float())  # type: ignore[no-untyped-call]  # torch declares it so
    return scaled


class _UnitLength(torch.autograd.Function):
    """``y = r v`` with ``r = (v'v + 1e-6) ** -0.5``, so ``dv = r (dy - y (y'dy))``: only y and r are kept."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        inverse = torch.rsqrt(torch.einsum("...d,...d->...", vectors, vectors).unsqueeze(-1) + 1e-6)
        scaled = vectors * inverse
        ctx.save_for_backward(scaled, inverse)
        return scaled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        scaled, inverse = ctx.saved_tensors
        along = torch.einsum("...d,...d->...", scaled, gradient).unsqueeze(-1)
        return torch.addcmul(gradient, scaled, along, value=-1).mul_(inverse)
