"""The evaluation's part of the report: recall beside baselines, every task, what only this model finds, slices."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from conversion_retrieval.contracts import MANIFEST, read_manifest
from conversion_retrieval.evaluation import plots
from conversion_retrieval.evaluation.report_format import interval, percent
from conversion_retrieval.evaluation.results import Measurement, Results, label_of

TABLE_KS: Final = (10, 100, 1000)
SLICE_K: Final = 100
NEW_ITEMS: Final = "new_to_user=true"
RANKED: Final = {
    "all": "All conversions",
    NEW_ITEMS: "Only items new to the user (never clicked, saved or bought before)",
}
TASKS: Final = {
    "conversion": "conversions (checkout and add to cart)",
    "checkout": "checkout",
    "add_to_cart": "add to cart",
    "engagement": "engagement (click and save)",
}
FAMILY_WORDS: Final = {
    "surface": "By surface",
    "advertiser_size_decile": "By size of the advertiser",
    "item_popularity_decile": "By popularity of the item",
    "item_status": "Items known and new to the shop",
    "user_status": "Users known and new to the shop",
    "history_length": "By length of the user's history (events)",
    "new_to_user": "Items new to the user, or had before",
}
VALUE_WORDS: Final = {NEW_ITEMS: "new", "new_to_user=false": "had before"}
DECILE_NOTE: Final = "Each decile holds a tenth of the earlier conversions: 01 the many smallest, 10 the few largest."
FAMILY_NOTES: Final = {
    "advertiser_size_decile": DECILE_NOTE,
    "item_popularity_decile": DECILE_NOTE,
    "new_to_user": "New items are ranked without the items that the user had before.",
}


def recall_context(evaluation_dir: Path) -> dict[str, Any]:
    """What the template needs of an evaluation."""
    results = Results.read(evaluation_dir)
    ks = table_ks(results)
    task_metrics = (*(f"recall@{k}" for k in ks), *(f"ndcg@{k}" for k in ks[:2]), "mrr")
    tables = [recall_table(results, slice_, title) for slice_, title in RANKED.items()]
    return {
        "recall_tables": [table for table in tables if table["rows"]],
        "recall_plots": list(_recall_plots(results)),
        "task_rows": [row for task in TASKS if (row := _task_row(results, task, task_metrics))["found"]],
        "task_metrics": task_metrics,
        "table_ks": ks,
        "slice_k": headline_k(results),
        "coverage_rows": list(_coverage_rows(results)),
        "overlap_rows": list(_overlap_rows(results)),
        "slice_plots": list(_slice_plots(results)),
        "tiles": list(_headline_tiles(results)),
        "confidence": _confidence(evaluation_dir),
    }


def table_ks(results: Results) -> list[int]:
    """The cut-offs of the tables: the usual ones, or whichever were measured where one of those was not."""
    measured = results.ks() or results.ks("engagement") or TABLE_KS
    return list(measured if {*TABLE_KS} - {*measured} else TABLE_KS)


def headline_k(results: Results) -> int:
    """The cut-off of tiles and slices: the usual one, or the measured one that is the nearest by ratio."""
    return min(results.ks(), key=lambda k: abs(math.log(k / SLICE_K)), default=SLICE_K)


def _confidence(evaluation_dir: Path) -> str:
    """The level of the evaluation's intervals, nothing where it does not tell it."""
    if not (evaluation_dir / MANIFEST).exists():
        return ""
    level = read_manifest(evaluation_dir, kind="evaluation").metadata.get("confidence_level")
    return "" if level is None else percent(level)


def recall_table(results: Results, slice_: str, title: str) -> dict[str, Any]:
    """Rows of recall@k on conversions, one a model, with intervals and the number of conversions."""
    ks = table_ks(results)
    rows = []
    counts = None
    for model in results.models():
        found = [results.find(f"conversion/recall@{k}", model=model, slice_=slice_) for k in ks]
        if any(found):
            rows.append({"model": model, "label": label_of(model), "cells": [_cell(m) for m in found]})
            counts = counts or next(m for m in found if m)
    n = f"{counts.n_positives:,} conversions of {counts.n_queries:,} queries" if counts else "0"
    return {"title": title, "ks": ks, "rows": rows, "n": n}


def _cell(measurement: Measurement | None) -> dict[str, str]:
    if measurement is None or measurement.value is None:
        return {"value": "n/a", "interval": ""}
    return {"value": f"{measurement.value:.4f}", "interval": interval(measurement.low, measurement.high)}


