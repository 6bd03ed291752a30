"""User columns that requests carry themselves, laid over those that the service knows."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.encoding import as_strings
from conversion_retrieval.features.spec import Column

TYPES: Mapping[str, pa.DataType] = {
    "categorical": pa.string(),
    "numeric": pa.float64(),
    "embedding": pa.list_(pa.float32()),
}


def overlay(
    known: pa.Table | None, given: Sequence[Mapping[str, Any] | None], columns: Sequence[Column]
) -> pa.Table | None:
    """A row of user columns a request: ``known`` [B] with what is ``given`` [B] in its place.

    Raises ``UserError`` naming the request and the column for a column that the model does not use, or a value of
    another kind. Without anything given, ``known`` comes back as it is.
    """
    if not any(given):
        return known
    names = [column.name for column in columns]
    for number, values in enumerate(given):
        if values and (unknown := sorted(set(values) - set(names))):
            expected = ", ".join(names) or "none: this model has no user columns"
            raise UserError(f"request {number}: expected user columns out of {expected}; found {unknown[0]!r}")
    return pa.table(
        {column.name: _column(column, _known_values(known, column, len(given)), given) for column in columns}
    )


def _known_values(known: pa.Table | None, column: Column, count: int) -> list[Any]:
    if known is None or column.name not in known.column_names:
        return [None] * count
    values = known[column.name]
    if column.kind == "categorical":
        values = as_strings(values)
    return pc.cast(values, TYPES[column.kind]).to_pylist()  # type: ignore[no-any-return] # pyarrow ships no types


def _column(column: Column, known: list[Any], given: Sequence[Mapping[str, Any] | None]) -> pa.Array:
    values = [
        _value(number, column, row[column.name]) if row and column.name in row else value
        for number, (value, row) in enumerate(zip(known, given, strict=True))
    ]
    return pa.array(values, TYPES[column.kind])


def _value(number: int, column: Column, value: Any) -> Any:
    if value is None:
        return None
    if column.kind == "categorical" and not isinstance(value, list):
        return _text(value)
    if column.kind == "numeric" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if column.kind == "embedding" and isinstance(value, list):
        if column.dim and len(value) != column.dim:
            raise UserError(
                f"request {number}: expected {column.dim} numbers in user column {column.name!r}, found {len(value)}"
            )
        return value
    expected = {"categorical": "a text", "numeric": "a number", "embedding": "a list of numbers"}[column.kind]
    raise UserError(f"request {number}: expected {expected} in user column {column.name!r}, found {value!r}"[:300])


def _text(value: str | bool | int | float) -> str:
    """As the vocabularies hold it: booleans in lower case, whole numbers without a fraction."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
