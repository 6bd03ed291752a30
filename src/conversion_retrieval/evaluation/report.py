"""The HTML report: one self-contained page a run, from the artifacts alone."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from conversion_retrieval import contracts
from conversion_retrieval.evaluation.report_format import fact, read_json
from conversion_retrieval.evaluation.report_gate import gate_context
from conversion_retrieval.evaluation.report_recall import recall_context
from conversion_retrieval.evaluation.report_run import (
    index_context,
    label_context,
    training_context,
    validation_context,
)


def write_evaluation_page(evaluation_dir: Path, page_path: Path) -> None:
    """The page of the evaluation stage alone: recall tables, curve and slices."""
    context = _empty_context() | recall_context(evaluation_dir)
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
    """The page of a whole run: verdict, gate, recall, slices, training, labels, index, data checks, provenance."""
    context = (
        _empty_context()
        | recall_context(evaluation_dir)
        | gate_context(read_json(decision_dir / "decision.json"))
        | training_context(model_dir)
        | label_context(features_dir, model_dir)
        | index_context(read_json(index_dir / "index.json"))
        | validation_context(read_json(report_dir / "validation.json"))
    )
    context["tiles"] = [*context["tiles"][:1], *context["change_tiles"], *context["tiles"][1:]]
    kinds = {"features": features_dir, "model": model_dir, "evaluation": evaluation_dir, "index": index_dir}
    manifests = {
        kind: contracts.read_manifest(path, kind=kind)
        for kind, path in kinds.items()
        if (path / contracts.MANIFEST).exists()
    }
    digests = manifests["features"].inputs if "features" in manifests else {}  # of the snapshot
    digests = {**digests, **{kind: manifest.digest for kind, manifest in manifests.items()}}
    context["provenance"] = [fact(f"{kind} digest", digest) for kind, digest in digests.items()]
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
    lists = ["tiles", "recall_tables", "recall_plots", "task_rows", "coverage_rows", "overlap_rows", "slice_plots"]
    lists += ["training_facts", "training_plots", "label_facts", "label_plots", "index_facts", "index_met"]
    lists += ["slice_checks", "feature_rows", "validation_rows", "provenance"]
    return {
        **{name: [] for name in lists},
        **dict.fromkeys(("decision", "difference_plot", "index_plot")),
        **dict.fromkeys(("subtitle", "protocol", "validation_words", "configuration"), ""),
        "title": "Conversion retrieval: report of a run",
    }
