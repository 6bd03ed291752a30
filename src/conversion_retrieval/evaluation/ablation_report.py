"""The ablation's table in Markdown and HTML, and its plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from conversion_retrieval import contracts
from conversion_retrieval.evaluation import plots
from conversion_retrieval.evaluation.crossed_bootstrap import Interval
from conversion_retrieval.evaluation.report_format import percent
from conversion_retrieval.evaluation.variants import DEFAULT, VARIANTS

if TYPE_CHECKING:
    from conversion_retrieval.evaluation.ablation import Comparison


def write_ablation(
    comparisons: "Sequence[Comparison]", *, directory: Path, page_path: Path, confidence_level: float
) -> None:
    """Write ``comparisons.json`` and ``ablation.md`` into ``directory`` and the HTML page to ``page_path``."""
    contracts.write_json(directory / "comparisons.json", [asdict(row) for row in comparisons])
    contracts.write_bytes(directory / "ablation.md", markdown_table(comparisons, confidence_level).encode())
    environment = Environment(
        loader=PackageLoader("conversion_retrieval", "evaluation/templates"), autoescape=True, undefined=StrictUndefined
    )
    ks = sorted({row.k for row in comparisons})
    context = {
        "title": "Ablation",
        "rows": _rows(comparisons, ks),
        "ks": ks,
        "caption": _caption(comparisons, confidence_level),
        "plots": [_plot(comparisons, k) for k in ks],
    }
    page_path.parent.mkdir(parents=True, exist_ok=True)
    contracts.write_bytes(page_path, environment.get_template("ablation.html.j2").render(context).encode())


def markdown_table(comparisons: "Sequence[Comparison]", confidence_level: float) -> str:
    """One row a variant: recall and difference to the default at each cut-off, with intervals; then their options."""
    ks = sorted({row.k for row in comparisons})
    head = ["variant"] + [text for k in ks for text in (f"recall@{k}", "difference to default")]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    rows = _rows(comparisons, ks)
    lines += ["| " + " | ".join([row["variant"], *map(_joined, row["cells"])]) + " |" for row in rows]
    options = [f"- {row['variant']}: `{'`, `'.join(row['options'])}`" for row in rows if row["options"]]
    return "\n".join([*lines, "", _caption(comparisons, confidence_level), "", *options, ""])


def _rows(comparisons: "Sequence[Comparison]", ks: Sequence[int]) -> list[dict[str, Any]]:
    found = {(row.variant, row.k): row for row in comparisons}
    variants = dict.fromkeys(row.variant for row in comparisons)
    return [
        {"variant": name, "options": _options(name), "cells": [c for k in ks for c in _cells(found[name, k])]}
        for name in variants
    ]


def _options(variant: str) -> list[str]:
    """What the variant sets, as ``--set`` takes it."""
    switches = VARIANTS.get(variant, {}).items()
    return [f"{option}={value if isinstance(value, str) else json.dumps(value)}" for option, value in switches]


def _cells(row: "Comparison") -> tuple[dict[str, str], dict[str, str]]:
    if row.difference is None:
        return _cell(row.recall, ""), {"value": "-", "interval": ""}
    note = "" if row.reference == DEFAULT else f" to {row.reference}"
    return _cell(row.recall, ""), _cell(row.difference, "+", note)


def _cell(interval: Interval, sign: str, note: str = "") -> dict[str, str]:
    bounds = f"[{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]{note}"
    return {"value": f"{interval.value:{sign}.4f}", "interval": bounds}


def _joined(cell: dict[str, str]) -> str:
    return " ".join(filter(None, (cell["value"], cell["interval"])))


def _caption(comparisons: "Sequence[Comparison]", confidence_level: float) -> str:
    first = comparisons[0]
    several = first.num_seeds > 1
    seeds, over = (f"mean of {first.num_seeds} seeds", "users and seeds") if several else ("one seed", "users alone")
    return (
        f"Micro recall on {first.num_positives:,} test conversions of {first.num_users:,} users, {seeds}; "
        f"brackets: {percent(confidence_level)} bootstrap over {over}, differences paired."
    )


def _plot(comparisons: "Sequence[Comparison]", k: int) -> dict[str, Any]:
    """Paired differences: they are far smaller than what all variants have in common."""
    compared = [(row, row.difference) for row in comparisons if row.k == k and row.difference is not None]
    rows = {row.variant: plots.Estimate(value=d.value, low=d.low, high=d.high) for row, d in compared}
    others = "".join(f"; {row.variant} to {row.reference}" for row, _ in compared if row.reference != DEFAULT)
    svg = plots.differences(rows, label=f"difference of recall@{k}", width=5.6) if rows else ""
    return {"svg": svg, "caption": f"Recall@{k}, paired differences to the default{others}"}
