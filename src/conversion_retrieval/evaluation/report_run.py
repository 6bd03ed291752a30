"""The report's parts about how the run came about: training, labels, index, data checks."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import yaml
from markupsafe import Markup

from conversion_retrieval.evaluation import plots
from conversion_retrieval.evaluation.click_weights import click_calibration
from conversion_retrieval.evaluation.report_format import fact, interval, number, read_json

MET_WORDS: Final = {
    "recall": "recall target{} {}",
    "latency": "latency budget (p99){} {}",
    "memory": "memory budget{} {}",
}
UNITS: Final = {"latency": " ms", "memory": " MB"}


def training_context(model_dir: Path) -> dict[str, Any]:
    """Curves and figures of a training."""
    curve = pq.read_table(model_dir / "training_curve.parquet").to_pylist()
    losses = _series(row for row in curve if row["split"] == "train" and "loss" in row["metric"])
    recalls = _series(row for row in curve if row["split"] == "validation" and "recall" in row["metric"])
    return {
        "training_plots": [
            {"svg": plots.training_curve(losses, "training loss"), "caption": "Loss by task."},
            {"svg": plots.training_curve(recalls, "validation"), "caption": "Recall over the full catalogue."},
        ],
        "training_facts": list(_training_facts(read_json(model_dir / "metrics.json"))),
        "configuration": yaml.safe_dump(read_json(model_dir / "config.json"), sort_keys=False),
    }


def _training_facts(metrics: dict[str, Any]) -> Iterator[dict[str, str]]:
    if "best_value" in metrics:
        yield fact(f"best validation {metrics['metric']}", _best(metrics))
    if recent := metrics.get("recent"):
        yield fact("after that, on what came in since the training window", _recent(recent))
    if "tower_share" in metrics:
        yield fact("what steps learned counts, beside fitted popularity and memory", _share(metrics))
    for key in ("epochs", "parameters", "embedding_dim", "temperature", "softmax", "precision", "device", "processes"):
        if key in metrics:
            yield fact(key, _short(metrics[key]))


def _best(metrics: dict[str, Any]) -> str:
    if metrics["best_value"] is None:
        return f"nothing to validate on; {metrics['steps']:,} steps"
    return f"{metrics['best_value']:.4f} at step {metrics['best_step']:,} of {metrics['steps']:,}"


def _recent(recent: dict[str, Any]) -> str:
    if not recent["steps"]:
        return "no steps, the memory alone was fitted anew"
    distinct = round(recent["queries"] / recent["epochs"])
    fitted = ", the memory fitted anew" if recent.get("memory_fitted") else ""
    return f"{recent['steps']:,} steps on {distinct:,} queries (epochs: {recent['epochs']:.4g}){fitted}"


def _share(metrics: dict[str, Any]) -> str:
    share, found = f"{metrics['tower_share']:g}", metrics.get("share_values", {})
    counts = "whole" if share == "1" else f"{share} times"
    if len(found) < 2:
        return counts
    return f"{counts}: {metrics['metric']} {found[share]:.4f} on validation, the most of {', '.join(found)} times"


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def _series(rows: Iterable[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        series.setdefault(row["metric"], []).append((row["step"], row["value"]))
    return series


def label_context(features_dir: Path, model_dir: Path) -> dict[str, Any]:
    """How labels were made and used, and whether the weights of clicks mean what they should."""
    features = read_json(features_dir / "features.json")
    if not features:
        return {}
    labels, counts = features["labels"], features["counts"]
    recent = "recent" in read_json(model_dir / "metrics.json")
    return {
        "protocol": _protocol(features["windows"], counts["test"], recent=recent),
        "label_facts": list(_label_facts(labels, counts)),
        "label_plots": [*_weight_plots(labels, features_dir), *_delay_plots(labels["delay"])],
        "feature_rows": list(_feature_rows(features.get("coverage", {}))),
    }


def _protocol(windows: dict[str, Any], test: dict[str, Any], *, recent: bool) -> str:
    days = {name: tuple(windows[name][end][:10] for end in ("start", "end")) for name in ("train", "test")}
    later = f", then with what came in up to {windows['recent']['end'][:10]}" if recent else ""
    return (
        f"Trained on {' to '.join(days['train'])}{later}; tested on queries of {' to '.join(days['test'])}: "
        f"{test['conversions']:,} conversions, {test['attributed_conversions']:,} of them attributed to a request, "
        "every item of the catalogue a candidate."
    )


def _label_facts(labels: dict[str, Any], counts: dict[str, Any]) -> Iterator[dict[str, str]]:
    attribution, train = labels["attribution"], counts["train"]
    total = max(attribution["conversions"], 1)
    for kind, words in (("click", "to a click"), ("impression", "to an impression"), ("unattributed", "to nothing")):
        yield fact(f"conversions attributed {words}", f"{attribution[kind]:,} ({attribution[kind] / total:.1%})")
    yield fact("training queries", f"{train['queries']:,}")
    for task, weights in labels["weights"].items():
        yield fact(
            f"{task} positives, effective sample size after weights",
            f"{weights['n']:,} \u2192 {weights['effective_sample_size']:,.0f}",
        )
    yield fact("hard negatives (shown, not engaged with)", f"{train['hard_negatives']:,}")
    yield fact("cold items, cold users", f"{counts['cold_items']:,}, {counts['cold_users']:,}")
    for level, variance in labels["variance"].items():
        yield fact(f"relative variance of conversion counts by {level}", number(variance["relative_variance"]))
    missing = labels["delay"]["expected_missing_share"]
    yield fact("test conversions expected to be reported later", _percentage(missing.get("test")))


def _feature_rows(coverage: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Features that are missing or unknown somewhere, those first that are so most beyond training."""
    shares = [
        (f"{owner}.{name}", found["train"].get(name), share)
        for owner, found in coverage.items()
        for name, share in found["serve"].items()
    ]
    for name, training, serving in sorted(shares, key=lambda row: ((row[1] or 0.0) - (row[2] or 0.0), row[0])):
        if training or serving:
            yield {"name": name, "training": _percentage(training), "serving": _percentage(serving)}


