"""The ablation pipeline: variants and seeds side by side, then one comparison with the default."""

from typing import Any

from kfp import dsl

from components.build_features import build_features
from components.compare_variants import compare_variants
from components.evaluate import evaluate
from components.name_variant import name_variant
from components.plan_variants import plan_variants
from components.select_gpu_nodes import select_gpu_nodes
from components.train import train
from components.validate_data import validate_data
from pipelines import cluster
from pipelines.placement import Placement

PIPELINE_NAME = "conversion-retrieval-ablation"
MAX_PARALLEL_VARIANTS = 4


def ablation_pipeline(place: Placement) -> Any:
    """The pipeline as a kfp graph component, its tasks placed as ``place`` says."""

    @dsl.pipeline(
        name=PIPELINE_NAME, description="Train named variants of the model and compare them with the default."
    )
    def ablation(
        data_uri: str,
        variants: str = "",
        num_seeds: int = 3,
        as_of: str = "",
        config_json: str = "{}",
        gpu_count: str = "1",  # text: the backend reads a number here as nothing
        gpu_type: str = "",
        checkpoint_dir: str = cluster.CHECKPOINT_DIR,
    ) -> None:
        """Train named variants of the model and compare them with the default.

        Args:
            data_uri: Directory or gs:// prefix with events, items and (optional) users as Parquet or CSV.
            variants: Comma-separated names; empty is all of them. The default always runs.
            num_seeds: Training seeds of every variant.
            as_of: End of the newest window as an ISO date or time, UTC; empty is the midnight after the newest event.
            config_json: Configuration overrides as JSON by section, common to all variants.
            gpu_count: GPUs of a training pod.
            gpu_type: Type of GPU as its node label has it, for example nvidia-l4 or nvidia-h100-80gb; empty is any.
            checkpoint_dir: Where training keeps checkpoints between attempts; on the cluster a mounted claim.

        """
        select_gpu_nodes_task = select_gpu_nodes(
            gpu_type=gpu_type,
            gpu_count=gpu_count,
            type_label=place.gpu_type_label,
            pool={cluster.POOL_LABEL: cluster.GPU_POOL},
        )
        place.on_cpu(select_gpu_nodes_task, "select_gpu_nodes")
        on_gpu = {"gpu_count": gpu_count, "node_selector": select_gpu_nodes_task.output}

        plan_variants_task = plan_variants(variants=variants, num_seeds=num_seeds, as_of=as_of, config_json=config_json)
        place.on_cpu(plan_variants_task, "plan_variants")
        validate_data_task = validate_data(
            data_uri=data_uri,
            registry_uri="",
            as_of=as_of,
            config_json=config_json,
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        )
        place.on_cpu(validate_data_task, "validate_data")

        with dsl.If(validate_data_task.outputs["Output"] == "valid", name="data-is-valid"):
            with dsl.ParallelFor(plan_variants_task.output, parallelism=MAX_PARALLEL_VARIANTS) as run:
                # Labels differ between variants, so each builds its own features; on the CPU pool that is cheap.
                build_features_task = build_features(
                    as_of=as_of, config_json=run.config_json, snapshot=validate_data_task.outputs["snapshot"]
                )
                place.build_features(build_features_task)
                built = {name: build_features_task.outputs[name] for name in ("features", "spec")}
                train_task = train(
                    as_of=as_of,
                    config_json=run.config_json,
                    checkpoint_dir=checkpoint_dir,
                    num_nodes=place.train_nodes,
                    gpus_per_node=gpu_count,
                    node_selector=select_gpu_nodes_task.output,
                    run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
                    **built,
                )
                place.train(train_task, **on_gpu)
                evaluate_task = evaluate(
                    registry_uri="", config_json=run.config_json, model=train_task.outputs["model"], **built
                )
                if place.evaluate_on_gpu:
                    place.on_gpu(evaluate_task, "evaluate", **on_gpu | {"gpu_count": 1})  # it uses one
                else:
                    place.on_cpu(evaluate_task, "evaluate")
                name_variant_task = name_variant(
                    variant=run.variant, seed=run.seed, evaluation=evaluate_task.outputs["evaluation"]
                )
                place.on_cpu(name_variant_task, "name_variant")
            compare_variants_task = compare_variants(
                config_json=config_json, results=dsl.Collected(name_variant_task.outputs["result"])
            )
            place.on_cpu(compare_variants_task, "compare_variants")

    return ablation
