"""What is measured of the tables, each against its limit: built from counts, judged by Great Expectations."""

from collections.abc import Iterator
from typing import Any, Final

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.tables import TableReader
from conversion_retrieval.validation.cleaning import DROP_RULES, REPAIRS, Cleaned, place_columns, quoted
from conversion_retrieval.validation.config import ValidationConfig
from conversion_retrieval.validation.measurement import Check, Row
from conversion_retrieval.validation.volume import CONVERSION_TYPES, volume_checks

SAMPLE_COLUMNS: Final = "file, row, event_id, user_id, item_id, event_type, event_time"
COLUMN_OF: Final = {
    "unknown_event_type": "event_type",
    "unreadable_event_time": "event_time",
    "future_dated": "event_time",
    "orphan_item": "item_id",
    "exact_duplicate": "event_id",
    "conflicting_duplicate": "event_id",
    "bad_click_duration": "click_duration_seconds",
    "click_duration_elsewhere": "click_duration_seconds",
    "bad_value": "value",
    "reported_before_event": "reported_time",
    "unreadable_reported_time": "reported_time",
    "bad_context_embedding": "context_embedding",
}

UNREADABLE: Final = {
    "unreadable_event_time": "before the year 1",
    "unreadable_reported_time": "outside the years 1 to 9999",
}


def all_checks(cleaned: Cleaned, config: PipelineConfig) -> list[Check]:
    """Every built-in check of the three tables, drift excepted."""
    checks = [
        *_event_rules(cleaned, config),
        _time_order(cleaned, config.validation.sample_rows),
        *volume_checks(cleaned, config),
        _lengths(cleaned, cleaned.tables.events, "context_embedding", config.validation.sample_rows),
        *_conversion_checks(cleaned, config),
    ]
    for reader in (cleaned.tables.items, cleaned.tables.users):
        if reader is not None:
            checks += _entity_checks(cleaned, reader, config)
    return [*checks, *_reference_checks(cleaned)]


def _event_rules(cleaned: Cleaned, config: PipelineConfig) -> Iterator[Check]:
    limits = config.validation
    total = max(cleaned.value("SELECT count(*) FROM events"), 1)
    dropped = {
        row["drop_rule"]: row["n"] for row in cleaned.rows("SELECT drop_rule, count(*) AS n FROM events GROUP BY 1")
    }
    for rule in DROP_RULES:
        count = dropped.get(rule, 0)
        kind = "duplicate" if "duplicate" in rule else "orphan" if rule == "orphan_item" else "invalid"
        yield Check(
            name=rule,
            table="events",
            column=COLUMN_OF.get(rule, rule.removeprefix("null_")),
            severity="error",
            observed=count / total,
            **_rate_limit(limits, f"max_{kind}_rate"),
            count=count,
            rule="drop",
            sample=_sample(cleaned, f"drop_rule = '{rule}'", limits.sample_rows) if count else [],
            meaning=_future(cleaned, config) if rule == "future_dated" else UNREADABLE.get(rule, ""),
        )
    bits = ", ".join(f"sum((repairs & {1 << n} > 0)::INT) AS {rule}" for n, rule in enumerate(REPAIRS))
    repaired = cleaned.rows(f"SELECT {bits} FROM events")[0]
    for number, rule in enumerate(REPAIRS):
        count = int(repaired[rule] or 0)
        yield Check(
            name=rule,
            table="events",
            column=COLUMN_OF[rule],
            severity="error",
            observed=count / total,
            **_rate_limit(limits, "max_invalid_rate"),
            count=count,
            rule="set to null",
            sample=_sample(cleaned, f"repairs & {1 << number} > 0", limits.sample_rows) if count else [],
            meaning=UNREADABLE.get(rule, ""),
        )
    kept = cleaned.value("SELECT count(*) FROM kept")
    yield Check(
        name="events_kept",
        table="events",
        column="",
        severity="error",
        observed=kept,
        minimum=1,
        count=0,
        rule="stop",
    )


def _rate_limit(limits: ValidationConfig, name: str) -> dict[str, Any]:
    """The ``maximum`` of a check and the ``setting`` that it comes from."""
    return {"maximum": getattr(limits, name), "setting": f"validation.{name}"}


