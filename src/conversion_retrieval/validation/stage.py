"""The ``validate_data`` stage: read, clean, check, report, and write the snapshot if nothing stops it."""

import json
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.contracts import check_output, new_artifact, write_bytes, write_json
from conversion_retrieval.errors import TableError
from conversion_retrieval.progress import say
from conversion_retrieval.storage import NotFoundError, StorageUnavailableError, open_store
from conversion_retrieval.tables import read_tables
from conversion_retrieval.validation import checks, page, profile, suites
from conversion_retrieval.validation.cleaning import Cleaned, clean, open_database
from conversion_retrieval.validation.config import ValidationConfig
from conversion_retrieval.validation.measurement import Check
from conversion_retrieval.validation.snapshot import write_snapshot

PROFILE: Final = "profile.json"
PAGE: Final = "validation.html"
Report = dict[str, Any]


def validate_data(
    *,
    data_uri: str,
    snapshot_dir: Path,
    report_dir: Path,
    page_path: Path,
    config: PipelineConfig,
    champion_uri: str = "",
) -> str:
    """Check the tables at ``data_uri``; returns ``"valid"`` or ``"invalid"``.

    Writes the report artifact and the page in both cases, the snapshot only when valid. Drift is measured against the
    profile of the champion in the registry ``champion_uri``, where both exist. Raises ``UserError`` for a bad suite
    file, ``StorageUnavailableError`` where the data cannot be reached.
    """
    return _validate(data_uri, snapshot_dir, report_dir, page_path, config, champion_uri)


def validate_directory(data_uri: str | Path, report_dir: Path, config: PipelineConfig) -> str:
    """Check tables without making a snapshot; ``report_dir`` gets the report artifact, the page inside it."""
    return _validate(str(data_uri), None, report_dir, None, config, "")


def _validate(
    data_uri: str,
    snapshot_dir: Path | None,
    report_dir: Path,
    page_path: Path | None,
    config: PipelineConfig,
    champion_uri: str,
) -> str:
    own = suites.load_own(config.validation.suite_path)
    check_output(report_dir, kind="report")  # before minutes of checks
    # Beside the report, where there is room for data; ``/tmp`` may be memory.
    with tempfile.TemporaryDirectory(prefix="validation-", dir=report_dir.parent) as working_dir:
        try:
            tables = read_tables(data_uri, download_dir=Path(working_dir))
            with open_database(Path(working_dir), memory_mb=config.validation.memory_mb) as database:
                cleaned = clean(database, tables, latest=_latest(config))
                report, found = _report(cleaned, config, own, champion_uri)
                if report["verdict"] == "valid" and snapshot_dir is not None:
                    with new_artifact(
                        snapshot_dir, kind="snapshot", metadata={"counts": report["counts"]}
                    ) as directory:
                        write_snapshot(cleaned, directory, rows_per_part=config.validation.rows_per_part)
                        write_json(directory / PROFILE, found)
        except TableError as error:
            report, found = _unreadable(error), {}
    _write_report(report, found, report_dir, page_path)
    say(f"validation: {report['verdict']}: {report['reason']}")
    return str(report["verdict"])


def _latest(config: PipelineConfig) -> datetime:
    """Events after this are future-dated: the run's ``as_of`` where given, else now, plus the tolerance."""
    now = datetime.fromisoformat(config.split.as_of) if config.split.as_of else datetime.now(UTC)
    now = now if now.tzinfo else now.replace(tzinfo=UTC)
    return now.astimezone(UTC) + timedelta(days=config.validation.max_future_days)


