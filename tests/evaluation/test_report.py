"""The report shows what the artifacts say, whole in one file; oracles: the numbers put into hand-made artifacts."""

import json
import re
import shutil
import warnings
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conversion_retrieval.contracts import read_manifest, write_manifest
from conversion_retrieval.evaluation.click_weights import click_calibration
from conversion_retrieval.evaluation.plots import Estimate, color_of, differences, slice_dots
from conversion_retrieval.evaluation.report import write_evaluation_page, write_report
from conversion_retrieval.evaluation.report_gate import scale
from conversion_retrieval.evaluation.results import label_of
from conversion_retrieval.schema import CONVERSIONS, EVENT_TYPES

DIRS = ("report_dir", "features_dir", "model_dir", "evaluation_dir", "index_dir", "decision_dir")


def _metric(model, value, slice_="all", k=100, name="conversion/recall"):
    return {
        "name": f"{name}@{k}",
        "model": model,
        "slice": slice_,
        "value": value,
        "low": value - 0.01,
        "high": value + 0.01,
        "n_queries": 40,
        "n_positives": 1234,
    }


METRICS = [
    _metric("candidate", 0.4321),
    _metric("candidate", 0.7654, k=1000),
    _metric("popularity", 0.1111),
    _metric("candidate", 0.2222, "new_to_user=true"),
    _metric("candidate", 0.3333, "new_to_user=false"),
    _metric("champion", 0.4111),
    _metric("champion", 0.2111, "new_to_user=true"),
    _metric("candidate", 0.5, "surface=search"),
    _metric("candidate", 0.6, "surface=<b>home</b>"),
    _metric("candidate", 0.3131, name="add_to_cart/recall"),
    _metric("candidate", 0.8181, name="catalogue/coverage"),
    _metric("candidate", 0.1717, "against=engagement_only", name="conversion/only_recalled"),
]
DECISION = {
    "verdict": "reject",
    "reason": "recall@100 fell by 0.0300 & more",
    "champion": {"status": "present", "version": "v-old", "digest": "d", "reason": ""},
    "candidate": {},
    "checks": [
        {
            "name": "not_worse_than_champion",
            "passed": False,
            "value": -0.03,
            "threshold": -0.01,
            "low": -0.04,
            "high": -0.02,
            "n": 1234,
            "detail": "paired",
        },
        {
            "name": "enough_conversions",
            "passed": None,
            "value": None,
            "threshold": 500.0,
            "low": None,
            "high": None,
            "n": None,
            "detail": "missing",
        },
        {
            "name": "slice surface=search",
            "passed": True,
            "value": -0.005,
            "threshold": -0.03,
            "low": -0.02,
            "high": 0.01,
            "n": 432,
            "detail": "recall@100 minus the champion's; bounds hold for all 1 slices at once",
        },
    ],
}
FEATURES = {
    "coverage": {
        "items": {"train": {"price": 0.25, "brand": 0.0}, "serve": {"price": 0.375, "brand": 0.0}},
        "queries": {"train": {"surface": 0.5}, "serve": {"surface": 0.875}},
    },
    "windows": {
        name: {"start": "2026-01-01T00:00:00", "end": "2026-01-08T00:00:00"} for name in ("train", "test", "recent")
    },
    "counts": {
        "cold_items": 7,
        "cold_users": 8,
        "train": {"queries": 99, "hard_negatives": 5},
        "test": {"conversions": 1234, "attributed_conversions": 617},
    },
    "labels": {
        "attribution": {"conversions": 10, "click": 5, "impression": 3, "unattributed": 2},
        "weights": {
            "engagement": {
                "n": 20,
                "effective_sample_size": 12.4,
                "histogram": {"edges": [0, 0.5, 1], "counts": [15, 5]},
            }
        },
        "variance": {"item": {"relative_variance": 0.42}},
        "delay": {"days": [0.0, 1.0], "share_reported": [0.1, 0.9], "n": 10, "expected_missing_share": {"test": 0.13}},
    },
}
INDEX = {
    "kind": "ivf",
    "parameters": {"factory": "IVF64,Flat", "setting": "nprobe=8"},
    "num_items": 5000,
    "dim": 65,
    "recall": {"k": 100, "value": 0.9876, "low": 0.98, "high": 0.99, "n": 1000},
    "latency_ms": {"p50": 0.5, "p99": 1.5},
    "queries_per_second": 2000.0,
    "memory_mb": 1.5,
    "met": {"recall": True, "latency": True, "memory": False},
    "targets": {"recall": 0.98, "latency": 20.0, "memory": 1.0},
    "trade_off": [
        {
            "kind": "ivf",
            "factory": "IVF64,Flat",
            "setting": f"nprobe={n}",
            "recall": 0.9 + n / 100,
            "queries_per_second": 9000 / n,
        }
        for n in (1, 8)
    ],
}
TRAINING = {
    "metric": "conversion/recall@100",
    "best_value": 0.4321,
    "best_step": 30,
    "steps": 1234,
    "epochs": 2.5,
    "tower_share": 0.5,
    "share_values": {"1": 0.4321, "0.5": 0.4444},
    "recent": {"queries": 2010, "epochs": 3.0, "steps": 18, "seconds": 3.5},
}
VALIDATION = {
    "expectations": [
        {
            "name": "null_user_id",
            "table": "events",
            "severity": "error",
            "observed": 0.0,
            "maximum": 0.01,
            "minimum": None,
            "success": True,
        },
        {
            "name": "conversion_before_its_click",
            "table": "events",
            "severity": "warning",
            "observed": 0.2,
            "maximum": 0.1,
            "minimum": None,
            "success": False,
        },
    ]
}


