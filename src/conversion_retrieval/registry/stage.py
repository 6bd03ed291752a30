"""The last two stages: ``gate`` decides from files alone, ``promote`` carries the decision out."""

import tempfile
from pathlib import Path

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.contracts import new_artifact, open_artifact
from conversion_retrieval.progress import say
from conversion_retrieval.registry.bundle import assemble_bundle
from conversion_retrieval.registry.decision import Verdict, read_decision, write_decision
from conversion_retrieval.registry.gate import decide
from conversion_retrieval.registry.measurements import read_gate_inputs
from conversion_retrieval.registry.registry import Registry


def gate(
    *,
    report_dir: Path,
    features_dir: Path,
    spec_dir: Path,
    model_dir: Path,
    evaluation_dir: Path,
    index_dir: Path,
    decision_dir: Path,
    page_path: Path,
    config: PipelineConfig,
    allow_first: bool = False,
) -> Verdict:
    """Judge the run's candidate; writes the decision and the run's page, returns the verdict.

    Needs neither network nor credentials: the champion was fetched and re-scored by the evaluation. Raises
    ``CorruptArtifactError`` where an artifact is not as it was written.
    """
    inputs = read_gate_inputs(
        report_dir=report_dir,
        features_dir=features_dir,
        spec_dir=spec_dir,
        model_dir=model_dir,
        evaluation_dir=evaluation_dir,
        index_dir=index_dir,
        allow_first=allow_first,
    )
    decision = decide(inputs, config.gate)
    with new_artifact(decision_dir, kind="decision", inputs=inputs.candidate_digests) as working_dir:
        write_decision(working_dir, decision)
    say(decision.reason)
    _write_page(report_dir, features_dir, model_dir, evaluation_dir, index_dir, decision_dir, page_path)
    return decision.verdict


def promote(
    *,
    features_dir: Path,
    spec_dir: Path,
    model_dir: Path,
    evaluation_dir: Path,
    index_dir: Path,
    decision_dir: Path,
    registry_uri: str,
) -> str:
    """Bundle the judged artifacts and make them the champion; returns the version's name.

    Safe to run again after any failure. Raises ``UserError`` for a verdict other than ``promote`` and for artifacts
    other than the judged ones, ``LostRaceError`` where the champion changed since the evaluation.
    """
    open_artifact(decision_dir, kind="decision")
    with tempfile.TemporaryDirectory(prefix="bundle-") as directory:
        bundle_dir = Path(directory) / "bundle"
        assemble_bundle(
            bundle_dir,
            features_dir=features_dir,
            spec_dir=spec_dir,
            model_dir=model_dir,
            evaluation_dir=evaluation_dir,
            index_dir=index_dir,
            decision_dir=decision_dir,
        )
        champion = Registry.open(registry_uri).promote(bundle_dir, read_decision(decision_dir))
    say(f"champion of {registry_uri} is now {champion.version}")
    return champion.version


def _write_page(
    report_dir: Path,
    features_dir: Path,
    model_dir: Path,
    evaluation_dir: Path,
    index_dir: Path,
    decision_dir: Path,
    page_path: Path,
) -> None:
    from conversion_retrieval.evaluation.report import write_report  # matplotlib takes half a second to import

    write_report(
        report_dir=report_dir,
        features_dir=features_dir,
        model_dir=model_dir,
        evaluation_dir=evaluation_dir,
        index_dir=index_dir,
        decision_dir=decision_dir,
        page_path=page_path,
    )
