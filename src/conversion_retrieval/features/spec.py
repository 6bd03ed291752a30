"""The feature spec: which column is used how, with the training window's vocabularies and statistics.

It is written beside the features as YAML that a person can edit, travels in the bundle, and is the only thing that
training, evaluation, indexing and serving need in order to encode raw tables in the same way.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from conversion_retrieval.errors import CorruptArtifactError, UserError, one_line
from conversion_retrieval.features.encoding import Vocabulary, encode_entities, normalize
from conversion_retrieval.features.inputs import EntityTable
from conversion_retrieval.schema import EVENT_TYPES

SPEC_FILE: Final = "feature_spec.yaml"
VOCABULARIES_FILE: Final = "vocabularies.parquet"
VOCABULARIES_SCHEMA: Final = pa.schema(
    [("vocabulary", pa.string()), ("value", pa.string()), ("code", pa.int32())],
)
ITEM_ID_VOCABULARY: Final = "item_id"
SCHEMA_VERSION: Final = 1

Transform = Literal["identity", "log1p"]


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """A derived number (a user aggregate, an item performance figure) and its normalisation.

    ``(transform(scale * x) - mean) / std``: with ``log1p`` a large scale comes near to the logarithm and leaves 0 at 0.
    """

    name: str
    transform: Transform = "identity"
    scale: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a deviation that cannot be divided by and a scale that is not positive."""
        _check_statistics(self.name, self.mean, self.std)
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"expected a positive scale in {self.name}, found {self.scale}")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the items or users table and how the towers see it.

    ``categorical`` has ``size`` codes beside 0 (missing or unseen); ``numeric`` becomes
    ``(transform(x) - mean) / std``; ``embedding`` is a vector of ``dim`` floats.
    """

    name: str
    kind: Literal["categorical", "numeric", "embedding"]
    transform: Transform = "identity"
    mean: float = 0.0
    std: float = 1.0
    dim: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        """Refuse a scale that cannot be divided by, and negative sizes."""
        _check_statistics(self.name, self.mean, self.std)
        if self.dim < 0 or self.size < 0:
            raise ValueError(f"dim and size must not be negative, found {self.dim} and {self.size} in {self.name}")


@dataclass(frozen=True, kw_only=True)
class EntitySpec:
    """The used columns of the items or of the users table."""

    columns: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a column named twice."""
        _check_unique("columns", [column.name for column in self.columns])

    def of_kind(self, kind: str) -> tuple[Column, ...]:
        """The columns of one kind, in order."""
        return tuple(column for column in self.columns if column.kind == kind)

    @property
    def categorical(self) -> tuple[Column, ...]:
        """The categorical columns, in the order of ``EntityTable.categorical``."""
        return self.of_kind("categorical")

    @property
    def numeric(self) -> tuple[Column, ...]:
        """The numeric columns, in the order of the first half of ``EntityTable.numeric``."""
        return self.of_kind("numeric")

    @property
    def embeddings(self) -> tuple[Column, ...]:
        """The embedding columns."""
        return self.of_kind("embedding")

    @property
    def categorical_sizes(self) -> tuple[int, ...]:
        """Rows that an embedding table of each categorical column needs: its codes and one for missing or unseen."""
        return tuple(column.size + 1 for column in self.categorical)

    @property
    def numeric_dim(self) -> int:
        """Width of ``EntityTable.numeric``: a value and a missing indicator for each numeric column."""
        return 2 * len(self.numeric)

    @property
    def embedding_dims(self) -> dict[str, int]:
        """Name and length of each embedding column."""
        return {column.name: column.dim for column in self.embeddings}


@dataclass(frozen=True, kw_only=True)
class ItemIds:
    """How item ids become rows of an embedding table: one each, or hashed into ``buckets``; row 0 is unknown."""

    kind: Literal["plain", "hashed"] = "plain"
    buckets: int = 0

    @property
    def rows(self) -> int:
        """Rows of the id embedding table, the unknown row included."""
        return self.buckets + 1


