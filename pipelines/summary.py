"""What a person sees when a local run has ended: recall beside the baselines, the verdict and why, the report."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from conversion_retrieval.evaluation.results import Measurement, Results, label_of
from conversion_retrieval.registry.decision import Check, Decision, read_decision

INVALID: Final = "invalid"
KS: Final = (10, 100, 1000)
TABLES: Final = {
    "all": "Conversion recall, test window, whole catalogue",
    "new_to_user=true": "The same on items new to the user, ranked without those the user had",
}
MARKS: Final = {True: "passed", False: "FAILED", None: "undecided"}


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How a run ended; ``verdict`` is ``INVALID`` when the data stopped it before training."""

    run_dir: Path
    verdict: str
    reason: str
    report_path: Path


def summarize(run_dir: Path) -> RunSummary:
    """Read the verdict of a completed run from its artifacts, and give its report a name that browsers open."""
    decision_dir = run_dir / "gate" / "decision"
    decided = decision_dir.exists()
    page_path = run_dir / ("gate" if decided else "validate-data") / "page"
    report_path = run_dir / "report.html"
    shutil.copyfile(page_path, report_path)
    if decided:
        decision = read_decision(decision_dir)
        return RunSummary(run_dir=run_dir, verdict=decision.verdict, reason=decision.reason, report_path=report_path)
    report = json.loads((run_dir / "validate-data" / "report" / "validation.json").read_text())
    return RunSummary(run_dir=run_dir, verdict=INVALID, reason=report["reason"], report_path=report_path)


def show(summary: RunSummary, console: Console) -> None:
    """Print the recall table, the verdict with its reasons, and the report's path."""
    if summary.verdict != INVALID:
        results = Results.read(summary.run_dir / "evaluate" / "evaluation")
        for slice_, title in TABLES.items():
            console.print(recall_table(results, slice_=slice_, title=title))
        _show_decision(read_decision(summary.run_dir / "gate" / "decision"), console)
    console.print(f"report: {summary.report_path}", soft_wrap=True)


def recall_table(results: Results, *, slice_: str = "all", title: str = TABLES["all"]) -> Table:
    """Conversion recall of every model at 10, 100 and 1000 on one split and catalogue, with intervals and n."""
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for k in KS:
        table.add_column(f"recall@{k}", justify="right")
    table.add_column("n", justify="right")
    for model in results.models():
        found = [results.find(f"conversion/recall@{k}", model=model, slice_=slice_) for k in KS]
        counts = [m.n_positives for m in found if m]
        if counts:
            table.add_row(label_of(model), *(_cell(m) for m in found), f"{counts[0]:,}")
    return table


def _cell(measurement: Measurement | None) -> str:
    if measurement is None or measurement.value is None:
        return "-"
    if measurement.low is None or measurement.high is None:
        return f"{measurement.value:.4f}"
    return f"{measurement.value:.4f} [{measurement.low:.4f}, {measurement.high:.4f}]"


def _show_decision(decision: Decision, console: Console) -> None:
    console.print(f"verdict: {decision.verdict}", style="bold", markup=False)
    console.print(f"reason: {decision.reason}", markup=False, soft_wrap=True)
    for check in decision.checks:
        console.print(f"  {MARKS[check.passed]:9} {_check_line(check)}", markup=False, soft_wrap=True)


def _check_line(check: Check) -> str:
    if check.value is None or check.threshold is None:
        return f"{check.name}: {check.detail}"
    count = "" if check.n is None else f", n {check.n:,}"
    return f"{check.name}: {_number(check.value)}, threshold {_number(check.threshold)}{count}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4f}"