# (query, item, event type, weight, attributed): six clicks, of which the heavy ones led to conversions.
POSITIVES = [
    (0, 5, "click", 0.05, True),
    (1, 5, "click", 0.06, True),
    (1, 6, "checkout", 1.0, True),  # of another item
    (2, 5, "click", 0.07, True),
    (2, 5, "checkout", 1.0, False),  # credited to nothing
    (3, 5, "click", 0.95, True),
    (3, 5, "add_to_cart", 1.0, True),
    (4, 5, "click", 0.97, True),
    (4, 5, "checkout", 1.0, True),
    (4, 5, "save", 1.0, True),
    (5, 7, "click", 1.0, True),
]


def write_positives(directory):
    directory.mkdir()
    query, item, kind, weight, attributed = zip(*POSITIVES, strict=True)
    columns = {
        "query": np.array(query, np.int64),
        "item": np.array(item, np.int32),
        "event_type": np.array([EVENT_TYPES.index(name) for name in kind], np.int8),
        "task": np.array([0 if name in CONVERSIONS else 1 for name in kind], np.int8),
        "weight": np.array(weight, np.float32),
        "attributed": np.array(attributed),
    }
    pq.write_table(pa.table(columns), directory / "positives.parquet")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("run")
    dirs = {name: tmp_path / name for name in DIRS}
    for directory in dirs.values():
        directory.mkdir()
    files = {
        "evaluation_dir/metrics.json": METRICS,
        "decision_dir/decision.json": DECISION,
        "features_dir/features.json": FEATURES,
        "index_dir/index.json": INDEX,
        "report_dir/validation.json": VALIDATION,
        "model_dir/metrics.json": TRAINING,
        "model_dir/config.json": {"training": {"batch_size": 7}},
    }
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    write_positives(tmp_path / "features_dir" / "train")
    curve = {"step": [10, 20], "epoch": [0, 0], "split": ["train", "validation"]}
    curve |= {"metric": ["conversion_loss", "conversion/recall@100"], "value": [9.5, 0.4]}
    pq.write_table(pa.table(curve), tmp_path / "model_dir" / "training_curve.parquet")
    return dirs


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    page_path = tmp_path_factory.mktemp("page") / "page.html"
    write_report(**run, page_path=page_path)
    return page_path.read_text()


class _Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.text, self.links, self.headings = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href", "action")]
        self.headings += [tag] if tag in ("h1", "h2") else []

    def handle_data(self, data):
        self.text.append(data)


def _parsed(page):
    parser = _Text()
    parser.feed(page)
    return parser


def test_features_that_serving_lacks_more_often_come_first_and_complete_ones_not_at_all(page):
    text = " ".join(" ".join(_parsed(page).text).split())
    assert "queries.surface 50.0% 87.5% items.price 25.0% 37.5%" in text
    assert "brand" not in text


