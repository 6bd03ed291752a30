"""What the GPU image would hold over its base: its pip steps replayed in an empty environment, training run in it.

The base image's torch, built for CUDA, is stood in for by this environment's torch of the same version, alone: all that
torch requires must come from the image's lock, as it must there.
"""

import json
import os
import sysconfig
from pathlib import Path

import pytest
import torch
from kfp import dsl, local

from components.build_features import build_features
from components.train import train
from components.validate_data import validate_data
from conversion_retrieval.config import changed_values, load_config
from conversion_retrieval.contracts import open_artifact
from tests.worlds import QUICK_RUN, tiny_world

from .replay import replay
from .test_dockerfiles import arguments

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
TORCH = ("torch", "torchgen", "functorch")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """torch and nothing else of this environment, as a directory of links."""
    directory = tmp_path_factory.mktemp("base")
    site_dir = Path(sysconfig.get_path("purelib"))
    for path in (*(site_dir / name for name in TORCH), *site_dir.glob("torch-*.dist-info")):
        if path.exists():
            (directory / path.name).symlink_to(path)
    return directory


@pytest.fixture(scope="module")
def image_python(wheel_path, base, tmp_path_factory) -> Path:
    return replay("gpu", wheel_path.parent, tmp_path_factory.mktemp("image"), base=base)


def test_the_stand_in_is_the_torch_of_the_base_image():
    (image,) = arguments("gpu", "FROM")
    assert image.startswith(f"pytorch/pytorch:{torch.__version__.partition('+')[0]}-cuda")


def test_training_runs_in_what_the_image_holds(image_python, tmp_path, monkeypatch):
    @dsl.pipeline(name="replay")
    def until_trained(data_uri: str, config_json: str, checkpoint_dir: str) -> None:
        common = {"as_of": "", "config_json": config_json}
        validated = validate_data(data_uri=data_uri, registry_uri="", run_id="r", **common)
        built = build_features(snapshot=validated.outputs["snapshot"], **common)
        train(
            checkpoint_dir=checkpoint_dir,
            num_nodes=1,
            gpus_per_node="1",
            node_selector={},
            run_id="r",
            features=built.outputs["features"],
            spec=built.outputs["spec"],
            **common,
        )

    tiny_world(tmp_path / "data")
    monkeypatch.setenv("PATH", os.pathsep.join((str(image_python.parent), "/usr/bin", "/bin")))
    monkeypatch.chdir(tmp_path)
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "local"))
    until_trained(
        data_uri=str(tmp_path / "data"),
        config_json=json.dumps(changed_values(load_config(None, QUICK_RUN))),
        checkpoint_dir=str(tmp_path / "checkpoints"),
    )
    (model_dir,) = tmp_path.glob("local/replay-*/train/model")
    assert open_artifact(model_dir, kind="model").digest
