"""The training pipeline: validate, build features, train, evaluate and index side by side, gate, promote."""

from typing import Any

from kfp import dsl, kubernetes

from components.build_features import build_features
from components.build_index import build_index
from components.evaluate import evaluate
from components.gate import gate
from components.notify import notify
from components.promote import promote
from components.select_gpu_nodes import select_gpu_nodes
from components.train import train
from components.validate_data import validate_data
from pipelines import cluster
from pipelines.placement import Placement

PIPELINE_NAME = "conversion-retrieval-training"
STAGES = ("validate_data", "build_features", "train", "evaluate", "build_index", "gate", "promote", "notify")


def training_pipeline(place: Placement) -> Any:
    """The pipeline as a kfp graph component, its tasks placed as ``place`` says."""

    @dsl.pipeline(
        name=PIPELINE_NAME,
        description="From event logs and a catalogue to a gated, promoted retrieval bundle.",
    )
    def training(
        data_uri: str,
        registry_uri: str,
        as_of: str = "",
        allow_first: bool = False,
        config_json: str = "{}",
        min_recall: float = -1.0,
        min_conversions: int = -1,
        gpu_count: str = "1",  # text: the backend reads a number here as nothing
        gpu_type: str = "",
        checkpoint_dir: str = cluster.CHECKPOINT_DIR,
        notification_url: str = "",
    ) -> None:
        """From event logs and a catalogue to a gated, promoted retrieval bundle.

        Args:
            data_uri: Directory or gs:// prefix with events, items and (optional) users as Parquet or CSV.
            registry_uri: Directory or gs:// prefix of bundle versions and the champion pointer.
            as_of: End of the newest window as an ISO date or time, UTC; empty is the midnight after the newest event.
            allow_first: Promote although the registry has no champion, or none that these features can measure.
            config_json: Configuration overrides as JSON by section, for example {"training": {"max_epochs": 5}}.
            min_recall: Absolute floor of conversion recall at the gate's k; negative is as configured.
            min_conversions: Test conversions below which the verdict is insufficient_data; negative is as configured.
            gpu_count: GPUs of a training pod; with several, torchrun starts a process for each.
            gpu_type: Type of GPU as its node label has it, for example nvidia-l4 or nvidia-h100-80gb; empty is any.
            checkpoint_dir: Where training keeps checkpoints between attempts; on the cluster a mounted claim.
            notification_url: Webhook told how the run ended; empty takes the cluster's secret, if any.

        """
        run = dsl.PIPELINE_JOB_ID_PLACEHOLDER

        notify_task = notify(notification_url=notification_url, registry_uri=registry_uri, run_id=run)
        place.on_cpu(notify_task, "notify")
        kubernetes.use_secret_as_env(
            notify_task,
            cluster.NOTIFICATION_SECRET,
            {cluster.NOTIFICATION_SECRET_KEY: "NOTIFICATION_URL"},
            optional=True,
        )

        with dsl.ExitHandler(notify_task, name="run"):
            select_gpu_nodes_task = select_gpu_nodes(
                gpu_type=gpu_type,
                gpu_count=gpu_count,
                type_label=place.gpu_type_label,
                pool={cluster.POOL_LABEL: cluster.GPU_POOL},
            )
            place.on_cpu(select_gpu_nodes_task, "select_gpu_nodes")
            on_gpu = {"gpu_count": gpu_count, "node_selector": select_gpu_nodes_task.output}

            validate_data_task = validate_data(
                data_uri=data_uri,
                registry_uri=registry_uri,
                as_of=as_of,
                config_json=config_json,
                min_recall=min_recall,
                min_conversions=min_conversions,
                run_id=run,
            )
            place.on_cpu(validate_data_task, "validate_data")

            with dsl.If(validate_data_task.outputs["Output"] == "valid", name="data-is-valid"):
                build_features_task = build_features(
                    as_of=as_of, config_json=config_json, snapshot=validate_data_task.outputs["snapshot"]
                )
                place.build_features(build_features_task)
                built = {name: build_features_task.outputs[name] for name in ("features", "spec")}

                train_task = train(
                    as_of=as_of,
                    config_json=config_json,
                    checkpoint_dir=checkpoint_dir,
                    num_nodes=place.train_nodes,
                    gpus_per_node=gpu_count,
                    node_selector=select_gpu_nodes_task.output,
                    run_id=run,
                    **built,
                )
                place.train(train_task, **on_gpu)
                built["model"] = train_task.outputs["model"]

                evaluate_task = evaluate(registry_uri=registry_uri, config_json=config_json, **built)
                if place.evaluate_on_gpu:
                    place.on_gpu(evaluate_task, "evaluate", **on_gpu | {"gpu_count": 1})  # it uses one
                else:
                    place.on_cpu(evaluate_task, "evaluate")

                build_index_task = build_index(config_json=config_json, **built)
                place.on_cpu(build_index_task, "build_index")
                built["evaluation"] = evaluate_task.outputs["evaluation"]
                built["index"] = build_index_task.outputs["index"]

                gate_task = gate(
                    registry_uri=registry_uri,
                    config_json=config_json,
                    min_recall=min_recall,
                    min_conversions=min_conversions,
                    allow_first=allow_first,
                    run_id=run,
                    report=validate_data_task.outputs["report"],
                    **built,
                )
                place.on_cpu(gate_task, "gate")

                with dsl.If(gate_task.outputs["Output"] == "promote", name="verdict-is-promote"):
                    promote_task = promote(
                        registry_uri=registry_uri, run_id=run, decision=gate_task.outputs["decision"], **built
                    )
                    place.on_cpu(promote_task, "promote")

    return training
