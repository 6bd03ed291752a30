"""Stage ``evaluate``: full-catalogue recall of the candidate, the champion and the baselines on the test window."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def evaluate(
    registry_uri: str,
    config_json: str,
    features: dsl.Input[dsl.Dataset],
    spec: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
) -> float:
    """Rank every test positive in the whole catalogue; the candidate's conversion recall at the gate's k."""
    from pathlib import Path

    from conversion_retrieval.config import stage_config
    from conversion_retrieval.evaluation.stage import evaluate as stage

    config = stage_config(config_json)
    recall = stage(
        features_dir=Path(features.path),
        spec_dir=Path(spec.path),
        model_dir=Path(model.path),
        evaluation_dir=Path(evaluation.path),
        page_path=Path(page.path),
        config=config,
        registry_uri=registry_uri,
    )
    metrics.log_metric(f"conversion_recall_at_{config.gate.k}", recall)
    return recall
