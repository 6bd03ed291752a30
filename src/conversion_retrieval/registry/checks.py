"""The gate's checks, each with its value, threshold, interval and count."""

import math
from collections.abc import Iterator

import numpy as np

from conversion_retrieval.registry.config import GateConfig
from conversion_retrieval.registry.decision import Check
from conversion_retrieval.registry.gate_inputs import (
    CANDIDATE,
    CHAMPION,
    DigestPair,
    GateInputs,
    IndexRecall,
)
from conversion_retrieval.registry.recall_columns import RecallColumns
from conversion_retrieval.registry.resampling import Estimates


def integrity_checks(inputs: GateInputs) -> Iterator[Check]:
    """Do the artifacts belong together, is their data valid, and is the champion known?"""
    yield _digest_check(inputs.digests)
    yield _validation_check(inputs.validation)
    yield _champion_check(inputs)


def _digest_check(pairs: tuple[DigestPair, ...]) -> Check:
    differing = [pair for pair in pairs if not pair.found or pair.found != pair.expected]
    detail = "; ".join(f"{p.name}: expected {p.expected[:12]}, found {p.found[:12] or 'none'}" for p in differing)
    return Check(
        name="digests_agree",
        passed=bool(pairs) and not differing,
        value=float(len(pairs) - len(differing)),
        threshold=float(len(pairs)),
        detail=detail or f"{len(pairs)} recorded digests match the artifacts at hand",
    )


def _validation_check(validation: str) -> Check:
    return Check(
        name="data_valid",
        passed={"valid": True, "invalid": False}.get(validation),
        detail=f"the validation report says {validation!r}" if validation else "there is no validation report",
    )


def _champion_check(inputs: GateInputs) -> Check:
    champion = inputs.champion
    recover = "inspect it with `history`, then point it at a kept version with `rollback VERSION`"
    passed, detail = {
        "present": (True, f"compared with champion {champion.version}"),
        "absent": (
            inputs.allow_first,
            "no champion yet; the first one is explicitly allowed"
            if inputs.allow_first
            else "no champion to compare with; pass allow_first to promote a first one",
        ),
        "incomparable": (
            inputs.allow_first or None,
            f"champion {champion.version} cannot be measured on these features ({champion.reason}); "
            + (
                "replacing it uncompared is explicitly allowed"
                if inputs.allow_first
                else "build them so that it can, or replace it uncompared with allow_first"
            ),
        ),
        "corrupt": (False, f"the champion cannot be read ({champion.reason}); {recover}"),
        "unreachable": (None, f"the registry could not be reached ({champion.reason}); run again when it can"),
    }.get(champion.status, (None, f"unknown champion status {champion.status!r}"))
    return Check(name="champion_known", passed=passed, detail=detail)


def volume_checks(inputs: GateInputs, config: GateConfig) -> Iterator[Check]:
    """Is there enough to tell models apart?"""
    counts = (
        ("enough_conversions", len(inputs.ranks), config.min_conversions),
        ("enough_queries", len(np.unique(inputs.ranks.queries)), config.min_queries),
    )
    for name, count, minimum in counts:
        yield Check(
            name=name,
            passed=True if count >= minimum else None,
            value=float(count),
            threshold=float(minimum),
            n=count,
            detail="of the test window" if count >= minimum else f"{minimum} are needed to tell models apart",
        )
    yield _items_check(inputs.num_items, config)


def _items_check(num_items: int | None, config: GateConfig) -> Check:
    """A list as long as the catalogue holds all of it, whichever model made it."""
    if num_items is None:
        passed, detail = None, "the index does not tell how many items it holds"
    elif num_items <= config.k:
        passed, detail = None, "a list of gate.k holds the whole catalogue, whichever model made it: choose a smaller k"
    else:
        passed, detail = True, "n counts items of the catalogue"
    value = None if num_items is None else float(num_items)
    return Check(name="enough_items", passed=passed, value=value, threshold=config.k + 1.0, n=num_items, detail=detail)


def quality_checks(inputs: GateInputs, config: GateConfig) -> Iterator[Check]:
    """Does the candidate recall enough, through its index, against baselines and the champion, overall and by slice?"""
    columns = RecallColumns(inputs.ranks, config)
    estimates = columns.estimate()
    yield _index_check(inputs.index_recall, config)
    yield _floor_check(estimates, columns, config)
    for name in config.must_beat:
        yield _baseline_check(name, estimates, columns, config)
    if inputs.champion.status == "present":
        yield _regression_check(estimates, columns, config)
        yield from _guardrail_checks(estimates, columns, config)


def _index_check(recall: IndexRecall, config: GateConfig) -> Check:
    return _at_least(
        "index_recall",
        recall.value,
        config.min_index_recall,
        low=recall.low,
        high=recall.high,
        n=recall.n,
        detail="recall of the shipped index against exact search; n counts queries",
    )


