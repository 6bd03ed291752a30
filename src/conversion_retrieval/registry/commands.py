"""What the command line prints about a registry."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from conversion_retrieval.errors import UserError
from conversion_retrieval.registry.comparison import compare
from conversion_retrieval.registry.decision import Check
from conversion_retrieval.registry.registry import PARTIAL_HOURS, Registry

CONSOLE: Final = Console(markup=False, highlight=False, soft_wrap=True)
MARKS: Final = {True: "passed", False: "failed", None: "undecided"}


def show(registry_uri: str, version: str | None = None) -> None:
    """Print a version (the champion if none is named): inputs, main metrics, checks and the reason."""
    registry = Registry.open(registry_uri)
    shown = registry.show(version or _champion_version(registry))
    _print_table("inputs", ("artifact", "digest"), [(k, v[:12]) for k, v in sorted(shown.manifest.inputs.items())])
    rows = [row for row in shown.metrics if row["model"] == "candidate" and row["slice"] == "all"]
    cells = [(row["name"], _number(row["value"]), _number(row["low"]), _number(row["high"])) for row in rows]
    _print_table("metrics", ("metric", "value", "low", "high"), cells)
    _print_table("checks", ("check", "result", "value", "threshold"), [_check_row(c) for c in shown.decision.checks])
    CONSOLE.print(f"{shown.name}: {shown.decision.reason}")


def history(registry_uri: str) -> None:
    """Print every promotion and rollback, oldest first."""
    entries = Registry.open(registry_uri).history()
    rows = [(str(e.generation), e.promoted_time, e.action, e.version, e.previous or "-", e.reason) for e in entries]
    _print_table("history", ("#", "time", "action", "version", "before", "reason"), rows)


def rollback(registry_uri: str, version: str | None = None) -> None:
    """Serve an earlier version again and say what was replaced."""
    champion = Registry.open(registry_uri).rollback(version)
    CONSOLE.print(f"champion is now {champion.version} (before: {champion.previous or 'none'})")


def diff(registry_uri: str, first: str, second: str) -> None:
    """Print what differs between two versions."""
    registry = Registry.open(registry_uri)
    differences = compare(registry.show(first), registry.show(second))
    rows = [(d.what, _short(d.before), _short(d.after)) for d in differences]
    _print_table(f"{first} and {second}", ("what", first, second), rows)


def prune(registry_uri: str, keep: int, *, partial_hours: float = PARTIAL_HOURS) -> None:
    """Delete old versions and unfinished uploads, and name them."""
    registry = Registry.open(registry_uri)
    deleted = registry.prune(keep, partial_hours=partial_hours)
    for version in deleted:
        CONSOLE.print(f"deleted {version}")
    CONSOLE.print(f"{len(deleted)} deleted, {len(registry.versions())} versions kept in {registry.uri}")


def _champion_version(registry: Registry) -> str:
    champion = registry.champion()
    if champion is None:
        raise UserError(f"expected a champion in {registry.uri}, found none: promote a first one with allow_first")
    return champion.version


def _check_row(check: Check) -> tuple[str, ...]:
    return check.name, MARKS[check.passed], _number(check.value), _number(check.threshold)


def _print_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _short(value: str | float | None) -> str:
    return _number(value) if not isinstance(value, str) else value[:24]