@dataclass(frozen=True, kw_only=True)
class SpecDocument:
    """What ``feature_spec.yaml`` says: columns, sizes, statistics."""

    schema_version: int = SCHEMA_VERSION
    items: EntitySpec = field(default_factory=EntitySpec)
    users: EntitySpec = field(default_factory=EntitySpec)
    surfaces: tuple[str, ...] = ()
    context_embedding_dim: int = 0
    item_ids: ItemIds = field(default_factory=ItemIds)
    history_length: int = 64
    history_events: tuple[str, ...] = ("click", "save", "add_to_cart", "checkout")
    user_aggregates: tuple[Statistic, ...] = ()
    item_performance: tuple[Statistic, ...] = ()

    def __post_init__(self) -> None:
        """Refuse repeated names, unknown event types and negative lengths."""
        _check_unique("surfaces", self.surfaces)
        _check_unique("user_aggregates", [s.name for s in self.user_aggregates])
        _check_unique("item_performance", [s.name for s in self.item_performance])
        for name in self.history_events:
            if name not in EVENT_TYPES:
                raise ValueError(f"history_events: expected one of {', '.join(EVENT_TYPES)}{_near(name, EVENT_TYPES)}")
        if self.history_length < 0 or self.context_embedding_dim < 0:
            raise ValueError("history_length and context_embedding_dim must not be negative")


@dataclass(frozen=True, kw_only=True)
class FeatureSpec(SpecDocument):
    """Everything needed to turn raw tables and stored features into tower inputs."""

    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict, compare=False, repr=False)

    @property
    def num_surfaces(self) -> int:
        """Rows that a surface embedding needs: the surfaces and one for unknown."""
        return len(self.surfaces) + 1

    def encode_items(self, table: pa.Table) -> EntityTable:
        """Encode raw items; a column that the table lacks counts as missing everywhere.

        Raises ``UserError`` for a column whose type or vector length the spec does not fit.
        """
        ids = self.vocabularies.get(ITEM_ID_VOCABULARY)
        id_code = ids.encode(table["item_id"]).astype(np.int64) if ids else np.zeros(table.num_rows, np.int64)
        return encode_entities(table, self.items.columns, self.vocabularies, owner="items", id_code=id_code)

    def encode_users(self, table: pa.Table) -> EntityTable:
        """Encode raw users; see ``encode_items``."""
        none = np.zeros(table.num_rows, np.int64)
        return encode_entities(table, self.users.columns, self.vocabularies, owner="users", id_code=none)

    def normalize_aggregates(self, values: NDArray[np.float32], names: Iterable[str]) -> NDArray[np.float32]:
        """Raw user aggregates whose columns are called ``names``, [B, *] -> normalised [B, A] in this spec's order."""
        return normalize(values, tuple(names), self.user_aggregates)

    def normalize_performance(self, values: NDArray[np.float32], names: Iterable[str]) -> NDArray[np.float32]:
        """Raw item performance whose columns are called ``names``, [B, *] -> normalised [B, F]."""
        return normalize(values, tuple(names), self.item_performance)

    def save(self, directory: Path) -> None:
        """Write ``feature_spec.yaml`` and ``vocabularies.parquet``."""
        text = yaml.safe_dump(_plain(self), sort_keys=False, allow_unicode=True, width=120)
        (directory / SPEC_FILE).write_text(text, encoding="utf-8")
        pq.write_table(_vocabulary_table(self.vocabularies), directory / VOCABULARIES_FILE, compression="zstd")

    @classmethod
    def load(cls, directory: Path | str) -> "FeatureSpec":
        """Read a spec with its vocabularies; ``UserError`` names the key that is wrong and the nearest known one."""
        spec = read_spec(Path(directory) / SPEC_FILE)
        vocabularies = _read_vocabularies(Path(directory) / VOCABULARIES_FILE)
        spec = dataclasses.replace(spec, vocabularies=vocabularies)
        _check_vocabularies(spec, Path(directory))
        return spec


def spec_file(path: Path | str) -> Path:
    """The YAML at ``path``, or in the directory there."""
    path = Path(path)
    return path / SPEC_FILE if path.is_dir() else path