def test_the_page_loads_nothing_from_elsewhere(page):
    assert all(link.startswith("#") for link in _parsed(page).links)
    assert not re.search(r"@import|<script|url\((?!#)", page)


@pytest.mark.parametrize(
    "shown",
    [
        "Rejected: the candidate failed a check",
        "recall@100 fell by 0.0300 & more",
        "champion v-old",
        "0.4321",
        "[0.4221, 0.4421]",
        "1,234 conversions of 40 queries",
        "-0.0300",
        "✗ failed",
        "? undecided",
        "IVF64,Flat nprobe=8",
        "0.9876 [0.9800, 0.9900], n=1,000",
        "20 → 12",
        "5 (50.0%)",
        "13.0%",
        "1 of 2 checks passed.",
        "conversion before its click",
        "batch_size: 7",
        "0.4321 at step 30 of 1,234",
        "18 steps on 670 queries (epochs: 3)",
        "Trained on 2026-01-01 to 2026-01-08, then with what came in up to 2026-01-08; tested",
        "3 checks: 1 passed, 1 failed, 1 undecided.",
        "surface search (n=432)",
        "✓ recall target of 0.98 kept",
        "✗ memory budget of 1 MB missed",
        "0.3131",
        "81.8%",
        "0.1717[0.1617, 0.1817]",
        "n=6; 95% Wilson intervals",
    ],
)
def test_every_part_shows_its_numbers(page, shown):
    assert shown in " ".join("".join(_parsed(page).text).split())


def test_clicks_are_counted_with_the_conversions_credited_to_them(tmp_path):
    write_positives(tmp_path / "train")
    light, heavy = click_calibration(tmp_path)
    assert (light.clicks, light.conversions, light.mean_weight) == (3, 0, pytest.approx(0.06, abs=1e-6))
    assert (heavy.clicks, heavy.conversions, heavy.share) == (3, 2, pytest.approx(2 / 3))
    # Wilson (1927) by hand: p = 2/3, n = 3, z = 1.959964.
    z, p, n = 1.959964, 2 / 3, 3
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert (heavy.low, heavy.high) == (pytest.approx(centre - half, abs=1e-6), pytest.approx(centre + half, abs=1e-6))


def test_without_clicks_there_is_no_calibration(tmp_path):
    assert click_calibration(tmp_path) == []


def test_a_training_without_anything_to_validate_on_has_its_page(run, tmp_path):
    shutil.copytree(run["model_dir"], tmp_path / "model")
    unvalidated = json.dumps(TRAINING | {"best_value": None, "best_step": -1})
    (tmp_path / "model/metrics.json").write_text(unvalidated)
    write_report(**run | {"model_dir": tmp_path / "model"}, page_path=tmp_path / "page.html")
    assert "nothing to validate on; 1,234 steps" in (tmp_path / "page.html").read_text()


def test_a_share_of_nothing_is_not_told_as_zero(run, tmp_path):
    """A test window without conversions expects no share of them later; one without queries lacks no feature."""
    shutil.copytree(run["features_dir"], tmp_path / "features")
    labels = FEATURES["labels"] | {"delay": FEATURES["labels"]["delay"] | {"expected_missing_share": {"test": None}}}
    coverage = {"queries": {"train": {"surface": 0.5}, "serve": {"surface": None}}}
    features = FEATURES | {"labels": labels, "coverage": coverage}
    (tmp_path / "features" / "features.json").write_text(json.dumps(features))
    write_report(**run | {"features_dir": tmp_path / "features"}, page_path=tmp_path / "page.html")
    text = " ".join(" ".join(_parsed((tmp_path / "page.html").read_text()).text).split())
    assert "test conversions expected to be reported later n/a" in text
    assert "queries.surface 50.0% n/a" in text


