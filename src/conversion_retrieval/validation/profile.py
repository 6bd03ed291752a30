"""A compact profile of the tables, and how far another data set has drifted from it (population stability index).

Histograms have fixed bins, so two profiles compare without the rows: text and boolean columns by value, numbers in
quarter powers of two by sign, embeddings by their Euclidean norm as a number.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from conversion_retrieval.schema import is_embedding, is_number, is_text
from conversion_retrieval.validation.cleaning import Cleaned, quoted

MAX_VALUES: Final = 1000
GROUPS: Final = 10
SMALLEST_SHARE: Final = 1e-4
NO_OVERLAP: Final = 2 * (1 - SMALLEST_SHARE) * math.log(1 / SMALLEST_SHARE)
"""The index of two columns that each hold one value, and not the same: as far apart as two columns can be."""
OTHER: Final = "(other)"
NORM: Final = ".norm"  # behind the name of an embedding
Profile = dict[str, dict[str, Any]]


def make_profile(cleaned: Cleaned) -> Profile:
    """``{"events.surface": {"kind": "text" | "number", "counts": {bin: rows}}, ...}``, every column that has a kind.

    Text of too many values has no counts: it is there because what used to be numbers has drifted all the same.
    """
    expressions = {
        "event_type": ("text", "event_type"),
        "surface": ("text", "surface"),
        "hour": ("text", "hour(event_time)::VARCHAR"),
        "weekday": ("text", "dayofweek(event_time)::VARCHAR"),
        "click_duration_seconds": ("number", "click_duration_seconds"),
        "value": ("number", "value"),
        f"context_embedding{NORM}": ("number", _norm("context_embedding")),
    }
    profile = {f"events.{name}": _histogram(cleaned, "kept", *what) for name, what in expressions.items()}
    for reader in (cleaned.tables.items, cleaned.tables.users):
        if reader is None:
            continue
        for column in reader.schema:
            name, kind = f"{reader.table.name}.{column.name}", _kind(column.type)
            if is_embedding(column.type):
                profile[f"{name}{NORM}"] = _histogram(cleaned, reader.table.name, "number", _norm(quoted(column.name)))
            elif kind and column.name != reader.table.key:
                value = f"{quoted(column.name)}::VARCHAR" if kind == "text" else quoted(column.name)
                profile[name] = _histogram(cleaned, reader.table.name, kind, value)
    return profile


def _norm(column: str) -> str:
    return f"sqrt(list_sum(list_transform({column}, lambda x: x::DOUBLE * x)))"


def _kind(column: pa.DataType) -> str:
    return "number" if is_number(column) else "text" if is_text(column) or pa.types.is_boolean(column) else ""


def _histogram(cleaned: Cleaned, table: str, kind: str, value: str) -> dict[str, Any]:
    """Counts by bin; empty for text with more than ``MAX_VALUES`` values, which names things rather than kinds."""
    if kind == "number":
        size = f"greatest(-80, least(160, floor(4 * log2(abs({value}::DOUBLE)))))::INT"
        value = (
            f"CASE WHEN {value} IS NULL OR isnan({value}) THEN 'null' WHEN {value} = 0 THEN 'zero' "
            f"WHEN {value} > 0 THEN '+' || {size} ELSE '-' || {size} END"
        )
    query = f"SELECT coalesce({value}, 'null') AS bin, count(*) AS n FROM {table} GROUP BY 1 ORDER BY 1"
    rows = cleaned.rows(f"{query} LIMIT {MAX_VALUES + 1}")
    return {"kind": kind, "counts": {row["bin"]: row["n"] for row in rows} if len(rows) <= MAX_VALUES else {}}


def drift(profile: Profile, reference: Mapping[str, Any]) -> dict[str, float]:
    """The index of every column that the reference has, by the larger shift first.

    Bins of one kind mean nothing to the other: a column that changed its kind, or is gone, counts as ``NO_OVERLAP``.
    """
    values = dict.fromkeys(changed_kinds(profile, reference), NO_OVERLAP)
    for name, found in profile.items():
        if name not in values and found["counts"] and reference.get(name, {}).get("counts"):
            values[name] = stability_index(found, reference[name])
    return dict(sorted(values.items(), key=lambda item: (-item[1], item[0])))


def changed_kinds(profile: Profile, reference: Mapping[str, Any]) -> dict[str, str]:
    """Columns that are of another kind than in the reference or missing, with what they are and were."""
    now = _kinds(profile)
    return {
        name: f"now {now.get(name, 'missing')}, {before} in the champion's data"
        for name, before in _kinds(reference).items()
        if now.get(name) != before
    }


def _kinds(profile: Mapping[str, Any]) -> dict[str, str]:
    """The kind of every column, by the column's own name."""
    return {
        name.removesuffix(NORM): "list of floats" if name.endswith(NORM) else entry["kind"]
        for name, entry in profile.items()
    }


def stability_index(found: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Sum over bins of (p - q) ln(p / q), p found and q the reference (Lewis, Credit Scoring, 1994).

    Bins with little of the reference's mass are merged first: neighbours for numbers, into "(other)" for text. Shares
    below ``SMALLEST_SHARE`` count as that much.
    """
    groups = _number_groups(reference["counts"]) if reference["kind"] == "number" else _text_groups(reference["counts"])
    shares = [_shares(profile["counts"], groups, reference["kind"]) for profile in (found, reference)]
    names = set(shares[0]) | set(shares[1])
    pairs = ([max(share.get(name, 0.0), SMALLEST_SHARE) for share in shares] for name in names)
    return math.fsum((p - q) * math.log(p / q) for p, q in pairs)


def _shares(counts: Mapping[str, int], groups: Mapping[str, str], kind: str) -> dict[str, float]:
    total = sum(counts.values())
    shares: dict[str, float] = {}
    for name, count in counts.items():
        group = groups.get(name) or (_nearest(name, groups) if kind == "number" else OTHER)
        shares[group] = shares.get(group, 0.0) + count / total
    return shares


def _text_groups(counts: Mapping[str, int]) -> dict[str, str]:
    least = sum(counts.values()) / 1000
    return {name: name if count >= least else OTHER for name, count in counts.items()}


def _number_groups(counts: Mapping[str, int]) -> dict[str, str]:
    """Neighbouring bins in at most ``GROUPS`` groups of about equal mass; null and zero stay apart."""
    groups = {name: name for name in ("null", "zero") if name in counts}
    ordered = sorted((name for name in counts if name not in ("null", "zero")), key=_position)
    mass, total = 0, sum(counts[name] for name in ordered)
    for name in ordered:
        groups[name] = f"group {mass * GROUPS // max(total, 1)}"
        mass += counts[name]
    return groups


def _position(name: str) -> float:
    """Where a signed logarithmic bin lies on the number line."""
    exponent = int(name[1:]) + 1000.0
    return exponent if name[0] == "+" else -exponent


def _nearest(name: str, groups: Mapping[str, str]) -> str:
    if name in ("null", "zero"):
        return name
    numbers = [other for other in groups if other not in ("null", "zero")]
    if not numbers:
        return OTHER
    return groups[min(numbers, key=lambda other: (abs(_position(other) - _position(name)), other))]
