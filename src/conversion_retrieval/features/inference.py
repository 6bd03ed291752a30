"""Infer a feature spec from the tables: which columns there are, how to read them, and their training statistics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.config import FeatureConfig
from conversion_retrieval.features.encoding import (
    Read,
    Vocabulary,
    as_numbers,
    as_strings,
    refuse_wrong_type,
    transform_values,
)
from conversion_retrieval.features.spec import (
    ITEM_ID_VOCABULARY,
    Column,
    EntitySpec,
    FeatureSpec,
    ItemIds,
    Statistic,
    Transform,
)
from conversion_retrieval.schema import is_embedding, is_number, is_text

MAX_CATEGORICAL_INTEGERS: Final = 256
SKEWED: Final = 1.0
KEYS: Final = ("item_id", "user_id")


@dataclass(frozen=True, kw_only=True)
class Entities:
    """The items or users table and which of its rows the training window saw."""

    owner: str
    table: pa.Table
    seen: NDArray[np.bool_]

    @property
    def training(self) -> pa.Table:
        """The rows that vocabularies and statistics may be taken from."""
        return self.table.filter(pa.array(self.seen))


def infer(
    *,
    items: Entities,
    users: Entities,
    config: FeatureConfig,
    surfaces: Sequence[str],
    context_embedding_dim: int,
    user_aggregates: Sequence[Statistic],
    item_performance: Sequence[Statistic],
    template: FeatureSpec | None = None,
) -> FeatureSpec:
    """A spec whose vocabularies and statistics come from ``seen`` rows only, the lengths of vectors from all rows.

    ``template`` (a spec that a person edited) decides the columns, their kinds and transforms, the history, and which
    aggregates and performance figures are used; all else is made anew.
    Raises ``UserError`` for a template column that the table lacks.
    """
    vocabularies: dict[str, Vocabulary] = {}
    item_spec = _entity_spec(items, template.items if template else None, config, vocabularies)
    user_spec = _entity_spec(users, template.users if template else None, config, vocabularies)
    item_ids, vocabularies[ITEM_ID_VOCABULARY] = _item_ids(items, config)
    return FeatureSpec(
        items=item_spec,
        users=user_spec,
        surfaces=tuple(surfaces),
        context_embedding_dim=context_embedding_dim,
        item_ids=item_ids,
        history_length=template.history_length if template else config.history_length,
        history_events=template.history_events if template else tuple(config.history_events),
        user_aggregates=_selected(user_aggregates, template.user_aggregates) if template else tuple(user_aggregates),
        item_performance=_selected(item_performance, template.item_performance)
        if template
        else tuple(item_performance),
        vocabularies=vocabularies,
    )


def statistic(name: str, transform: Transform, values: NDArray[np.floating]) -> Statistic:
    """A statistic normalised by the mean and deviation of ``values`` after the transform; deviation 1 if constant."""
    mean, std = _moments(transform_values(values.astype(np.float64), transform))
    return Statistic(name=name, transform=transform, mean=mean, std=std)


def infer_column(field: pa.Field, values: pa.ChunkedArray) -> Column | None:
    """How to use one column, or ``None`` for types without a use (timestamps, structs, lists of text)."""
    if is_embedding(field.type):
        return Column(name=field.name, kind="embedding")
    if is_text(field.type) or pa.types.is_boolean(field.type):
        return Column(name=field.name, kind="categorical")
    if pa.types.is_integer(field.type) and _is_low_cardinality(values):
        return Column(name=field.name, kind="categorical")
    if is_number(field.type):
        return Column(name=field.name, kind="numeric", transform=_transform(as_numbers(values)))
    return None


def _entity_spec(
    entities: Entities, template: EntitySpec | None, config: FeatureConfig, vocabularies: dict[str, Vocabulary]
) -> EntitySpec:
    training = entities.training
    columns = _template_columns(entities, template) if template else _inferred_columns(entities)
    fitted = [_fitted(entities, c, training, config, vocabularies) for c in columns]
    return EntitySpec(columns=tuple(column for column in fitted if column is not None))


def _template_columns(entities: Entities, template: EntitySpec) -> list[Column]:
    for column in template.columns:
        if column.name not in entities.table.column_names:
            raise UserError(
                f"expected column {column.name!r} of the feature spec in {entities.owner}, "
                f"found: {', '.join(entities.table.column_names)}"
            )
    return list(template.columns)


def _inferred_columns(entities: Entities) -> list[Column]:
    fields = [f for f in entities.table.schema if f.name not in KEYS]
    inferred = [infer_column(f, entities.training[f.name]) for f in fields]
    return [column for column in inferred if column is not None]


def _fitted(
    entities: Entities, column: Column, training: pa.Table, config: FeatureConfig, vocabularies: dict[str, Vocabulary]
) -> Column | None:
    """The column with its size and statistics, ``None`` for an embedding column without any vector."""
    where, values = f"{entities.owner}.{column.name}", training[column.name]
    if column.kind == "categorical":
        limits = {"max_size": config.max_vocabulary_size, "min_count": config.min_vocabulary_count}
        vocabulary = _read_as(column, lambda: build_vocabulary(values, **limits), where)
        vocabularies[where] = vocabulary
        return replace(column, size=len(vocabulary.values))
    if column.kind == "numeric":
        numbers = _read_as(column, lambda: as_numbers(values), where)
        mean, std = _moments(transform_values(numbers, column.transform))
        return replace(column, mean=mean, std=std)
    # Of all rows: a new embedding often comes with the newest items first, which training has not seen.
    dim = _read_as(column, lambda: vector_length(entities.table[column.name], where=where), where)
    return replace(column, dim=dim) if dim else None


def _read_as(column: Column, read: Callable[[], Read], where: str) -> Read:
    """Only a kind that a person gave in an edited spec can be wrong for the column's type."""
    expected = {"categorical": "text or integers", "numeric": "numbers", "embedding": "lists of numbers"}[column.kind]
    advice = f"correct kind {column.kind!r} in the feature spec or leave the column out there"
    return refuse_wrong_type(read, where, expected, advice=advice)