def _floor_check(estimates: Estimates, columns: RecallColumns, config: GateConfig) -> Check:
    value = float(estimates.values[0])
    low, high = estimates.interval(0, config.confidence_level)
    detail = f"conversion recall@{config.k} through the shipped index"
    return _at_least("recall_floor", value, config.min_recall, low=low, high=high, n=columns.count(0), detail=detail)


def _baseline_check(name: str, estimates: Estimates, columns: RecallColumns, config: GateConfig) -> Check:
    """Better than a baseline only if the paired difference's lower bound says so."""
    check = f"beats_{name}"
    if (column := columns.index(f"{CANDIDATE} - {name}")) is None:
        return Check(name=check, passed=None, threshold=0.0, detail=_missing(columns, f"baseline {name!r}"))
    value, low, high = _difference(estimates, column, config)
    passed = None if _unknown(value, low) else bool(low > 0)
    detail = f"recall@{config.k} minus that of {name}, paired by conversion; the lower bound must exceed 0"
    return _check(check, passed, value, 0.0, low, high, columns.count(column), detail)


def _regression_check(estimates: Estimates, columns: RecallColumns, config: GateConfig) -> Check:
    """Non-inferiority: the lower bound must stay above the margin; a loss beyond it fails, the rest is undecided."""
    name = "not_worse_than_champion"
    if (column := columns.index(f"{CANDIDATE} - {CHAMPION}")) is None:
        return Check(name=name, passed=None, detail=_missing(columns, "ranks of the champion"))
    value, low, high = _difference(estimates, column, config)
    margin = -config.max_regression
    decided = False if value < margin else None
    passed = None if _unknown(value, low, margin) else True if low >= margin else decided
    detail = f"recall@{config.k} minus the champion's (exact search), paired; the lower bound must reach the margin"
    return _check(name, passed, value, margin, low, high, columns.count(column), detail)


def _guardrail_checks(estimates: Estimates, columns: RecallColumns, config: GateConfig) -> Iterator[Check]:
    """A slice fails when it loses more than the margin and that is not chance, given how many slices are looked at."""
    yield _guardrail_coverage(columns, config)
    if not (slices := columns.slice_columns):
        return
    lows, highs = estimates.simultaneous(slices, config.confidence_level)
    for column, low, high in zip(slices, lows, highs, strict=True):
        value, threshold = float(estimates.values[column]), -config.max_slice_regression
        passed = None if _unknown(value, high, threshold) else bool(value >= threshold or high >= 0)
        detail = f"recall@{config.k} minus the champion's; bounds hold for all {len(slices)} slices at once"
        yield _check(
            f"slice {columns.names[column]}", passed, value, threshold, low, high, columns.count(column), detail
        )


def _guardrail_coverage(columns: RecallColumns, config: GateConfig) -> Check:
    missing = [name for name in config.guardrail_slices if name not in columns.ranks.slices]
    skipped = ", ".join(f"{name} ({count})" for name, count in columns.skipped.items())
    detail = f"{len(columns.slice_columns)} slices compared with the champion"
    if skipped:
        detail += f"; under {config.min_slice_conversions} conversions, or of one user, and left out: {skipped}"
    if missing:
        detail = f"the evaluation has no slices by {', '.join(missing)}"
    return Check(name="guardrail_slices", passed=None if missing else True, detail=detail)


def _missing(columns: RecallColumns, what: str) -> str:
    """Why there is nothing to compare with; a window without conversions has no ranks of anything."""
    return f"the evaluation has no {what}" if len(columns.ranks) else "no conversions to compare on"


def _difference(estimates: Estimates, column: int, config: GateConfig) -> tuple[float, float, float]:
    return float(estimates.values[column]), *estimates.interval(column, config.confidence_level)


def _at_least(
    name: str,
    value: float | None,
    threshold: float,
    *,
    low: float | None,
    high: float | None,
    n: int | None,
    detail: str,
) -> Check:
    passed = None if _unknown(value, threshold) else bool(value is not None and value >= threshold)
    return _check(name, passed, value, threshold, low, high, n, detail)


def _check(
    name: str,
    passed: bool | None,
    value: float | None,
    threshold: float,
    low: float | None,
    high: float | None,
    n: int | None,
    detail: str,
) -> Check:
    """A check whose non-finite numbers are None, so that it is strict JSON; what is missing is said."""
    if _finite(value) is None:
        detail = f"not measured: {detail}"
    elif low is not None and _finite(low) is None:
        detail = f"without an interval: {detail}"
    return Check(
        name=name,
        passed=passed,
        value=_finite(value),
        threshold=_finite(threshold),
        low=_finite(low),
        high=_finite(high),
        n=n,
        detail=detail,
    )


def _unknown(*values: float | None) -> bool:
    return any(_finite(value) is None for value in values)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