def test_a_training_whose_towers_took_no_recent_steps_says_so(run, tmp_path):
    shutil.copytree(run["model_dir"], tmp_path / "model")
    stopped = TRAINING | {"recent": {"queries": 0, "epochs": 0.0, "steps": 0, "memory_fitted": True, "seconds": 1.0}}
    (tmp_path / "model/metrics.json").write_text(json.dumps(stopped))
    write_report(**run | {"model_dir": tmp_path / "model"}, page_path=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "0.5 times: conversion/recall@100 0.4444 on validation, the most of 1, 0.5 times" in text
    assert "the memory alone was fitted anew" in text


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        # Without anything below 0 the scale begins there and ends a tenth beyond the largest number.
        ({"value": 0.5, "threshold": 0.25, "low": 0.4, "high": 0.6}, (0.0, 75.8, 37.9, 60.6, 90.9)),
        # From -0.04 to 0 with a twentieth of that on both sides.
        ({"value": -0.03, "threshold": -0.01, "low": -0.04, "high": -0.02}, (95.5, 27.3, 72.7, 4.5, 50.0)),
    ],
)
def test_bars_stand_where_the_numbers_are(check, expected):
    found = scale(check)
    assert tuple(found[name] for name in ("zero", "value", "threshold", "low", "high")) == pytest.approx(expected, 0.01)


@pytest.mark.parametrize("missing", [{"value": None}, {"threshold": None}, {"value": float("nan")}])
def test_a_check_without_numbers_has_no_bar(missing):
    assert scale({"value": 1.0, "threshold": 2.0, **missing}) is None


def test_the_verdict_stands_before_everything_else(page):
    order = ["Rejected", "<h2>Gate", "Candidate against champion by slice", "Conversion recall on the full catalogue"]
    order += ["Only this model finds them", "<h2>Slices", "<h2>Labels", "<h2>Index", "<h2>Data checks"]
    assert [page.index(words) for words in order] == sorted(page.index(words) for words in order)


def plot_texts(page, label):
    """Everything that is written in the plots of one description."""
    plots = re.findall(rf'<svg [^>]*aria-label="{label}".*?</svg>', page, re.DOTALL)
    return {text.strip() for plot in plots for text in _parsed(plot).text if text.strip()}


@pytest.mark.parametrize("label", ["Recall at k for each model", "Recall by slice"])
def test_plots_call_models_what_the_tables_call_them(page, label):
    found = plot_texts(page, label)
    assert {label_of("candidate"), label_of("champion")} <= found
    assert not {"candidate", "candidate minus champion"} & found
    assert f"<td>{label_of('candidate')}</td>" in page