def read_spec(path: Path | str) -> FeatureSpec:
    """Read the YAML alone: for a spec that a person wrote, whose vocabularies and statistics are still to be made."""
    path = spec_file(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"expected a feature spec at {path}, found: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"expected a mapping in the feature spec at {path}, found {type(values).__name__}")
    version = values.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise UserError(f"expected feature spec version {SCHEMA_VERSION}, found {version!r} at {path}: make it again")
    _refuse_unknown(values, SpecDocument, where=str(path))
    try:
        document = TypeAdapter(SpecDocument).validate_python(values)
        return FeatureSpec(**{f.name: getattr(document, f.name) for f in dataclasses.fields(document)})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{path}: {'.'.join(str(p) for p in first['loc'])}: {first['msg']}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


_NESTED: Final[Mapping[str, type]] = {
    "items": EntitySpec,
    "users": EntitySpec,
    "columns": Column,
    "item_ids": ItemIds,
    "user_aggregates": Statistic,
    "item_performance": Statistic,
}
_USED_BY_KIND: Final = {
    "categorical": ("name", "kind", "size"),
    "numeric": ("name", "kind", "transform", "mean", "std"),
    "embedding": ("name", "kind", "dim"),
}


def _refuse_unknown(values: Mapping[str, Any], owner: type, *, where: str) -> None:
    known = [f.name for f in dataclasses.fields(owner)]
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{_near(str(key), known)}; known keys: {', '.join(known)}")
        if nested := _NESTED.get(str(key)):
            entries = value if isinstance(value, list) else [value]
            for entry in (e for e in entries if isinstance(e, dict)):
                _refuse_unknown(entry, nested, where=f"{where}: {entry.get('name', key)}")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", found {name!r}; did you mean {near[0]!r}?" if near else f", found {name!r}"


def _plain(spec: FeatureSpec) -> dict[str, Any]:
    def entity(owner: EntitySpec) -> dict[str, Any]:
        return {"columns": [{key: getattr(c, key) for key in _USED_BY_KIND[c.kind]} for c in owner.columns]}

    return {
        "schema_version": spec.schema_version,
        "items": entity(spec.items),
        "users": entity(spec.users),
        "surfaces": list(spec.surfaces),
        "context_embedding_dim": spec.context_embedding_dim,
        "item_ids": dataclasses.asdict(spec.item_ids),
        "history_length": spec.history_length,
        "history_events": list(spec.history_events),
        "user_aggregates": [dataclasses.asdict(s) for s in spec.user_aggregates],
        "item_performance": [dataclasses.asdict(s) for s in spec.item_performance],
    }


def _vocabulary_table(vocabularies: Mapping[str, Vocabulary]) -> pa.Table:
    tables = [
        pa.table(
            [pa.array([name] * len(v.values), pa.string()), v.values, pa.array(v.codes, pa.int32())],
            schema=VOCABULARIES_SCHEMA,
        )
        for name, v in sorted(vocabularies.items())
    ]
    return pa.concat_tables([VOCABULARIES_SCHEMA.empty_table(), *tables])


def _read_vocabularies(path: Path) -> dict[str, Vocabulary]:
    try:
        table = pq.read_table(path, schema=VOCABULARIES_SCHEMA).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise CorruptArtifactError(f"expected vocabularies at {path}, found: {one_line(error)}") from None
    names = table["vocabulary"].to_numpy()
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]]) if len(names) else np.empty(0, np.int64)
    vocabularies = {}
    for start, end in zip(starts, [*starts[1:], len(names)], strict=True):
        rows = table.slice(start, end - start)
        values = rows["value"].combine_chunks()
        vocabularies[str(names[start])] = Vocabulary(values=values, codes=rows["code"].to_numpy().astype(np.int32))
    return vocabularies


def _check_vocabularies(spec: FeatureSpec, directory: Path) -> None:
    """An edited spec must still fit the vocabularies beside it."""
    owners = (("items", spec.items), ("users", spec.users))
    expected = {f"{owner}.{c.name}": c.size for owner, entity in owners for c in entity.categorical}
    expected[ITEM_ID_VOCABULARY] = spec.item_ids.buckets
    for name, size in expected.items():
        found = spec.vocabularies.get(name)
        highest = int(found.codes.max(initial=0)) if found else 0
        if highest > size:
            raise UserError(
                f"expected codes up to {size} in vocabulary {name!r}, found {highest} in {directory}: "
                f"set its size in {SPEC_FILE} or build the features again"
            )


def _check_statistics(name: str, mean: float, std: float) -> None:
    if not (np.isfinite(mean) and np.isfinite(std) and std > 0):
        raise ValueError(f"expected a finite mean and a positive std in {name}, found {mean} and {std}")


def _check_unique(what: str, names: Iterable[str]) -> None:
    names = list(names)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{what}: expected each name once, found {repeated[0]!r} twice")
