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
from numpy.typing import NDArray

from conversion_retrieval.evaluation.results import LABELS, label_of

INK, MUTED, GRID = "#1c2430", "#6b7585", "#e6e9ee"
CANDIDATE, CHAMPION = "#0b63ce", "#d9822b"
BASELINES = ("#9aa5b4", "#5c8a73", "#a0729b", "#8a7f5c", "#58808f", "#b07878")
# A model has one colour and one mark in every plot, whichever others are in it.
COLORS = dict(zip(LABELS, (CANDIDATE, CHAMPION, *BASELINES), strict=True))
MARKERS = dict(zip(LABELS, ("o", "s", "^", "D", "v", "X", "P", "*"), strict=True))
FAILED = "#b3261e"
KINDS = ("#5c8a73", CANDIDATE, CHAMPION, "#a0729b")
MANY_POINTS = 30
LONGEST_NAME = 44  # characters of a row's name beside which the plot keeps some room
NAMES = {"ivf_pq": "IVF-PQ"}
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "-apple-system", "Segoe UI", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # names come from the data: what stands between two dollars is no formula
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


def color_of(model: str) -> str:
    """The colour that a model has in every plot."""
    return COLORS.get(model, MUTED)


def recall_curves(curves: Mapping[str, Mapping[int, Estimate]], label: str) -> Markup:
    """Recall@k over k (log scale), one line a model; shaded: the interval of candidate and champion."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(6.2, 4.6)
        for model, points in curves.items():
            ks = sorted(points)
            values = [points[k].value for k in ks]
            color, main = color_of(model), model in ("candidate", "champion")
            width, mark = (2.4, 5.0) if main else (1.3, 4.5)
            line: dict[str, Any] = {
                "color": color,
                "linewidth": width,
                "marker": MARKERS.get(model, "."),
                "markersize": mark,
            }
            axes.plot(ks, values, **line, label=label_of(model), zorder=3 if model == "candidate" else 2)
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
        if curves:
            figure.legend(loc="outside lower left", ncols=3, fontsize=9)
        return _svg(figure, label)


def training_curve(series: Mapping[str, Sequence[tuple[float, float]]], label: str) -> Markup:
    """Values over steps, one line a series of (step, value) pairs."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(5.2, 3.4)
        for position, (name, points) in enumerate(series.items()):
            color = CANDIDATE if position == 0 else BASELINES[position % len(BASELINES)]
            marker = "o" if len(points) < MANY_POINTS else None
            axes.plot(*_columns(points), color=color, linewidth=1.8, marker=marker, markersize=4, label=_words(name))
        axes.set_xlabel("step")
        axes.set_title(label, loc="left", fontsize=10, color=MUTED)
        if series:
            figure.legend(loc="outside lower left", ncols=2, fontsize=9)
        return _svg(figure, f"{label} over steps")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def slice_dots(groups: Mapping[str, Mapping[str, Estimate]]) -> Markup:
    """Values with intervals: one row a slice value, one dot a model."""
    models = list(dict.fromkeys(model for estimates in groups.values() for model in estimates))
    with mpl.rc_context(STYLE):
        figure, axes = _figure(5.2, 0.85 + (0.16 + 0.13 * len(models)) * len(groups))
        for position, model in enumerate(models):
            shift = (position - (len(models) - 1) / 2) * 0.7 / max(len(models), 1)
            rows = [row for row, estimates in enumerate(groups.values()) if model in estimates]
            estimates = [list(groups.values())[row][model] for row in rows]
            _dots(axes, estimates, np.array(rows) + shift, color=color_of(model), label=label_of(model))
        _name_rows(axes, list(groups))
        axes.set_xlim(left=0)
        if len(models) > 1:
            figure.legend(loc="outside upper left", ncols=len(models), fontsize=9)
        return _svg(figure, "Recall by slice")