def _future(cleaned: Cleaned, config: PipelineConfig) -> str:
    """After what moment an event is one of the future."""
    origin = "split.as_of" if config.split.as_of else "now"
    days = config.validation.max_future_days
    return f"after {cleaned.latest:%Y-%m-%d %H:%M} UTC, {origin} plus validation.max_future_days={days:g}"


def _time_order(cleaned: Cleaned, sample_rows: int) -> Check:
    """Rows in another order than that of time: they are kept, and nothing depends on it."""
    numbers = {file: number for number, file in enumerate(cleaned.tables.events.files)}
    places = [(numbers[file], row) for file, row in cleaned.time_order.places[:sample_rows]]
    return Check(
        name="reordered",
        table="events",
        column="event_time",
        severity="warning",
        observed=cleaned.time_order.count / max(cleaned.value("SELECT count(*) FROM events"), 1),
        maximum=1.0,
        count=cleaned.time_order.count,
        rule="keep",
        sample=_sample(cleaned, f"(file, row) IN ({', '.join(map(str, places))})", sample_rows) if places else [],
    )


def _lengths(cleaned: Cleaned, reader: TableReader, column: str, sample_rows: int) -> Check:
    """How many lengths the kept vectors of a column have; the rows are those without the most frequent one."""
    size, key = f"len({quoted(column)})", reader.table.key
    kept, located = ("kept", "kept") if key == "event_id" else (reader.table.name, f"raw_{reader.table.name}")
    lengths = cleaned.rows(f"SELECT {size} AS size, count(*) AS n FROM {kept} WHERE {size} IS NOT NULL GROUP BY 1")
    usual = max(lengths, key=lambda row: (row["n"], row["size"]), default={"size": 0, "n": 0})
    sample = (
        f"SELECT {_place(reader)}, {key}, {size} AS length FROM {located} WHERE {size} <> {usual['size']} "
        f"AND {key} IN (SELECT {key} FROM {kept}) ORDER BY ALL LIMIT {sample_rows}"
    )
    return Check(
        name=f"{column}_lengths",
        table=reader.table.name,
        column=column,
        severity="error",
        observed=len(lengths),
        maximum=1,
        count=sum(row["n"] for row in lengths) - usual["n"],
        rule="stop",
        sample=_located(cleaned.rows(sample), reader) if len(lengths) > 1 else [],
    )


def conversion_tables(cleaned: Cleaned, level: str) -> None:
    """Make ``paired``: each kept conversion with the last click and impression before it and its first click at all."""
    owner = "item_id" if level == "item" else "advertiser_id"
    # Of the items only what is asked for: their other columns may be called as those of the events.
    source = "kept" if level == "item" else "kept JOIN (SELECT item_id, advertiser_id FROM items) USING (item_id)"
    cleaned.database.execute(
        f"""
        CREATE TEMP TABLE conversions AS SELECT {SAMPLE_COLUMNS}, {owner} AS owner FROM {source}
        WHERE event_type IN ({CONVERSION_TYPES});
        CREATE TEMP TABLE touches AS SELECT user_id, {owner} AS owner, event_type, event_time FROM {source}
        WHERE event_type IN ('click', 'impression')
        AND (user_id, {owner}) IN (SELECT (user_id, owner) FROM conversions);
        CREATE TEMP TABLE paired AS
        SELECT c.*, k.event_time AS click_time, v.event_time AS view_time, f.first_click
        FROM conversions c
        ASOF LEFT JOIN (SELECT * FROM touches WHERE event_type = 'click') k
        ON c.user_id = k.user_id AND c.owner = k.owner AND c.event_time >= k.event_time
        ASOF LEFT JOIN (SELECT * FROM touches WHERE event_type = 'impression') v
        ON c.user_id = v.user_id AND c.owner = v.owner AND c.event_time >= v.event_time
        LEFT JOIN (
            SELECT user_id, owner, min(event_time) AS first_click FROM touches WHERE event_type = 'click' GROUP BY ALL
        ) f ON c.user_id = f.user_id AND c.owner = f.owner
        """
    )


