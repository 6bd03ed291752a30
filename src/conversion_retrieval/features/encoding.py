"""Raw table columns to codes and normalised numbers: the one code path of training and serving."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.features.inputs import EntityTable

FLOAT32_LARGEST: Final = float(np.finfo(np.float32).max)
# Two cross layers make cubes of what they are given, and a length or a score sums the squares of those: 1e36 is the
# last power of a million that float32 holds. Of a length beyond, the vector of length one is zero.
LARGEST_IN_VECTORS: Final = 1e6
Read = TypeVar("Read")


class Normalized(Protocol):
    """A number with its normalisation: a numeric column or a statistic."""

    @property
    def name(self) -> str: ...  # noqa: D102 - said by the class
    @property
    def transform(self) -> str: ...  # noqa: D102
    @property
    def mean(self) -> float: ...  # noqa: D102
    @property
    def std(self) -> float: ...  # noqa: D102


class ScaledStatistic(Normalized, Protocol):
    """A statistic of the spec, whose numbers are multiplied before the transform."""

    @property
    def scale(self) -> float: ...  # noqa: D102


class EncodedColumn(Normalized, Protocol):
    """A column of the spec."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Distinct values and the code of each, from 1; several values may share a code when ids are hashed."""

    values: pa.Array
    codes: NDArray[np.int32]

    def encode(self, column: pa.ChunkedArray | pa.Array) -> NDArray[np.int32]:
        """Codes [N] of a column's values: 0 where null or not in the vocabulary."""
        if len(self.values) == 0:
            return np.zeros(len(column), np.int32)
        index = pc.index_in(as_strings(column), value_set=self.values)
        found = pc.fill_null(index, -1).to_numpy(zero_copy_only=False)
        return np.where(found >= 0, self.codes[found], 0).astype(np.int32)


def as_strings(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """A categorical column's values as the strings that vocabularies hold."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type) and _is_whole(column):
        column = column.cast(pa.int64())  # integers that became floats because of nulls
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def as_numbers(column: pa.ChunkedArray | pa.Array) -> NDArray[np.float64]:
    """A numeric column as float64 [N]; null, NaN, infinities and what float32 cannot hold become NaN.

    float32's own largest number is among them: like float64's, it is written where there is no value.
    """
    values = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    return np.where(np.abs(values) < FLOAT32_LARGEST, values, np.nan)


def as_vectors(column: pa.ChunkedArray | pa.Array, dim: int, *, where: str) -> NDArray[np.float32]:
    """A list column as float32 [N, dim]; null vectors and non-finite entries become zeros.

    Raises ``UserError`` for a vector of another length, and for numbers too large for a model to compute with.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    vectors = np.zeros((len(array), dim), np.float32)
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    present = array.drop_null()
    lengths = pc.list_value_length(present).to_numpy(zero_copy_only=False)
    if len(wrong := lengths[lengths != dim]):
        raise UserError(f"expected vectors of length {dim} in {where}, found one of length {int(wrong[0])}")
    flat = pc.cast(present.flatten(), pa.float32(), safe=False).to_numpy(zero_copy_only=False)  # refuses lists of text
    vectors[valid] = np.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0).reshape(len(present), dim)
    for found in (vectors.max(initial=0.0), vectors.min(initial=0.0)):
        if abs(found) > LARGEST_IN_VECTORS:
            raise UserError(
                f"expected magnitudes up to {LARGEST_IN_VECTORS:g} in the vectors of {where}, found {found:g}: "
                "scale the column, or put null where there is no vector"
            )
    return vectors


def transform_values(values: NDArray[Any], transform: str) -> NDArray[Any]:
    """``log1p`` of the magnitude with the sign kept (so that a stray negative stays finite), or the values as is."""
    return np.sign(values) * np.log1p(np.abs(values)) if transform == "log1p" else values