def differences(rows: Mapping[str, Estimate], *, label: str, margin: float | None = None, width: float = 6.2) -> Markup:
    """Differences with intervals, one a row, beside zero and the margin, if any, that they may not fall below."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(width, 0.8 + 0.26 * len(rows))
        axes.axvline(0, color=MUTED, linewidth=1)
        if margin is not None:
            axes.axvline(margin, color=FAILED, linewidth=1.2, linestyle=(0, (4, 3)), label=f"margin {margin:g}")
        _dots(axes, list(rows.values()), np.arange(len(rows)), color=CANDIDATE, label="candidate minus champion")
        _name_rows(axes, list(rows))
        axes.set_xlabel(label)
        axes.locator_params(axis="x", nbins=4)
        if margin is not None:
            figure.legend(loc="outside upper left", ncols=2, fontsize=9)
        return _svg(figure, label)


def _dots(axes: Axes, estimates: Sequence[Estimate], at: NDArray[Any], *, color: str, label: str) -> None:
    values = [estimate.value for estimate in estimates]
    bounds = [
        [estimate.value - _or(estimate.low, estimate.value) for estimate in estimates],
        [_or(estimate.high, estimate.value) - estimate.value for estimate in estimates],
    ]
    errors = np.maximum(bounds, 0)
    axes.errorbar(values, at, xerr=errors, fmt="o", color=color, markersize=4.5, elinewidth=1.4, label=label)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def _shortened(name: str) -> str:
    """The name, a long one without its middle."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}\u2026{name[-half:]}"


def calibration(points: Sequence[tuple[float, Estimate]]) -> Markup:
    """Share of clicks that led to a conversion over their weight, with intervals."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(4.6, 2.8)
        weights, values = [weight for weight, _ in points], [100 * estimate.value for _, estimate in points]
        low = [100 * _or(estimate.low, estimate.value) for _, estimate in points]
        high = [100 * _or(estimate.high, estimate.value) for _, estimate in points]
        axes.plot(weights, values, color=CANDIDATE, marker="o", markersize=4, linewidth=1.8)
        axes.fill_between(weights, low, high, color=CANDIDATE, alpha=0.15, linewidth=0)
        axes.set_xlabel("weight of a click")
        axes.set_ylabel("% followed by a conversion")
        axes.set_ylim(bottom=0)
        return _svg(figure, "Conversions after clicks of each weight")


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


@dataclass(frozen=True, kw_only=True)
class IndexPoint:
    """One setting of an index: its queries a second and its recall against exact search."""

    kind: str
    name: str
    speed: float
    recall: float


def trade_off(points: Sequence[IndexPoint], chosen: str, *, target: float | None = None) -> Markup:
    """Recall over speed, one line a kind of index, with the recall target and a ring around the chosen setting."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(6.2, 3.8)
        for position, kind in enumerate(dict.fromkeys(point.kind for point in points)):
            own, color = [point for point in points if point.kind == kind], KINDS[position % len(KINDS)]
            axes.scatter([point.speed for point in own], [point.recall for point in own], s=14, color=color, alpha=0.5)
            best = _undominated(own)
            axes.plot(*_columns(best), color=color, marker="o", markersize=4, label=_words(kind))
        for point in points:
            if point.name == chosen:
                axes.plot(point.speed, point.recall, "o", color=INK, fillstyle="none", markersize=11, label="shipped")
                _annotate(axes, point)
        if target is not None:
            axes.axhline(target, color=FAILED, linewidth=1.2, linestyle=(0, (4, 3)), label=f"target {target:g}")
        axes.set_xscale("log")
        axes.set_xlabel("queries per second, one core")
        axes.set_ylabel("recall against exact search")
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)
        return _svg(figure, "Index settings: speed and recall")


def _undominated(points: Sequence[IndexPoint]) -> list[tuple[float, float]]:
    """(speed, recall) of the points than which none is both faster and at least as accurate."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (-point.speed, -point.recall)):
        if not best or point.recall > best[-1][1]:
            best.append((point.speed, point.recall))
    return best


def _annotate(axes: Axes, point: IndexPoint) -> None:
    at = (point.speed, point.recall)
    axes.annotate(point.name, at, xytext=(0, -18), textcoords="offset points", ha="center", fontsize=9, color=INK)


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
    return NAMES.get(name, name.replace("_", " "))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