def _conversion_checks(cleaned: Cleaned, config: PipelineConfig) -> Iterator[Check]:
    conversion_tables(cleaned, config.labels.attribution_level)
    total = max(cleaned.value("SELECT count(*) FROM paired"), 1)
    limits = config.validation
    within = "coalesce(event_time - {} <= to_microseconds({}), false)"
    clicked = within.format("click_time", _microseconds(config.labels.click_window_days))
    viewed = within.format("view_time", _microseconds(config.labels.view_window_days))
    unattributable = f"NOT ({clicked} OR {viewed})"
    before = "click_time IS NULL AND first_click IS NOT NULL"
    for name, condition, limit in (
        ("unattributable_conversion", unattributable, "max_unattributable_rate"),
        ("conversion_before_its_click", before, "max_invalid_rate"),
    ):
        count = cleaned.value(f"SELECT count(*) FROM paired WHERE {condition}")
        sample = f"SELECT {SAMPLE_COLUMNS} FROM paired WHERE {condition} ORDER BY file, row LIMIT {limits.sample_rows}"
        yield Check(
            name=name,
            table="events",
            column="event_time",
            severity="error" if name.startswith("unattributable") else "warning",
            observed=count / total,
            **_rate_limit(limits, limit),
            count=count,
            rule="keep",
            sample=_located(cleaned.rows(sample), cleaned.tables.events) if count else [],
        )


def _microseconds(days: float) -> int:
    return int(days * 86_400_000_000)


def _entity_checks(cleaned: Cleaned, reader: TableReader, config: PipelineConfig) -> Iterator[Check]:
    name, key, place = reader.table.name, reader.table.key, _place(reader)
    columns = ", ".join(map(quoted, reader.schema.names))
    required = [column.name for column in reader.table.columns]
    total = max(cleaned.value(f"SELECT count(*) FROM raw_{name}"), 1)
    conditions = {f"null_{column}": (column, f"{column} IS NULL") for column in required}
    distinct = f"SELECT count(*) FROM (SELECT DISTINCT {columns} FROM raw_{name} WHERE {key} IS NOT NULL)"
    present = cleaned.value(f"SELECT count(*) FROM raw_{name} WHERE {key} IS NOT NULL")
    keys = cleaned.value(f"SELECT count(DISTINCT {key}) FROM raw_{name}")
    contents = cleaned.value(distinct)
    invalid = _rate_limit(config.validation, "max_invalid_rate")
    for rule, (column, condition) in conditions.items():
        count = cleaned.value(f"SELECT count(*) FROM raw_{name} WHERE {condition}")
        sample = cleaned.rows(f"SELECT {place}, {key} FROM raw_{name} WHERE {condition} ORDER BY ALL LIMIT 20")
        yield _entity_check(rule, name, column, count, total, invalid, sample, reader)
    repeated = f"SELECT {place}, {key} FROM raw_{name} WHERE {key} IN (SELECT {key} FROM raw_{name} GROUP BY 1 {{}}) "
    for rule, count, having in (
        ("exact_duplicate", present - contents, "HAVING count(*) > 1"),
        ("conflicting_duplicate", contents - keys, "HAVING count(*) > 1"),
    ):
        sample = cleaned.rows(repeated.format(having) + "ORDER BY ALL LIMIT 20") if count else []
        duplicate = _rate_limit(config.validation, "max_duplicate_rate")
        yield _entity_check(rule, name, key, count, total, duplicate, sample, reader)
    if name == "items":
        having = "HAVING count(DISTINCT advertiser_id) > 1"
        count = cleaned.value(f"SELECT count(*) FROM (SELECT item_id FROM raw_items GROUP BY 1 {having})")
        sample = cleaned.rows(repeated.format(having) + "ORDER BY ALL LIMIT 20") if count else []
        yield _entity_check("advertiser_changes", name, "advertiser_id", count, total, invalid, sample, reader)
    for column in reader.schema:
        if str(column.type).startswith("list"):
            yield _lengths(cleaned, reader, column.name, config.validation.sample_rows)


def _entity_check(
    rule: str,
    table: str,
    column: str,
    count: int,
    total: int,
    limit: dict[str, Any],
    sample: list[Row],
    reader: TableReader,
) -> Check:
    return Check(
        name=rule,
        table=table,
        column=column,
        severity="error",
        observed=count / total,
        **limit,
        count=count,
        rule="drop",
        sample=_located(sample, reader),
    )