def _report(
    cleaned: Cleaned, config: PipelineConfig, own: list[suites.OwnExpectation], champion_uri: str
) -> tuple[Report, profile.Profile]:
    measured = checks.all_checks(cleaned, config)
    found = profile.make_profile(cleaned)
    version, reference, reason = champion_profile(champion_uri)
    drifts = profile.drift(found, reference)
    changed = profile.changed_kinds(found, reference)
    measured += [_drift_check(name, value, changed.get(name, ""), config.validation) for name, value in drifts.items()]
    expectations = suites.judge(measured) + suites.judge_keys(cleaned)
    expectations += suites.judge_own(cleaned, own, max_rows=config.validation.max_suite_rows)
    failed = [entry for entry in expectations if not entry["success"]]
    errors = [entry for entry in failed if entry["severity"] == "error"]
    return {
        "verdict": "invalid" if errors else "valid",
        "reason": _reason(errors, failed),
        "expectations": expectations,
        "counts": {f"{check.table}.{check.name}": check.count for check in measured if check.count},
        "drift": drifts,
        "champion": version,
        "champion_status": reason,
        "facts": checks.description(cleaned),
    }, found


def _drift_check(name: str, value: float, meaning: str, limits: ValidationConfig) -> Check:
    table, _, column = name.partition(".")
    return Check(
        name="drift",
        table=table,
        column=column,
        severity=limits.drift_severity,
        observed=value,
        maximum=limits.max_drift_psi,
        setting="validation.max_drift_psi",
        count=0,
        rule="stop" if limits.drift_severity == "error" else "keep",
        meaning=meaning,
    )


def _reason(errors: list[dict[str, Any]], failed: list[dict[str, Any]]) -> str:
    if not errors:
        warnings = ", ".join(f"{entry['table']} {entry['name']}" for entry in failed)
        return f"every check passed but {warnings}" if failed else "every check passed"
    first = errors[0]
    limit = first["maximum"] if first["maximum"] is not None else first["minimum"]
    expected = f"the limit is {limit:g}" if limit is not None else f"expected {first['arguments']}"
    setting = f" ({first['setting']})" if first["setting"] else ""
    meaning = f" {first['meaning']}" if first["meaning"] else ""
    more = f"; and {_counted(len(errors) - 1, 'more error')}" if len(errors) > 1 else ""
    observed = f"{first['observed']:.4g}" if isinstance(first["observed"], float) else first["observed"]
    where = " ".join(filter(None, (first["table"], first["name"], first["column"])))
    return f"{where}: {observed}, {expected}{setting}, {_counted(first['count'], 'row')}{meaning}{more}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _unreadable(error: TableError) -> Report:
    """The report on tables that cannot be read: one failed expectation with the message."""
    entry: dict[str, Any] = {
        "name": "readable_with_the_canonical_columns",
        "table": "all",
        "column": "",
        "severity": "error",
        "observed": str(error),
        "maximum": None,
        "minimum": None,
        "count": error.files,
        "rule": "stop",
        "sample": [],
        "setting": "",
        "meaning": "",
        "success": False,
        "arguments": {},
    }
    return {
        "verdict": "invalid",
        "reason": str(error),
        "expectations": [entry],
        "counts": {"all.readable_with_the_canonical_columns": error.files},
        "drift": {},
        "champion": "",
        "champion_status": "not compared",
        "facts": None,
    }


def _write_report(report: Report, found: profile.Profile, report_dir: Path, page_path: Path | None) -> None:
    html = page.render(report).encode()
    with new_artifact(report_dir, kind="report", metadata={"verdict": report["verdict"]}) as directory:
        write_json(directory / "validation.json", report)
        write_json(directory / PROFILE, found)
        write_bytes(directory / PAGE, html)
    if page_path is not None:
        page_path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(page_path, html)


def champion_profile(champion_uri: str) -> tuple[str, Mapping[str, Any], str]:
    """Version and data profile of a registry's champion, and what was found; empty where there is none to read."""
    if not champion_uri:
        return "", {}, "no registry given"
    try:
        store = open_store(champion_uri)
        version = str(json.loads(store.read("champion.json").content)["version"])
        content = json.loads(store.read(f"versions/{version}/{PROFILE}").content)
    except (NotFoundError, StorageUnavailableError) as error:
        return "", {}, str(error)  # the gate decides what an absent champion means; drift is a warning
    except (ValueError, KeyError, TypeError) as error:
        return "", {}, f"expected a readable champion and profile in {champion_uri}, found: {error}"
    return version, content if isinstance(content, dict) else {}, "compared"
