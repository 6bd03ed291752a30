"""Stage ``name_variant`` of the ablation: one evaluation under its variant's name and seed."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def name_variant(
    variant: str, seed: str, evaluation: dsl.Input[dsl.Artifact], result: dsl.Output[dsl.Artifact]
) -> None:
    """Keep of the evaluation what the comparison needs."""
    from pathlib import Path

    from conversion_retrieval.evaluation.ablation import write_variant as stage

    stage(evaluation_dir=Path(evaluation.path), variant_dir=Path(result.path), variant=variant, seed=int(seed))