def _headline_tiles(results: Results) -> Iterator[dict[str, str]]:
    k = headline_k(results)
    name = f"conversion/recall@{k}"
    headline = results.find(name)
    if headline is None or headline.value is None:
        return
    yield {"value": f"{headline.value:.3f}", "label": f"conversion recall@{k}"}
    new = results.find(name, slice_=NEW_ITEMS)
    if new is not None and new.value is not None:
        yield {"value": f"{new.value:.3f}", "label": f"recall@{k}, items new to the user"}
    popularity = results.find(name, model="popularity")
    if popularity is not None and popularity.value:
        yield {"value": f"{headline.value / popularity.value:.1f}×", "label": "of popularity's recall"}
    yield {"value": f"{headline.n_positives:,}", "label": f"test conversions, {headline.n_queries:,} queries"}


def _recall_plots(results: Results) -> Iterator[dict[str, Any]]:
    for slice_, title in RANKED.items():
        if curves := _recall_curves(results, slice_):
            svg = plots.recall_curves(
                curves, "Recall at k for each model" + (", new items" if slice_ == NEW_ITEMS else "")
            )
            yield {"svg": svg, "caption": f"{title.partition(' (')[0]}. Shaded: interval over users."}


def _recall_curves(results: Results, slice_: str) -> dict[str, dict[int, plots.Estimate]]:
    curves = {}
    for model in results.models():
        found = {k: results.find(f"conversion/recall@{k}", model=model, slice_=slice_) for k in results.ks()}
        points = {k: e for k, m in found.items() if (e := _estimate(m)) is not None}
        if points:
            curves[model] = points
    return curves


def _task_row(results: Results, task: str, metrics: Iterable[str]) -> dict[str, Any]:
    found = [results.find(f"{task}/{metric}") for metric in metrics]
    n = next((m.n_positives for m in found if m), 0)
    return {"label": TASKS[task], "n": f"{n:,}", "cells": [_cell(m) for m in found], "found": any(found)}


def _coverage_rows(results: Results) -> Iterator[dict[str, Any]]:
    """Share of the catalogue that some list shows, by model and cut-off."""
    for model in results.models():
        found = [results.find(f"catalogue/coverage@{k}", model=model) for k in table_ks(results)]
        if any(found):
            cells = [f"{m.value:.1%}" if m and m.value is not None else "n/a" for m in found]
            yield {"model": model, "label": label_of(model), "cells": cells}


def _overlap_rows(results: Results) -> Iterator[dict[str, Any]]:
    """Share of conversions that a model recalls and an engagement-only list of the same length does not."""
    for model in results.models():
        names = [f"conversion/only_recalled@{k}" for k in table_ks(results)]
        found = [results.find(name, model=model, slice_="against=engagement_only") for name in names]
        if any(found):
            yield {"model": model, "label": label_of(model), "cells": [_cell(m) for m in found]}


def _estimate(measurement: Measurement | None) -> plots.Estimate | None:
    if measurement is None or measurement.value is None:
        return None
    return plots.Estimate(value=measurement.value, low=measurement.low, high=measurement.high)


def _slice_plots(results: Results) -> Iterable[dict[str, Any]]:
    name = f"conversion/recall@{headline_k(results)}"
    compared = [model for model in ("candidate", "champion", "popularity") if results.find(name, model=model)]
    for family, names in results.slices(name):
        groups = _slice_groups(results, name, names, compared)
        if len(groups) > 1:
            yield {
                "svg": plots.slice_dots(groups),
                "title": FAMILY_WORDS.get(family, f"By {family.replace('_', ' ')}"),
                "caption": FAMILY_NOTES.get(family, ""),
            }


def _slice_groups(
    results: Results, name: str, slices: Iterable[str], compared: Iterable[str]
) -> Mapping[str, Mapping[str, plots.Estimate]]:
    groups = {}
    for slice_ in slices:
        found = {model: results.find(name, model=model, slice_=slice_) for model in compared}
        estimates = {model: e for model, m in found.items() if (e := _estimate(m)) is not None}
        candidate = found.get("candidate")
        if estimates and candidate is not None:
            value = VALUE_WORDS.get(slice_, slice_.partition("=")[2])
            groups[f"{value}  (n={candidate.n_positives:,})"] = estimates
    return groups
