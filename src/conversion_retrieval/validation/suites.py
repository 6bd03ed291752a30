"""Great Expectations suites: the built-in checks and a user's own file, validated in an in-memory context.

Built-in checks over all events are counted by the database first, and their suite judges the counts: one row, one
column a check. Suites of items and users, and a user's own, see the rows themselves.
"""

import difflib
import functools
import importlib
import logging
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import yaml

from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.schema import TABLES
from conversion_retrieval.validation.cleaning import Cleaned, quoted
from conversion_retrieval.validation.measurement import Check

SEVERITIES: Final = {"error": "critical", "warning": "warning"}


@dataclass(frozen=True, kw_only=True)
class OwnExpectation:
    """One entry of a user's suite file."""

    table: str
    name: str
    severity: str
    arguments: Mapping[str, Any]
    expectation: Any

    @property
    def columns(self) -> list[str]:
        """The columns that the expectation looks at."""
        values = [value for key, value in self.arguments.items() if key.startswith("column")]
        return list(dict.fromkeys(name for value in values for name in (value if isinstance(value, list) else [value])))


def judge(checks: list[Check]) -> list[dict[str, Any]]:
    """Every check with its verdict, by a generated suite per table over the measured numbers."""
    gxe = _gallery()

    results = []
    for table in dict.fromkeys(check.table for check in checks):
        own = [check for check in checks if check.table == table]
        names = [f"{check.name}:{check.column}" for check in own]
        frame = pd.DataFrame([{name: float(check.observed) for name, check in zip(names, own, strict=True)}])
        expectations = [
            gxe.ExpectColumnMaxToBeBetween(
                column=name, min_value=check.minimum, max_value=check.maximum, severity=SEVERITIES[check.severity]
            )
            for name, check in zip(names, own, strict=True)
        ]
        verdicts = _validate(frame, f"{table} measurements", expectations)
        results += [
            asdict(check) | {"success": verdict["success"], "arguments": {}}
            for check, verdict in zip(own, verdicts, strict=True)
        ]
    return results


def judge_keys(cleaned: Cleaned) -> list[dict[str, Any]]:
    """The contract that later stages rely on, on the rows of items and users: keys present, unique, of type string."""
    gxe = _gallery()

    results = []
    for reader in (cleaned.tables.items, cleaned.tables.users):
        if reader is None:
            continue
        table = reader.table
        names = [column.name for column in table.columns]
        expectations = [gxe.ExpectColumnValuesToNotBeNull(column=name) for name in names]
        expectations += [gxe.ExpectColumnValuesToBeOfType(column=name, type_="str") for name in names]
        expectations.append(gxe.ExpectColumnValuesToBeUnique(column=table.key))
        frame = cleaned.database.sql(f"SELECT {', '.join(names)} FROM {table.name}").df()
        for expectation, verdict in zip(expectations, _validate(frame, table.name, expectations), strict=True):
            results.append(_result(table.name, expectation.column, expectation.expectation_type, "error", {}, verdict))
    return results


def judge_own(cleaned: Cleaned, own: list[OwnExpectation], *, max_rows: int) -> list[dict[str, Any]]:
    """A user's expectations on the cleaned rows, each on its columns only; events beyond ``max_rows`` are sampled."""
    results = []
    for entry in own:
        frame = _own_frame(cleaned, entry, max_rows)
        (verdict,) = _validate(frame, entry.table, [entry.expectation])
        column = ", ".join(entry.columns)
        results.append(_result(entry.table, column, entry.name, entry.severity, dict(entry.arguments), verdict))
    return results


def _own_frame(cleaned: Cleaned, entry: OwnExpectation, max_rows: int) -> pd.DataFrame:
    source = "kept" if entry.table == "events" else entry.table
    reader = {
        table.table.name: table
        for table in (cleaned.tables.events, cleaned.tables.items, cleaned.tables.users)
        if table
    }
    if entry.table not in reader:
        raise UserError(f"expected a {entry.table} table for {entry.name} of the suite file, found none in the data")
    names = reader[entry.table].schema.names
    for column in entry.columns:
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"columns: {', '.join(names)}"
            raise UserError(f"expected a column of {entry.table} in {entry.name}, found {column}; {hint}")
    columns = ", ".join(map(quoted, entry.columns or names[:1]))
    # By a hash of the key: the same rows whatever the order they came in.
    key = reader[entry.table].table.key
    query = f"SELECT {columns} FROM {source} ORDER BY hash({key}) LIMIT {max_rows}"
    return pd.DataFrame(cleaned.database.sql(query).df())


