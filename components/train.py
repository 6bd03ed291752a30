"""Stage ``train``: examples to a two-tower model, on one device, all GPUs of a node, or several nodes."""

from typing import Dict  # noqa: UP035 - kfp reads this spelling only

from kfp import dsl

from components.images import GPU_IMAGE


@dsl.component(base_image=GPU_IMAGE, install_kfp_package=False)
def train(
    as_of: str,
    config_json: str,
    checkpoint_dir: str,
    num_nodes: int,
    gpus_per_node: str,
    node_selector: Dict[str, str],  # noqa: UP006
    run_id: str,
    features: dsl.Input[dsl.Dataset],
    spec: dsl.Input[dsl.Artifact],
    model: dsl.Output[dsl.Model],
) -> float:
    """Train the towers to the best step, then with recent queries; what was interrupted goes on where it was.

    Returns the best step's validation recall.
    """
    from pathlib import Path

    from conversion_retrieval.config import stage_config
    from conversion_retrieval.training.launch import launch_training as stage

    return stage(
        features_dir=Path(features.path),
        spec_dir=Path(spec.path),
        model_dir=Path(model.path),
        config=stage_config(config_json, as_of=as_of),
        checkpoint_root=Path(checkpoint_dir),
        num_nodes=num_nodes,
        gpus_per_node=int(gpus_per_node),
        node_selector=node_selector,
        run_id=run_id,
    )
