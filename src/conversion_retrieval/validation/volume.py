"""Checks of how much there is and when: events by day and surface, null rates, reporting delays. All are warnings."""

from collections.abc import Iterator

import pyarrow as pa

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.errors import UserError
from conversion_retrieval.schema import CONVERSIONS
from conversion_retrieval.tables import TableReader
from conversion_retrieval.validation.cleaning import Cleaned, quoted
from conversion_retrieval.validation.config import ValidationConfig
from conversion_retrieval.validation.measurement import Check, Row

CONVERSION_TYPES = ", ".join(f"'{name}'" for name in CONVERSIONS)
CALENDAR = (
    "SELECT unnest(range(min(event_time)::DATE, max(event_time)::DATE + INTERVAL 1 DAY, INTERVAL 1 DAY))::DATE AS day "
    "FROM kept"
)


def volume_checks(cleaned: Cleaned, config: PipelineConfig) -> Iterator[Check]:
    """Days and (day, surface) pairs with too few events, null rates, and conversions reported too late."""
    limits = config.validation
    low_days = _low_days(cleaned, limits.min_events_per_day)
    low_surfaces = _low_surface_days(cleaned, limits.min_events_per_surface_day)
    yield _low_volume("days_below_min_events", "event_time", "min_events_per_day", low_days, limits)
    yield _low_volume("surface_days_below_min_events", "surface", "min_events_per_surface_day", low_surfaces, limits)
    yield from _null_rates(cleaned, limits.max_null_rates)
    yield _late_reports(cleaned, config)


def _low_days(cleaned: Cleaned, least: int) -> list[Row]:
    return cleaned.rows(
        f"WITH days AS (SELECT event_time::DATE AS day, count(*) AS n FROM kept GROUP BY 1), calendar AS ({CALENDAR}) "
        "SELECT strftime(day, '%Y-%m-%d') AS day, coalesce(n, 0) AS events "
        f"FROM calendar LEFT JOIN days USING (day) WHERE coalesce(n, 0) < {least} ORDER BY 1"
    )


def _low_surface_days(cleaned: Cleaned, least: int) -> list[Row]:
    """Surfaces of the data on calendar days; a surface that is new or gone is low on the days without it."""
    return cleaned.rows(
        "WITH days AS (SELECT event_time::DATE AS day, surface, count(*) AS n FROM kept GROUP BY ALL), "
        f"cells AS (FROM ({CALENDAR}), (SELECT DISTINCT surface FROM days WHERE surface IS NOT NULL)) "
        "SELECT strftime(day, '%Y-%m-%d') AS day, surface, coalesce(n, 0) AS events "
        f"FROM cells LEFT JOIN days USING (day, surface) WHERE coalesce(n, 0) < {least} ORDER BY 1, 2"
    )


def _low_volume(name: str, column: str, setting: str, low: list[Row], limits: ValidationConfig) -> Check:
    return Check(
        name=name,
        table="events",
        column=column,
        severity="warning",
        observed=len(low),
        maximum=0,
        setting=f"validation.{setting}",
        count=len(low),
        rule="keep",
        sample=low[: limits.sample_rows],
    )


def _null_rates(cleaned: Cleaned, limits: dict[str, float]) -> Iterator[Check]:
    """One check for each column with a limit; ``UserError`` for a column that the tables lack."""
    readers = {r.table.name: r for r in (cleaned.tables.events, cleaned.tables.items, cleaned.tables.users) if r}
    for name, maximum in limits.items():
        table, _, column = name.partition(".")
        if table not in readers or column not in readers[table].schema.names:
            known = ", ".join(f"{t}.{c}" for t, reader in readers.items() for c in reader.schema.names)
            raise UserError(f"validation.max_null_rates: expected one of {known}, found {name!r}")
        yield _null_rate(cleaned, readers[table], column, maximum)


def _null_rate(cleaned: Cleaned, reader: TableReader, column: str, maximum: float) -> Check:
    table = reader.table.name
    source, name = "kept" if table == "events" else table, quoted(column)
    is_float = pa.types.is_floating(reader.schema.field(column).type)
    present = f"count(*) FILTER (NOT isnan({name}))" if is_float else f"count({name})"  # NaN is as missing as null
    found = cleaned.rows(f"SELECT count(*) AS rows, {present} AS present FROM {source}")[0]
    missing = found["rows"] - found["present"]
    return Check(
        name="null_rate",
        table=table,
        column=column,
        severity="warning",
        observed=missing / max(found["rows"], 1),
        maximum=maximum,
        setting="validation.max_null_rates",
        count=missing,
        rule="keep",
    )


def _late_reports(cleaned: Cleaned, config: PipelineConfig) -> Check:
    """The share of conversions that took longer than ``max_report_delay_days`` to become known."""
    limits = config.validation
    late = f"reported_time - event_time > to_microseconds({round(limits.max_report_delay_days * 86_400_000_000)})"
    found = cleaned.rows(
        f"SELECT count(*) AS rows, count(*) FILTER ({late}) AS late FROM kept WHERE event_type IN ({CONVERSION_TYPES})"
    )[0]
    return Check(
        name="late_report",
        table="events",
        column="reported_time",
        severity="warning",
        observed=found["late"] / max(found["rows"], 1),
        maximum=limits.max_late_report_rate,
        setting="validation.max_late_report_rate",
        count=found["late"],
        rule="keep",
    )