def normalize(
    values: NDArray[np.float32], names: Sequence[str], statistics: Sequence[ScaledStatistic]
) -> NDArray[np.float32]:
    """Columns ``names`` of ``values`` [B, *] -> [B, len(statistics)], by name and normalised; absent ones count 0."""
    position = {name: column for column, name in enumerate(names)}
    result = np.zeros((len(values), len(statistics)), np.float32)
    for target, statistic in enumerate(statistics):
        source = position.get(statistic.name)
        raw = values[:, source] if source is not None else np.zeros(len(values), np.float32)
        scaled = transform_values(raw * np.float32(statistic.scale), statistic.transform)
        result[:, target] = (scaled - statistic.mean) / statistic.std
    return result


def encode_entities(
    table: pa.Table,
    columns: Sequence[EncodedColumn],
    vocabularies: Mapping[str, Vocabulary],
    *,
    owner: str,
    id_code: NDArray[np.int64],
) -> EntityTable:
    """Encode the columns of the ``owner`` table (``items`` or ``users``) as the spec says."""
    present = {column.name for column in columns if column.name in table.column_names}
    count = table.num_rows
    categorical = [_codes(table, c.name, vocabularies, owner, present) for c in columns if c.kind == "categorical"]
    numeric = [_numbers(table, c, owner, present) for c in columns if c.kind == "numeric"]
    embeddings = {c.name: _vectors(table, c, owner, present) for c in columns if c.kind == "embedding"}
    missing = [np.isnan(values) for values in numeric]
    filled = [np.where(gone, 0, values) for gone, values in zip(missing, numeric, strict=True)]
    return EntityTable(
        categorical=_stack(categorical, count, np.int32),
        numeric=_stack([*filled, *missing], count, np.float32),
        embeddings=embeddings,
        id_code=id_code,
    )


def _codes(
    table: pa.Table, name: str, vocabularies: Mapping[str, Vocabulary], owner: str, present: set[str]
) -> NDArray[np.int32]:
    vocabulary = vocabularies.get(f"{owner}.{name}")
    if vocabulary is None or name not in present:
        return np.zeros(table.num_rows, np.int32)
    return refuse_wrong_type(lambda: vocabulary.encode(table[name]), f"{owner}.{name}", "text or integers")


def _numbers(table: pa.Table, column: EncodedColumn, owner: str, present: set[str]) -> NDArray[np.float64]:
    if column.name not in present:
        return np.full(table.num_rows, np.nan)
    raw = refuse_wrong_type(lambda: as_numbers(table[column.name]), f"{owner}.{column.name}", "numbers")
    normalized = (transform_values(raw, column.transform) - column.mean) / column.std
    # A tiny deviation can take a number out of the range again.
    return np.where(np.abs(normalized) < FLOAT32_LARGEST, normalized, np.nan)


def _vectors(table: pa.Table, column: EncodedColumn, owner: str, present: set[str]) -> NDArray[np.float32]:
    if column.name not in present:
        return np.zeros((table.num_rows, column.dim), np.float32)
    where = f"{owner}.{column.name}"
    return refuse_wrong_type(lambda: as_vectors(table[column.name], column.dim, where=where), where, "vectors")


def refuse_wrong_type(read: Callable[[], Read], where: str, expected: str, *, advice: str = "") -> Read:
    """What ``read`` makes of a column; ``UserError`` names the column if its type does not allow that."""
    try:
        return read()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, AttributeError) as error:
        found = f"expected {expected} in column {where}, found: {one_line(error)}"
        raise UserError(f"{found}: {advice}" if advice else found) from None


def _stack(columns: Sequence[NDArray[Any]], count: int, kind: type) -> NDArray[Any]:
    if not columns:
        return np.zeros((count, 0), kind)
    return np.ascontiguousarray(np.stack(columns, axis=1), dtype=kind)


def _is_whole(column: pa.ChunkedArray | pa.Array) -> bool:
    values = pc.drop_null(column).to_numpy()
    return bool(np.all(np.isfinite(values)) and np.all(values == np.floor(values)))
