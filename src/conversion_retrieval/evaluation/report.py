"""The HTML report: one self-contained page a run, from the artifacts alone."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from conversion_retrieval import contracts
from conversion_retrieval.evaluation import plots
from conversion_retrieval.evaluation.results import Measurement, Results, label_of

TABLE_KS: Final = (10, 100, 1000)
SLICE_K: Final = 100
NEW_ITEMS: Final = "new_to_user=true"
VERDICT_WORDS: Final = {
    "promote": "Promote: the candidate passed every check",
    "reject": "Rejected: the candidate failed a check",
    "insufficient_data": "No verdict: too little data to decide",
}
CHAMPION_WORDS: Final = {
    "absent": "The registry had no champion to compare with.",
    "present": "Compared, query by query, with champion {version}, re-scored on this run's window and catalogue.",
    "corrupt": "The champion could not be read: {reason}",
    "unreachable": "The registry could not be reached: {reason}",
}
RESULT_WORDS: Final = {True: ("✓ passed", "passed"), False: ("✗ failed", "failed"), None: ("? undecided", "unknown")}


def write_evaluation_page(evaluation_dir: Path, page_path: Path) -> None:
    """The page of the evaluation stage alone: recall tables, curve and slices."""
    context = _empty_context() | _evaluation_context(evaluation_dir)
    _render(context | {"title": "Evaluation", "subtitle": "Recall on held-out conversions"}, page_path)


def write_report(
    *,
    report_dir: Path,
    features_dir: Path,
    model_dir: Path,
    evaluation_dir: Path,
    index_dir: Path,
    decision_dir: Path,
    page_path: Path,
) -> None:
    """The page of a whole run: verdict, recall, gate, slices, training, labels, index, data checks, provenance."""
    decision = _json(decision_dir / "decision.json")
    context = (
        _empty_context()
        | _evaluation_context(evaluation_dir)
        | _gate_context(decision)
        | _training_context(model_dir)
        | _label_context(_json(features_dir / "features.json"))
        | _index_context(_json(index_dir / "index.json"))
        | _validation_context(_json(report_dir / "validation.json"))
    )
    kinds = {
        "snapshot and features": features_dir,
        "model": model_dir,
        "evaluation": evaluation_dir,
        "index": index_dir,
    }
    manifests = {
        name: contracts.read_manifest(path, kind=name.rpartition(" ")[2])
        for name, path in kinds.items()
        if (path / contracts.MANIFEST).exists()
    }
    context["provenance"] = [_fact(f"{name} digest", manifest.digest) for name, manifest in manifests.items()]
    if created := [manifest.created_time for manifest in manifests.values()]:
        context["subtitle"] = f"Run of {max(created).replace('T', ' ').replace('+00:00', ' UTC')}"
    _render(context, page_path)


def _render(context: dict[str, Any], page_path: Path) -> None:
    environment = Environment(
        loader=PackageLoader("conversion_retrieval", "evaluation/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(context)
    page_path.parent.mkdir(parents=True, exist_ok=True)
    contracts.write_bytes(page_path, page.encode())


def _empty_context() -> dict[str, Any]:
    return {
        "title": "Conversion retrieval: report of a run",
        "subtitle": "",
        "protocol": "",
        "decision": None,
        "tiles": [],
        "recall_tables": [],
        "recall_plot": None,
        "confidence": "95%",
        "slice_plots": [],
        "slice_k": SLICE_K,
        "training_plot": None,
        "label_facts": [],
        "label_plots": [],
        "index_facts": [],
        "index_plot": None,
        "validation_rows": [],
        "validation_words": "",
        "provenance": [],
        "configuration": "",
    }


def _evaluation_context(evaluation_dir: Path) -> dict[str, Any]:
    results = Results.read(evaluation_dir)
    tables = [
        recall_table(results, "all", "All conversions"),
        recall_table(results, NEW_ITEMS, "Only items new to the user (never clicked, saved or bought before)"),
    ]
    return {
        "recall_tables": [table for table in tables if table["rows"]],
        "recall_plot": plots.recall_curves(_recall_curves(results)),
        "slice_plots": list(_slice_plots(results)),
        "tiles": list(_headline_tiles(results)),
    }


def recall_table(results: Results, slice_: str, title: str) -> dict[str, Any]:
    """Rows of recall@10/100/1000 on conversions, one a model, with intervals and the number of conversions."""
    ks = [k for k in TABLE_KS if k in results.ks()]
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
    return {"value": f"{measurement.value:.4f}", "interval": _interval(measurement.low, measurement.high)}


def _interval(low: float | None, high: float | None) -> str:
    return f"[{low:.4f}, {high:.4f}]" if low is not None and high is not None else ""


def _headline_tiles(results: Results) -> Iterable[dict[str, str]]:
    headline = results.find(f"conversion/recall@{SLICE_K}")
    if headline is None or headline.value is None:
        return
    yield {"value": f"{headline.value:.3f}", "label": f"conversion recall@{SLICE_K}"}
    new = results.find(f"conversion/recall@{SLICE_K}", slice_=NEW_ITEMS)
    if new is not None and new.value is not None:
        yield {"value": f"{new.value:.3f}", "label": f"recall@{SLICE_K}, items new to the user"}
    popularity = results.find(f"conversion/recall@{SLICE_K}", model="popularity")
    if popularity is not None and popularity.value:
        yield {"value": f"{headline.value / popularity.value:.1f}×", "label": "of popularity's recall"}
    yield {"value": f"{headline.n_positives:,}", "label": f"test conversions, {headline.n_queries:,} queries"}


def _recall_curves(results: Results) -> dict[str, dict[int, plots.Estimate]]:
    curves = {}
    for model in results.models():
        found = {k: results.find(f"conversion/recall@{k}", model=model) for k in results.ks()}
        points = {k: e for k, m in found.items() if (e := _estimate(m)) is not None}
        if points:
            curves[model] = points
    return curves


def _estimate(measurement: Measurement | None) -> plots.Estimate | None:
    if measurement is None or measurement.value is None:
        return None
    return plots.Estimate(value=measurement.value, low=measurement.low, high=measurement.high)


def _slice_plots(results: Results) -> Iterable[dict[str, Any]]:
    name = f"conversion/recall@{SLICE_K}"
    compared = [model for model in ("candidate", "champion", "popularity") if results.find(name, model=model)]
    for family, names in results.slices(name):
        groups = {}
        for slice_ in names:
            found = {model: results.find(name, model=model, slice_=slice_) for model in compared}
            bars = {model: e for model, m in found.items() if (e := _estimate(m)) is not None}
            candidate = found.get("candidate")
            if bars and candidate is not None:
                groups[f"{slice_.partition('=')[2]}  (n={candidate.n_positives:,})"] = bars
        if len(groups) > 1:
            yield {"svg": plots.slice_bars(groups), "caption": f"By {family.replace('_', ' ')}"}


def _gate_context(decision: dict[str, Any]) -> dict[str, Any]:
    champion = decision.get("champion") or {"status": "absent"}
    words = CHAMPION_WORDS[champion["status"]].format_map({"version": "", "reason": "", **champion})
    return {
        "decision": decision,
        "verdict_words": VERDICT_WORDS[decision["verdict"]],
        "champion_words": words,
        "checks": [_check_row(check) for check in decision["checks"]],
    }


def _check_row(check: dict[str, Any]) -> dict[str, Any]:
    result, css = RESULT_WORDS[check["passed"]]
    value, threshold = check.get("value"), check.get("threshold")
    return {
        "label": check["name"].replace("_", " "),
        "result": result,
        "css": css,
        "value": _number(value),
        "interval": _interval(check.get("low"), check.get("high")),
        "threshold": _number(threshold),
        **_bar(value, threshold),
        "n": f"{check['n']:,}" if check.get("n") is not None else "",
        "detail": check.get("detail", ""),
    }


def _bar(value: float | None, threshold: float | None) -> dict[str, float | None]:
    """Widths in percent; only numbers that share a non-negative scale are drawn."""
    if value is None or threshold is None or not math.isfinite(value) or value < 0 or threshold < 0:
        return {"bar": None, "mark": None}
    top = max(value, threshold, 1e-12) * 1.1
    return {"bar": round(100 * value / top, 1), "mark": round(100 * threshold / top, 1)}


def _number(value: float | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str | bool):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 2 else f"{value:.4f}"


def _training_context(model_dir: Path) -> dict[str, Any]:
    curve = pq.read_table(model_dir / "training_curve.parquet").to_pylist()
    losses = _series(row for row in curve if row["split"] == "train" and "loss" in row["metric"])
    recalls = _series(row for row in curve if row["split"] == "validation" and "recall" in row["metric"])
    metrics = _json(model_dir / "metrics.json")
    config = _json(model_dir / "config.json")
    return {
        "training_plot": plots.training_curves(losses, recalls) if curve else None,
        "training_words": _training_words(metrics),
        "configuration": yaml.safe_dump(config, sort_keys=False),
    }


def _training_words(metrics: dict[str, Any]) -> str:
    shown = (f"{key.replace('_', ' ')}: {_number(v)}" for key, v in metrics.items() if isinstance(v, int | float))
    return "; ".join(shown)


def _series(rows: Iterable[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        series.setdefault(row["metric"], []).append((row["step"], row["value"]))
    return series


def _label_context(features: dict[str, Any]) -> dict[str, Any]:
    if not features:
        return {}
    labels, counts = features["labels"], features["counts"]
    return {
        "protocol": _protocol(features["windows"], counts["test"]),
        "label_facts": list(_label_facts(labels, counts)),
        "label_plots": list(_label_plots(labels)),
    }


def _protocol(windows: dict[str, Any], test: dict[str, Any]) -> str:
    days = {name: tuple(windows[name][end][:10] for end in ("start", "end")) for name in ("train", "test")}
    return (
        f"Trained on {' to '.join(days['train'])}; tested on queries of {' to '.join(days['test'])}: "
        f"{test['conversions']:,} conversions, {test['attributed_conversions']:,} of them attributed to a request, "
        "every item of the catalogue a candidate."
    )


def _label_facts(labels: dict[str, Any], counts: dict[str, Any]) -> Iterable[dict[str, str]]:
    attribution, train = labels["attribution"], counts["train"]
    total = max(attribution["conversions"], 1)
    for kind, words in (("click", "to a click"), ("impression", "to an impression"), ("unattributed", "to nothing")):
        yield _fact(f"conversions attributed {words}", f"{attribution[kind]:,} ({attribution[kind] / total:.1%})")
    yield _fact("training queries", f"{train['queries']:,}")
    for task, weights in labels["weights"].items():
        yield _fact(
            f"{task} positives, effective sample size after weights",
            f"{weights['n']:,} \u2192 {weights['effective_sample_size']:,.0f}",
        )
    yield _fact("hard negatives (shown, not engaged with)", f"{train['hard_negatives']:,}")
    yield _fact("cold items, cold users", f"{counts['cold_items']:,}, {counts['cold_users']:,}")
    for level, variance in labels["variance"].items():
        yield _fact(f"relative variance of conversion counts by {level}", _number(variance["relative_variance"]))
    missing = labels["delay"]["expected_missing_share"]
    yield _fact("test conversions expected to be reported later", f"{missing.get('test') or 0:.1%}")


def _label_plots(labels: dict[str, Any]) -> Iterable[dict[str, Any]]:
    engagement = labels["weights"].get("engagement")
    if engagement and engagement["n"]:
        bins = engagement["histogram"]
        svg = plots.histogram(bins["edges"], bins["counts"], "weight of an engagement positive")
        yield {"svg": svg, "caption": "Click-duration weights: short clicks count little, saves and long clicks 1."}
    delay = labels["delay"]
    if delay["n"]:
        shares = [share * 100 for share in delay["share_reported"]]
        svg = plots.line(delay["days"], shares, x_label="days after the conversion", y_label="% reported")
        yield {"svg": svg, "caption": f"How late conversions become known (n={delay['n']:,})."}


def _index_context(index: dict[str, Any]) -> dict[str, Any]:
    if not index:
        return {}
    recall, latency = index["recall"], index["latency_ms"]
    factory, setting = index["parameters"]["factory"], index["parameters"]["setting"]
    facts = [
        _fact("kind", f"{index['kind']} ({' '.join(part for part in (factory, setting) if part)})"),
        _fact("items, dimensions", f"{index['num_items']:,}, {index['dim']}"),
        _fact(
            f"recall@{recall['k']} against exact search",
            f"{recall['value']:.4f} {_interval(recall['low'], recall['high'])}, n={recall['n']:,}",
        ),
        _fact("latency of one query, one core", f"p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms"),
        _fact("queries per second, one core", f"{index['queries_per_second']:,.0f}"),
        _fact("memory", f"{index['memory_mb']:,.1f} MB"),
    ]
    return {"index_facts": facts, "index_plot": _trade_off_plot(index)}


def _trade_off_plot(index: dict[str, Any]) -> Markup | None:
    points = [
        (f"{p['factory']} {p['setting']}".strip(), p["queries_per_second"], p["recall"]) for p in index["trade_off"]
    ]
    chosen = f"{index['parameters']['factory']} {index['parameters']['setting']}".strip()
    return plots.trade_off(points, chosen) if len(points) > 1 else None


def _validation_context(validation: dict[str, Any]) -> dict[str, Any]:
    if not validation:
        return {}
    expectations = validation["expectations"]
    failed = [e for e in expectations if not e["success"]]
    return {
        "validation_words": f"{len(expectations) - len(failed)} of {len(expectations)} checks passed.",
        "validation_rows": [_validation_row(e) for e in failed],
    }


def _validation_row(expectation: dict[str, Any]) -> dict[str, Any]:
    limits = [
        f"{sign} {_number(expectation[key])}"
        for key, sign in (("minimum", "\u2265"), ("maximum", "\u2264"))
        if expectation.get(key) is not None
    ]
    error = expectation["severity"] == "error"
    return {
        "table": expectation["table"],
        "name": expectation["name"].replace("_", " "),
        "observed": _number(expectation["observed"]),
        "limit": ", ".join(limits),
        "result": "error" if error else "warning",
        "css": "failed" if error else "unknown",
    }


def _fact(label: str, value: str) -> dict[str, str]:
    return {"label": label.replace("_", " "), "value": value}


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else {}
