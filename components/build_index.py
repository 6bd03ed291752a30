"""Stage ``build_index``: the model's item vectors to the FAISS index that will be served."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def build_index(
    config_json: str,
    features: dsl.Input[dsl.Dataset],
    spec: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    index: dsl.Output[dsl.Artifact],
) -> float:
    """Embed the catalogue, choose and tune the index; its recall against exact search."""
    from pathlib import Path

    from conversion_retrieval.config import stage_config
    from conversion_retrieval.index.stage import build_index as stage

    return stage(
        features_dir=Path(features.path),
        spec_dir=Path(spec.path),
        model_dir=Path(model.path),
        index_dir=Path(index.path),
        config=stage_config(config_json),
    )