def _result(
    table: str, column: str, name: str, severity: str, arguments: dict[str, Any], verdict: Mapping[str, Any]
) -> dict[str, Any]:
    result = verdict["result"]
    observed = result.get("observed_value", result.get("unexpected_percent", 0.0) or 0.0)
    return {
        "name": name,
        "table": table,
        "column": column,
        "severity": severity,
        "observed": _plain(observed),
        "maximum": None,
        "minimum": None,
        "count": int(result.get("unexpected_count") or 0),
        "rule": "stop" if severity == "error" else "keep",
        "sample": [{"value": str(_plain(value))} for value in result.get("partial_unexpected_list") or []],
        "setting": "",
        "meaning": "",
        "success": verdict["success"],
        "arguments": arguments,
    }


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and value != value:
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _gallery() -> Any:
    """The module of expectation classes; imported late, for it takes seconds."""
    return importlib.import_module("great_expectations.expectations")


def _validate(frame: pd.DataFrame, name: str, expectations: list[Any]) -> list[dict[str, Any]]:
    """Results in the order of ``expectations``."""
    gx: Any = importlib.import_module("great_expectations")
    asset = _data_source().add_dataframe_asset(f"{name} {uuid.uuid4().hex}")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    for position, expectation in enumerate(expectations):
        expectation.meta = {"position": position}
    suite = gx.ExpectationSuite(name=name, expectations=expectations)
    found = [result.to_json_dict() for result in batch.validate(suite, result_format="BASIC").results]
    for result in found:
        info = result.get("exception_info") or {}
        if info.get("raised_exception", any(isinstance(v, dict) and v.get("raised_exception") for v in info.values())):
            kind = result["expectation_config"]["type"]
            raise UserError(f"expected {kind} to run on {name}, found: {_first_line(info)}")
    found.sort(key=lambda result: result["expectation_config"]["meta"]["position"])
    return [{"success": bool(result["success"]), "result": result.get("result") or {}} for result in found]


@functools.cache
def _data_source() -> Any:
    """The pandas source of an in-memory context that reports nothing to anyone and draws no bars."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    gx: Any = importlib.import_module("great_expectations")
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    return context.data_sources.add_pandas("frames")


def _first_line(info: Mapping[str, Any]) -> str:
    causes = [info, *(value for value in info.values() if isinstance(value, dict))]
    message = next((str(cause["exception_message"]) for cause in causes if cause.get("exception_message")), "an error")
    return message.strip().splitlines()[0]


def load_own(path: str) -> list[OwnExpectation]:
    """A user's suite file: ``{table: [{expectation, severity, <its arguments>}]}`` in YAML; none for an empty path.

    Raises ``UserError`` for an unreadable file, an unknown table or expectation (naming the nearest), a wrong argument.
    """
    if not path:
        return []
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"expected a YAML suite file at {path}, found: {one_line(error)}") from None
    if not isinstance(content, dict) or not all(isinstance(entries, list) for entries in content.values()):
        raise UserError(f"expected a mapping from tables to lists of expectations at {path}")
    return [_own(table, entry, path) for table, entries in content.items() for entry in entries]


def _own(table: str, entry: Any, path: str) -> OwnExpectation:
    tables = [known.name for known in TABLES]
    if table not in tables:
        raise UserError(f"expected one of {', '.join(tables)} as a table in {path}, found {table!r}")
    if not isinstance(entry, dict) or not isinstance(entry.get("expectation"), str):
        raise UserError(f"expected entries with the key expectation under {table} in {path}, found {entry!r}")
    arguments = {key: value for key, value in entry.items() if key not in ("expectation", "severity")}
    severity = entry.get("severity", "error")
    if severity not in SEVERITIES:
        raise UserError(f"expected severity error or warning for {entry['expectation']} in {path}, found {severity!r}")
    return OwnExpectation(
        table=table,
        name=entry["expectation"],
        severity=severity,
        arguments=arguments,
        expectation=_make(entry["expectation"], arguments, severity, path),
    )


def _make(name: str, arguments: Mapping[str, Any], severity: str, path: str) -> Any:
    gxe = _gallery()

    known = {_snake(cls): cls for cls in dir(gxe) if cls.startswith("Expect") and cls != "Expectation"}
    wanted = _snake(name) if name[:1].isupper() else name
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "see the Great Expectations gallery"
        raise UserError(f"expected a Great Expectations class in {path}, found {name}; {hint}")
    try:
        return getattr(gxe, known[wanted])(**arguments, severity=SEVERITIES[severity])
    except (TypeError, ValueError) as error:
        raise UserError(f"expected valid arguments of {name} in {path}, found: {one_line(error)}") from None


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