def _percentage(share: float | None) -> str:
    return "n/a" if share is None else f"{share:.1%}"


def _weight_plots(labels: dict[str, Any], features_dir: Path) -> Iterator[dict[str, Any]]:
    engagement = labels["weights"].get("engagement")
    if not engagement or not engagement["n"]:
        return
    edges, counts = engagement["histogram"]["edges"], engagement["histogram"]["counts"]
    caption = "Weights of engagement positives: short clicks count little, saves and long clicks 1."
    yield {"svg": plots.histogram(edges, counts, "weight of an engagement positive"), "caption": caption}
    bins = click_calibration(features_dir, top=edges[-1])
    if len(bins) > 1:
        points = [(b.mean_weight, plots.Estimate(value=b.share, low=b.low, high=b.high)) for b in bins]
        caption = (
            f"Calibration of click weights: how often training clicks of each weight led to a conversion of the item "
            f"(n={sum(b.clicks for b in bins):,}; 95% Wilson intervals). It should rise."
        )
        yield {"svg": plots.calibration(points), "caption": caption}


def _delay_plots(delay: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if delay["n"]:
        shares = [share * 100 for share in delay["share_reported"]]
        svg = plots.line(delay["days"], shares, x_label="days after the conversion", y_label="% reported")
        yield {"svg": svg, "caption": f"How late conversions become known (n={delay['n']:,})."}


def index_context(index: dict[str, Any]) -> dict[str, Any]:
    """The index, which of its targets it keeps, and the settings it was chosen from."""
    if not index:
        return {}
    recall, latency = index["recall"], index["latency_ms"]
    facts = [
        fact("kind", f"{index['kind']} ({_setting(index['parameters'])})"),
        fact("items, dimensions", f"{index['num_items']:,}, {index['dim']}"),
        fact(
            f"recall@{recall['k']} against exact search",
            f"{recall['value']:.4f} {interval(recall['low'], recall['high'])}, n={recall['n']:,}",
        ),
        fact("latency of one query, one core", f"p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms"),
        fact("queries per second, one core", f"{index['queries_per_second']:,.0f}"),
        fact("memory", f"{index['memory_mb']:,.1f} MB"),
    ]
    met = [_met(name, kept, index.get("targets", {}).get(name)) for name, kept in index.get("met", {}).items()]
    return {"index_facts": facts, "index_met": met, "index_plot": _trade_off_plot(index)}


def _met(name: str, kept: bool, target: float | None) -> dict[str, str]:
    """Whether a target is kept, in words; its figure where the artifact tells it."""
    figure = "" if target is None else f" of {target:,g}{UNITS.get(name, '')}"
    words = MET_WORDS[name].format(figure, "kept" if kept else "missed")
    return {"words": f"{'✓' if kept else '✗'} {words}", "css": "passed" if kept else "failed"}


def _setting(parameters: dict[str, str]) -> str:
    return f"{parameters['factory']} {parameters['setting']}".strip()


def _trade_off_plot(index: dict[str, Any]) -> Markup | None:
    points = [
        plots.IndexPoint(kind=p["kind"], name=_setting(p), speed=p["queries_per_second"], recall=p["recall"])
        for p in index["trade_off"]
    ]
    chosen = _setting(index["parameters"])
    return plots.trade_off(points, chosen, target=index.get("targets", {}).get("recall")) if len(points) > 1 else None


def validation_context(validation: dict[str, Any]) -> dict[str, Any]:
    """How many data checks passed, and those that did not."""
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
        f"{sign} {number(expectation[key])}"
        for key, sign in (("minimum", "\u2265"), ("maximum", "\u2264"))
        if expectation.get(key) is not None
    ]
    error = expectation["severity"] == "error"
    return {
        "table": expectation["table"],
        "name": expectation["name"].replace("_", " "),
        "observed": number(expectation["observed"]),
        "limit": ", ".join(limits),
        "result": "error" if error else "warning",
        "css": "failed" if error else "unknown",
    }
