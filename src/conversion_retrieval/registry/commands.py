"""What the command line prints about a registry."""

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from conversion_retrieval.command_line import output_width
from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.registry.bundle import DIGEST_CHARACTERS
from conversion_retrieval.registry.comparison import Difference, compare
from conversion_retrieval.registry.decision import Check
from conversion_retrieval.registry.pointer import Champion
from conversion_retrieval.registry.registry import PARTIAL_HOURS, Registry

CONSOLE: Final = Console(markup=False, highlight=False, soft_wrap=True, width=output_width())
# Told by metrics.json, and nearly the same as those that are printed.
LEFT_OUT: Final = tuple(f"{task}/recall_macro" for task in ("conversion", "checkout", "add_to_cart", "engagement"))
TOLD_DIFFERENCES: Final = (
    "conversion/recall@",
    "conversion/ndcg@",
    "conversion/mrr",
    "engagement/recall@",
    "catalogue/",
)
MARKS: Final = {True: "passed", False: "failed", None: "undecided"}


def show(registry_uri: str, version: str | None = None) -> None:
    """Print a version (the champion if none is named): why it was promoted, checks, main metrics, inputs."""
    registry = Registry.existing(registry_uri)
    shown = registry.show(_champion_version(registry.champion(), registry.uri) if version is None else version)
    CONSOLE.print(f"{shown.name} ({_role(registry, shown.name)})\n{shown.decision.reason}")
    checks = [_check_row(check) for check in shown.decision.checks]
    _print_table("checks", ("check", "result", "value", "threshold", "interval", "n"), checks)
    _print_metrics(shown.metrics)
    inputs = sorted(shown.manifest.inputs.items())
    _print_table("made of", ("artifact", "digest"), [(kind, digest[:DIGEST_CHARACTERS]) for kind, digest in inputs])


def history(registry_uri: str) -> None:
    """Print every promotion and rollback, oldest first: each replaced the one above."""
    registry = Registry.existing(registry_uri)
    entries = registry.history()
    if not entries:
        CONSOLE.print(f"nothing was ever promoted in {registry.uri}")
        return
    rows = [(str(e.generation), e.promoted_time[:19].replace("T", " "), e.action, e.version, e.reason) for e in entries]
    _print_table("history", ("#", "time (UTC)", "action", "version", "reason"), rows)
    CONSOLE.print(f"champion: {entries[-1].version}, before: {entries[-1].previous or 'none'}")


def rollback(registry_uri: str, version: str | None = None) -> None:
    """Serve an earlier version again and say what was replaced."""
    champion = Registry.existing(registry_uri).rollback(version)
    CONSOLE.print(f"champion is now {champion.version} (before: {champion.previous or 'none'})")


def diff(registry_uri: str, first: str, second: str) -> None:
    """Print what differs between two versions: metrics, configuration, and what they are made of."""
    registry = Registry.existing(registry_uri)
    differences = compare(registry.show(first), registry.show(second))
    CONSOLE.print(f"first:  {first}\nsecond: {second}")
    metrics = [d for d in differences if d.kind == "metric" and d.name.startswith(TOLD_DIFFERENCES)]
    _print_table("metrics", ("metric", "first", "second", "change"), [_metric_row(d) for d in metrics])
    others = [d for d in differences if d.kind not in ("metric", "file")]
    _print_table("settings and inputs", ("what", "first", "second"), [_difference_row(d) for d in others])
    files = [d.name for d in differences if d.kind == "file"]
    CONSOLE.print(f"{len(files)} files differ: {', '.join(files)}" if files else "no file differs")


def prune(registry_uri: str, keep: int, *, partial_hours: float = PARTIAL_HOURS) -> None:
    """Delete old versions and unfinished uploads, and name them."""
    registry = Registry.existing(registry_uri)
    deleted = registry.prune(keep, partial_hours=partial_hours)
    for version in deleted:
        CONSOLE.print(f"deleted {version}")
    CONSOLE.print(f"{len(deleted)} deleted, {len(registry.versions())} versions kept in {registry.uri}")


def _champion_version(champion: Champion | None, uri: str) -> str:
    if champion is None:
        raise UserError(f"expected a champion in {uri}, found none: promote a first one with allow_first")
    return champion.version


def _role(registry: Registry, version: str) -> str:
    """Of a named version also where the champion cannot be read: one to roll back to is looked at first."""
    try:
        champion = registry.champion()
    except CorruptArtifactError as error:
        return f"kept version of {registry.uri}, whose champion is not known: {error}"
    role = "champion" if champion is not None and champion.version == version else "kept version"
    return f"{role} of {registry.uri}"


def _check_row(check: Check) -> tuple[str, ...]:
    n = "-" if check.n is None else f"{check.n:,}"
    bounds = _interval(check.low, check.high)
    return check.name, MARKS[check.passed], _number(check.value), _number(check.threshold), bounds, n


def _print_metrics(metrics: Sequence[dict[str, Any]]) -> None:
    """Each metric in a row, its cut-offs in columns, the interval below the value."""
    rows: dict[str, dict[str, str]] = {}
    for metric in metrics:
        name, _, cut = metric["name"].partition("@")
        if metric["model"] == "candidate" and metric["slice"] == "all" and name not in LEFT_OUT:
            interval = _interval(metric["low"], metric["high"]).replace(" to ", "–")
            rows.setdefault(name, {})[f"@{cut}" if cut else "all"] = f"{_number(metric['value'])}\n{interval}"
    cuts = list(dict.fromkeys(cut for cells in rows.values() for cut in cells))
    table = [(name, *(cells.get(cut, "") for cut in cuts)) for name, cells in rows.items()]
    _print_table("metrics on all test queries, with their intervals", ("metric", *cuts), table)


def _print_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=column in ("version", "metric", "check"), overflow="fold")
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)


def _metric_row(difference: Difference) -> tuple[str, ...]:
    before, after = difference.before, difference.after
    change = f"{after - before:+.4f}" if isinstance(before, float) and isinstance(after, float) else "-"
    return difference.name, _text(before), _text(after), change


def _difference_row(difference: Difference) -> tuple[str, ...]:
    short = DIGEST_CHARACTERS if difference.kind == "artifact" else None
    what = f"{difference.kind} {difference.name}".strip()
    return what, _text(difference.before)[:short], _text(difference.after)[:short]


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _text(value: str | float | None) -> str:
    return value if isinstance(value, str) else _number(value)
