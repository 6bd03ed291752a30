"""Stage ``promote``: the candidate's bundle becomes an immutable version and the registry's champion."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def promote(
    registry_uri: str,
    run_id: str,
    features: dsl.Input[dsl.Dataset],
    spec: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    index: dsl.Input[dsl.Artifact],
    decision: dsl.Input[dsl.Artifact],
) -> str:
    """Write the version, swap the champion pointer; the version's name."""
    from pathlib import Path

    from conversion_retrieval import notification
    from conversion_retrieval.registry.stage import promote as stage

    version = stage(
        features_dir=Path(features.path),
        spec_dir=Path(spec.path),
        model_dir=Path(model.path),
        evaluation_dir=Path(evaluation.path),
        index_dir=Path(index.path),
        decision_dir=Path(decision.path),
        registry_uri=registry_uri,
    )
    notification.record_promotion(registry_uri, run_id, version=version)
    return version
