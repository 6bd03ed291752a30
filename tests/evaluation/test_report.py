"""The report shows what the artifacts say, whole in one file; oracles: the numbers put into hand-made artifacts."""

import json
import re
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conversion_retrieval.evaluation.report import write_evaluation_page, write_report

DIRS = ("report_dir", "features_dir", "model_dir", "evaluation_dir", "index_dir", "decision_dir")


def _metric(model, value, slice_="all", k=100):
    return {
        "name": f"conversion/recall@{k}",
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
    _metric("candidate", 0.5, "surface=search"),
    _metric("candidate", 0.6, "surface=<b>home</b>"),
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
    ],
}
FEATURES = {
    "windows": {name: {"start": "2026-01-01T00:00:00", "end": "2026-01-08T00:00:00"} for name in ("train", "test")},
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
    "trade_off": [
        {"factory": "IVF64,Flat", "setting": f"nprobe={n}", "recall": 0.9 + n / 100, "queries_per_second": 9000 / n}
        for n in (1, 8)
    ],
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
        "model_dir/metrics.json": {"best_step": 30},
        "model_dir/config.json": {"training": {"batch_size": 7}},
    }
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
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
    ],
)
def test_every_part_shows_its_numbers(page, shown):
    assert shown in " ".join("".join(_parsed(page).text).split())


def test_the_verdict_stands_before_everything_else(page):
    assert page.index("Rejected") < page.index("Conversion recall on the full catalogue")


def test_text_from_the_data_is_escaped(page):
    assert "<b>home</b>" not in page
    assert "&lt;b&gt;home&lt;/b&gt;" in page


def test_the_same_artifacts_give_the_same_bytes(run, page, tmp_path):
    write_report(**run, page_path=tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_an_evaluation_has_a_page_of_its_own(run, tmp_path):
    write_evaluation_page(run["evaluation_dir"], tmp_path / "evaluation.html")
    text = (tmp_path / "evaluation.html").read_text()
    assert "0.4321" in text
    assert "Gate" not in text