def _reference_checks(cleaned: Cleaned) -> Iterator[Check]:
    total = max(cleaned.value("SELECT count(*) FROM kept"), 1)
    references = [("orphan_context_item", "context_item_id", "items", "item_id")]
    if cleaned.tables.users is not None:
        references.append(("orphan_user", "user_id", "users", "user_id"))
    for name, column, table, key in references:
        count = cleaned.value(
            f"SELECT count(*) FROM kept WHERE {column} IS NOT NULL AND {column} NOT IN (SELECT {key} FROM {table})"
        )
        yield Check(
            name=name,
            table="events",
            column=column,
            severity="warning",
            observed=count / total,
            maximum=0.5,
            count=count,
            rule="keep",
        )


def _sample(cleaned: Cleaned, condition: str, size: int) -> list[Row]:
    rows = f"SELECT {SAMPLE_COLUMNS} FROM events WHERE {condition} ORDER BY file, row LIMIT {size}"
    # As text: not every bad time can be fetched as a time.
    query = f"SELECT * REPLACE (event_time::VARCHAR AS event_time) FROM ({rows}) ORDER BY file, row"
    return _located(cleaned.rows(query), cleaned.tables.events)


def _place(reader: TableReader) -> str:
    file, row = map(quoted, place_columns(reader))
    return f"{file} AS file, {row} AS row"


def _located(rows: list[Row], reader: TableReader) -> list[Row]:
    """Rows with their file's name, and JSON values."""
    return [
        {key: reader.files[value].name if key == "file" else _plain(value) for key, value in row.items()}
        for row in rows
    ]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else str(value)


def description(cleaned: Cleaned) -> dict[str, Any]:
    """Facts for the report that no limit judges: sizes, null rates, volumes, delays."""
    columns = [column.name for column in cleaned.tables.events.table.columns if column.nullable]
    nulls = ", ".join(f"avg(({name} IS NULL)::INT) AS {name}" for name in columns)
    quantiles = "[0.01, 0.1, 0.5, 0.9, 0.99]"
    delays = (
        f"SELECT quantile_cont(epoch(reported_time - event_time), {quantiles}) AS reporting_delay_seconds FROM kept "
        f"WHERE event_type IN ({CONVERSION_TYPES})"
    )
    clicks = (
        f"SELECT quantile_cont(epoch(event_time - click_time), {quantiles}) AS click_to_conversion_seconds FROM paired"
    )
    volume = (
        "SELECT strftime(day, '%Y-%m-%d') AS day, coalesce(surface, '(none)') AS surface, events FROM "
        "(SELECT event_time::DATE AS day, surface, count(*) AS events FROM kept GROUP BY ALL) ORDER BY 1, 2"
    )
    return {
        "events": cleaned.value("SELECT count(*) FROM events"),
        "kept": cleaned.value("SELECT count(*) FROM kept"),
        "items": cleaned.value("SELECT count(*) FROM items"),
        "users": cleaned.value("SELECT count(DISTINCT user_id) FROM kept"),
        "event_types": cleaned.rows("SELECT event_type, count(*) AS events FROM kept GROUP BY 1 ORDER BY 1"),
        "null_rates": cleaned.rows(f"SELECT {nulls} FROM kept")[0],
        "entity_null_rates": _entity_null_rates(cleaned),
        "quantiles": [0.01, 0.1, 0.5, 0.9, 0.99],
        **cleaned.rows(delays)[0],
        **cleaned.rows(clicks)[0],
        "volume": cleaned.rows(volume),
    }


def _entity_null_rates(cleaned: Cleaned) -> dict[str, float]:
    rates: dict[str, float] = {}
    for reader in (cleaned.tables.items, cleaned.tables.users):
        names = [name for name in reader.schema.names if name != reader.table.key] if reader else []
        if reader and names:
            selected = ", ".join(f"avg(({quoted(name)} IS NULL)::INT) AS {quoted(name)}" for name in names)
            found = cleaned.rows(f"SELECT {selected} FROM {reader.table.name}")[0]
            rates |= {f"{reader.table.name}.{name}": rate for name, rate in found.items()}
    return rates
