"""Stage ``build_features``: a snapshot to labelled examples, histories, aggregates and the feature spec."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def build_features(
    as_of: str,
    config_json: str,
    snapshot: dsl.Input[dsl.Dataset],
    features: dsl.Output[dsl.Dataset],
    spec: dsl.Output[dsl.Artifact],
) -> None:
    """Attribute conversions, split by time, and compute every feature as of its query's time."""
    from pathlib import Path

    from conversion_retrieval.config import stage_config
    from conversion_retrieval.features.build import build_features as stage

    stage(
        snapshot_dir=Path(snapshot.path),
        features_dir=Path(features.path),
        spec_dir=Path(spec.path),
        config=stage_config(config_json, as_of=as_of),
    )
