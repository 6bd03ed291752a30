"""Stage ``plan_variants`` of the ablation: the variants and seeds to train, with each one's configuration."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def plan_variants(variants: str, num_seeds: int, as_of: str, config_json: str) -> list:  # type: ignore[type-arg]
    """List what to run; ``variants`` are comma-separated names, empty for all."""
    from conversion_retrieval.config import stage_config
    from conversion_retrieval.evaluation.variants import plan_variants as stage
    from conversion_retrieval.evaluation.variants import split_names

    return stage(stage_config(config_json, as_of=as_of), split_names(variants), num_seeds=int(num_seeds))