def test_a_model_has_one_colour_in_all_plots_whichever_others_are_in_them(run, tmp_path):
    """A list by the engagement head is measured before the baselines, and the slices do not draw it."""
    shutil.copytree(run["evaluation_dir"], tmp_path / "evaluation")
    measured = ["candidate", "engagement_only", "popularity"]
    metrics = [_metric(m, 0.2, s, k) for m in measured for s in ("all", "surface=a", "surface=b") for k in (10, 100)]
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    write_evaluation_page(tmp_path / "evaluation", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    curves, slices = (
        re.search(rf'<svg [^>]*aria-label="{label}".*?</svg>', page, re.DOTALL)[0]
        for label in ("Recall at k for each model", "Recall by slice")
    )
    for model, drawn in (("candidate", True), ("popularity", True), ("engagement_only", False)):
        assert color_of(model) in curves
        assert (color_of(model) in slices) == drawn


def test_recall_on_new_items_is_drawn_beside_that_on_all_where_it_was_measured(run, tmp_path):
    shutil.copytree(run["evaluation_dir"], tmp_path / "evaluation")
    for slices in (("all",), ("all", "new_to_user=true")):
        metrics = [_metric("candidate", 0.2, s, k) for s in slices for k in (10, 100)]
        (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
        write_evaluation_page(tmp_path / "evaluation", tmp_path / "page.html")
        assert (tmp_path / "page.html").read_text().count('aria-label="Recall at k for each model') == len(slices)


def test_items_new_to_the_user_and_had_before_are_called_so(page):
    found = plot_texts(page, "Recall by slice")
    assert {"new  (n=1,234)", "had before  (n=1,234)"} <= found
    assert not any(text.startswith(("true", "false")) for text in found)


def test_the_provenance_tells_the_digest_of_every_artifact_and_of_the_snapshot(run, tmp_path):
    shutil.copytree(run["features_dir"], tmp_path / "features")
    write_manifest(tmp_path / "features", kind="features", inputs={"snapshot": "5a" * 32})
    digest = read_manifest(tmp_path / "features", kind="features").digest
    write_report(**run | {"features_dir": tmp_path / "features"}, page_path=tmp_path / "page.html")
    text = " ".join(" ".join(_parsed((tmp_path / "page.html").read_text()).text).split())
    assert f"snapshot digest {'5a' * 32} features digest {digest}" in text


@pytest.mark.parametrize("name", ["under_$5_or_$10", "$x^2$"])
def test_a_surface_whose_name_reads_like_a_formula_is_drawn_as_it_is_called(run, tmp_path, name):
    shutil.copytree(run["evaluation_dir"], tmp_path / "evaluation")
    metrics = [*METRICS, _metric("candidate", 0.25, f"surface={name}")]
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    checks = [*DECISION["checks"], DECISION["checks"][-1] | {"name": f"slice surface={name}"}]
    (tmp_path / "decision.json").write_text(json.dumps(DECISION | {"checks": checks}))
    dirs = run | {"evaluation_dir": tmp_path / "evaluation", "decision_dir": tmp_path}
    write_report(**dirs, page_path=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"{name}  (n=1,234)" in plot_texts(page, "Recall by slice")
    assert f"surface {name.replace('_', ' ')}  (n=432)" in plot_texts(page, 'recall@100 minus[^"]*')


def test_a_surface_with_a_long_name_leaves_room_for_its_plot():
    """Oracle: matplotlib warns where nothing is left of the axes."""
    name = f"https://shop.example/{'category/' * 12}shoes  (n=54)"
    estimate = Estimate(value=0.4, low=0.3, high=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = [
            slice_dots({name: {"candidate": estimate}, "search": {"candidate": estimate}}),
            differences({name: estimate, "search": estimate}, label="recall", margin=-0.01),
        ]
    for svg in drawn:
        assert "https://shop.example/c\u2026" in svg
        assert "category/shoes  (n=54)" in svg


def test_text_from_the_data_is_escaped(page):
    assert "<b>home</b>" not in page
    assert "&lt;b&gt;home&lt;/b&gt;" in page


def test_the_same_artifacts_give_the_same_bytes(run, page, tmp_path):
    write_report(**run, page_path=tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


@pytest.mark.parametrize(("level", "words"), [(0.9, "90%"), (0.999, "99.9%")])
def test_intervals_are_told_with_the_level_that_they_were_made_with(run, tmp_path, level, words):
    shutil.copytree(run["evaluation_dir"], tmp_path / "evaluation")
    write_manifest(tmp_path / "evaluation", kind="evaluation", metadata={"confidence_level": level})
    write_evaluation_page(tmp_path / "evaluation", tmp_path / "page.html")
    assert f"Brackets: {words} bootstrap interval over users" in (tmp_path / "page.html").read_text()


def test_recall_at_cut_offs_of_ones_own_is_on_the_page(run, tmp_path):
    """Without 10, 100 and 1000 all that was measured is shown, tiles and slices at 50, the nearest to 100."""
    shutil.copytree(run["evaluation_dir"], tmp_path / "evaluation")
    metrics = [
        _metric("candidate", value, slice_, k)
        for k, value in ((5, 0.0505), (20, 0.2020), (50, 0.5050))
        for slice_ in ("all", "surface=a", "surface=b")
    ]
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    write_evaluation_page(tmp_path / "evaluation", tmp_path / "page.html")
    text = " ".join(" ".join(_parsed((tmp_path / "page.html").read_text()).text).split())
    for shown in ("0.505 conversion recall@50", "0.0505 [0.0405, 0.0605] 0.2020", "Recall@50 on conversions by part"):
        assert shown in text


def test_a_window_without_conversions_shows_engagement_at_its_cut_offs(run, tmp_path):
    shutil.copytree(run["evaluation_dir"], tmp_path / "evaluation")
    metrics = [_metric("candidate", 0.1 * k, k=k, name="engagement/recall") for k in (2, 4)]
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    write_evaluation_page(tmp_path / "evaluation", tmp_path / "page.html")
    text = " ".join(" ".join(_parsed((tmp_path / "page.html").read_text()).text).split())
    assert "1,234 0.2000 [0.1900, 0.2100] 0.4000 [0.3900, 0.4100]" in text


def test_an_evaluation_has_a_page_of_its_own(run, tmp_path):
    write_evaluation_page(run["evaluation_dir"], tmp_path / "evaluation.html")
    text = (tmp_path / "evaluation.html").read_text()
    assert "0.4321" in text
    assert "Gate" not in text
