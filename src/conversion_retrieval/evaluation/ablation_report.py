"""The ablation's table in Markdown and HTML, and its plot."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from conversion_retrieval import contracts
from conversion_retrieval.evaluation import plots
from conversion_retrieval.evaluation.crossed_bootstrap import Interval
from conversion_retrieval.evaluation.variants import DEFAULT

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
        "plots": [{"k": k, "svg": plots.slice_dots(_bars(comparisons, k))} for k in ks],
    }
    page_path.parent.mkdir(parents=True, exist_ok=True)
    contracts.write_bytes(page_path, environment.get_template("ablation.html.j2").render(context).encode())


def markdown_table(comparisons: "Sequence[Comparison]", confidence_level: float) -> str:
    """One row a variant: recall and difference to the default at each cut-off, with intervals."""
    ks = sorted({row.k for row in comparisons})
    head = ["variant"] + [text for k in ks for text in (f"recall@{k}", "difference to default")]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    rows = _rows(comparisons, ks)
    lines += [
        "| " + " | ".join([row["variant"], *(cell for pair in row["cells"] for cell in pair)]) + " |" for row in rows
    ]
    return "\n".join([*lines, "", _caption(comparisons, confidence_level), ""])


def _rows(comparisons: "Sequence[Comparison]", ks: Sequence[int]) -> list[dict[str, Any]]:
    found = {(row.variant, row.k): row for row in comparisons}
    variants = dict.fromkeys(row.variant for row in comparisons)
    return [{"variant": name, "cells": [_cells(found[name, k]) for k in ks]} for name in variants]


def _cells(row: "Comparison") -> tuple[str, str]:
    if row.difference is None:
        return _text(row.recall, ""), "-"
    note = "" if row.reference == DEFAULT else f" to {row.reference}"
    return _text(row.recall, ""), _text(row.difference, "+") + note


def _text(interval: Interval, sign: str) -> str:
    return f"{interval.value:{sign}.4f} [{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def _caption(comparisons: "Sequence[Comparison]", confidence_level: float) -> str:
    first = comparisons[0]
    return (
        f"Micro recall on {first.num_positives:,} test conversions of {first.num_users:,} users, mean of "
        f"{first.num_seeds} seeds; brackets: {confidence_level:.0%} bootstrap over users and seeds, differences paired."
    )


def _bars(comparisons: "Sequence[Comparison]", k: int) -> dict[str, dict[str, plots.Estimate]]:
    return {
        row.variant: {"candidate": plots.Estimate(value=row.recall.value, low=row.recall.low, high=row.recall.high)}
        for row in comparisons
        if row.k == k
    }
