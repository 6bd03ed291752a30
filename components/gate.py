"""Stage ``gate``: every check of the candidate against its thresholds and the champion, and one verdict."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def gate(
    registry_uri: str,
    config_json: str,
    min_recall: float,
    min_conversions: int,
    allow_first: bool,
    run_id: str,
    report: dsl.Input[dsl.Artifact],
    features: dsl.Input[dsl.Dataset],
    spec: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    index: dsl.Input[dsl.Artifact],
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
) -> str:
    """Decide "promote", "reject" or "insufficient_data", with a reason for each check."""
    from pathlib import Path

    from conversion_retrieval import notification
    from conversion_retrieval.config import stage_config
    from conversion_retrieval.registry.stage import gate as stage

    inputs = {
        "report": report,
        "features": features,
        "spec": spec,
        "model": model,
        "evaluation": evaluation,
        "index": index,
    }
    verdict = stage(
        **{f"{name}_dir": Path(artifact.path) for name, artifact in inputs.items()},
        decision_dir=Path(decision.path),
        page_path=Path(page.path),
        config=stage_config(config_json, min_recall=min_recall, min_conversions=min_conversions),
        allow_first=allow_first,
    )
    notification.record_outcome(
        registry_uri, run_id, verdict=verdict, report_uri=page.uri, decision_dir=Path(decision.path)
    )
    return verdict
