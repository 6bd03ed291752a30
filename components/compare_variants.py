"""Stage ``compare_variants`` of the ablation: all variants against the default, one table and one page."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def compare_variants(
    config_json: str,
    results: dsl.Input[list[dsl.Artifact]],
    ablation: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Recall of every variant with intervals over users and seeds, and paired differences to the default."""
    from pathlib import Path

    from conversion_retrieval.config import stage_config
    from conversion_retrieval.evaluation.ablation import compare_variants as stage

    stage(
        variant_dirs=[Path(result.path) for result in results],
        ablation_dir=Path(ablation.path),
        page_path=Path(page.path),
        config=stage_config(config_json),
    )
