"""The report's plots as inline SVG: no script, no file beside the page, the same bytes for the same numbers."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1c2430", "#6b7585", "#e6e9ee"
CANDIDATE, CHAMPION, BASELINES = (
    "#0b63ce",
    "#d9822b",
    ("#9aa5b4", "#5c8a73", "#a0729b", "#8a7f5c", "#58808f", "#b07878"),
)
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "-apple-system", "Segoe UI", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "conversion-retrieval",
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval; ``low`` and ``high`` are None where no interval was computed."""

    value: float
    low: float | None = None
    high: float | None = None


def color_of(model: str, position: int = 0) -> str:
    """The colour that a model has in every plot."""
    return {"candidate": CANDIDATE, "champion": CHAMPION}.get(model, BASELINES[position % len(BASELINES)])


def recall_curves(curves: Mapping[str, Mapping[int, Estimate]]) -> Markup:
    """Recall@k over k (log scale), one line a model with its interval shaded."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(7.2, 4.0)
        for position, (model, points) in enumerate(curves.items()):
            ks = sorted(points)
            values = [points[k].value for k in ks]
            color, main = color_of(model, position), model in ("candidate", "champion")
            axes.plot(
                ks, values, color=color, marker="o", markersize=4, linewidth=2.4 if main else 1.3, label=_words(model)
            )
            if main:
                low = [_or(points[k].low, points[k].value) for k in ks]
                high = [_or(points[k].high, points[k].value) for k in ks]
                axes.fill_between(ks, low, high, color=color, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        ks = sorted({k for points in curves.values() for k in points})
        axes.set_xticks(ks, [f"{k:,}" for k in ks])
        axes.minorticks_off()
        axes.set_xlabel("candidates retrieved (k)")
        axes.set_ylabel("share of conversions found")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", fontsize=9)
        return _svg(figure, "Recall at k for each model")


def training_curves(
    losses: Mapping[str, Sequence[tuple[float, float]]], recalls: Mapping[str, Sequence[tuple[float, float]]]
) -> Markup:
    """Loss by task and validation recall over steps, side by side; each series is (step, value) pairs."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, series, label in ((left, losses, "training loss"), (right, recalls, "validation")):
            for position, (name, points) in enumerate(series.items()):
                steps, values = zip(*points, strict=True) if points else ((), ())
                color = CANDIDATE if position == 0 else BASELINES[position % len(BASELINES)]
                axes.plot(
                    steps,
                    values,
                    color=color,
                    linewidth=1.8,
                    marker="o" if axes is right else None,
                    markersize=4,
                    label=_words(name),
                )
            axes.set_xlabel("step")
            axes.set_title(label, loc="left", fontsize=10, color=MUTED)
            if series:
                axes.legend(fontsize=9)
        return _svg(figure, "Training loss and validation recall over steps")


def slice_bars(groups: Mapping[str, Mapping[str, Estimate]]) -> Markup:
    """Horizontal bars with intervals: one group a slice value, one bar a model."""
    models = list(dict.fromkeys(model for bars in groups.values() for model in bars))
    with mpl.rc_context(STYLE):
        figure, axes = _figure(5.2, 0.7 + 0.32 * len(groups) * max(len(models), 1))
        height = 0.8 / max(len(models), 1)
        for position, model in enumerate(models):
            rows = [row for row, bars in enumerate(groups.values()) if model in bars]
            bars = [list(groups.values())[row][model] for row in rows]
            values = np.array([bar.value for bar in bars])
            errors = [
                [bar.value - _or(bar.low, bar.value) for bar in bars],
                [_or(bar.high, bar.value) - bar.value for bar in bars],
            ]
            at = np.array(rows) + (position - (len(models) - 1) / 2) * height
            axes.barh(at, values, height * 0.9, color=color_of(model, position), label=_words(model), alpha=0.9)
            axes.errorbar(values, at, xerr=np.maximum(errors, 0), fmt="none", ecolor=INK, elinewidth=0.8, capsize=2)
        axes.set_yticks(range(len(groups)), list(groups))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(left=0)
        if len(models) > 1:
            axes.legend(fontsize=8, loc="lower right")
        return _svg(figure, "Recall by slice")


def histogram(edges: Sequence[float], counts: Sequence[float], label: str) -> Markup:
    """Bars over given bin edges."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(4.6, 2.8)
        edges_array = np.asarray(edges, dtype=float)
        axes.bar(edges_array[:-1], counts, width=np.diff(edges_array), align="edge", color=CANDIDATE, alpha=0.85)
        axes.set_xlabel(label)
        axes.set_ylabel("count")
        return _svg(figure, label)


def line(xs: Sequence[float], ys: Sequence[float], *, x_label: str, y_label: str) -> Markup:
    """One curve."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(4.6, 2.8)
        axes.plot(xs, ys, color=CANDIDATE, linewidth=2)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_ylim(bottom=0)
        return _svg(figure, f"{y_label} over {x_label}")


def trade_off(points: Sequence[tuple[str, float, float]], chosen: str) -> Markup:
    """Index settings as (name, queries/s, recall against exact); the chosen one is marked."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(4.6, 2.8)
        for name, speed, recall in points:
            axes.scatter([speed], [recall], s=40, color=CANDIDATE if name == chosen else BASELINES[0], zorder=3)
            axes.annotate(name, (speed, recall), textcoords="offset points", xytext=(5, -3), fontsize=7, color=MUTED)
        axes.set_xscale("log")
        axes.set_xlabel("queries per second, one core")
        axes.set_ylabel("recall against exact")
        return _svg(figure, "Index settings: speed and recall")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure, label: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    body = text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(label)}" ', 1)
    return Markup(body)  # noqa: S704 - matplotlib escapes the text it draws


def _words(name: str) -> str:
    return name.replace("_", " ")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