def build_vocabulary(values: pa.ChunkedArray, *, max_size: int, min_count: int) -> Vocabulary:
    """The most frequent values, codes from 1 by falling count and then by value."""
    counted = pc.value_counts(pc.drop_null(as_strings(values)))
    names, counts = counted.field("values"), counted.field("counts").to_numpy()
    table = pa.table({"value": names, "count": counts}).filter(pa.array(counts >= min_count))
    table = table.sort_by([("count", "descending"), ("value", "ascending")]).slice(0, max_size)
    kept = table["value"].combine_chunks().cast(pa.string())
    return Vocabulary(values=kept, codes=np.arange(1, len(kept) + 1, dtype=np.int32))


def vector_length(values: pa.ChunkedArray, *, where: str) -> int:
    """The one length that all vectors of a column have, 0 if there are none; ``UserError`` if they differ."""
    if pa.types.is_null(values.type):
        return 0
    lengths = pc.unique(pc.drop_null(pc.list_value_length(values))).to_pylist()
    if len(lengths) > 1:
        raise UserError(f"expected vectors of one length in {where}, found lengths {sorted(lengths)[:5]}")
    return int(lengths[0]) if lengths else 0


def _item_ids(items: Entities, config: FeatureConfig) -> tuple[ItemIds, Vocabulary]:
    """Ids seen in the training window get a row each, or share hashed buckets; all other ids are unknown."""
    ids = as_strings(items.training["item_id"])
    values = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    buckets = config.item_id_buckets
    if not buckets and len(values) <= config.max_plain_item_ids:
        codes = np.arange(1, len(values) + 1, dtype=np.int32)
        return ItemIds(kind="plain", buckets=len(values)), Vocabulary(values=values, codes=codes)
    buckets = buckets or config.max_plain_item_ids
    from pandas.util import hash_array  # slow to import, and plain ids do without

    hashes = hash_array(values.to_numpy(zero_copy_only=False), categorize=False)
    codes = (hashes % np.uint64(buckets)).astype(np.int32) + 1
    return ItemIds(kind="hashed", buckets=buckets), Vocabulary(values=values, codes=codes.astype(np.int32))


def _selected(statistics: Sequence[Statistic], wanted: Sequence[Statistic]) -> tuple[Statistic, ...]:
    """The statistics that a template names; normalisation always from this training window."""
    by_name: Mapping[str, Statistic] = {s.name: s for s in statistics}
    if missing := [s.name for s in wanted if s.name not in by_name]:
        raise UserError(f"expected a known statistic in the feature spec, found {missing[0]!r}: {', '.join(by_name)}")
    return tuple(by_name[s.name] for s in wanted)


def _is_low_cardinality(values: pa.ChunkedArray) -> bool:
    distinct = pc.count_distinct(values).as_py()
    return bool(distinct <= min(MAX_CATEGORICAL_INTEGERS, max(len(values) // 2, 2)))


def _transform(values: NDArray[np.float64]) -> Transform:
    """``log1p`` for non-negative numbers with a long right tail (skewness above 1)."""
    values = values[np.isfinite(values)]
    if len(values) < 3 or values.min() < 0 or values.std() == 0:
        return "identity"
    skewness = float(np.mean(((values - values.mean()) / values.std()) ** 3))
    return "log1p" if skewness > SKEWED else "identity"


def _moments(values: NDArray[np.float64]) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return 0.0, 1.0
    std = float(values.std())
    return float(values.mean()), std if std > 1e-9 else 1.0
