"""A server of Kubeflow Pipelines and a pipeline to submit to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import remote
from pipelines.compile import compile_pipeline, placement
from tests.webhook import Webhook, listening

from .kfp_server import KubeflowPipelines, serving

DIGEST = "sha256:" + "1" * 64
PARAMS = ("data_uri=gs://bucket/data", "registry_uri=gs://bucket/registry")


@pytest.fixture
def server() -> KubeflowPipelines:
    return KubeflowPipelines()


@pytest.fixture
def host(server: KubeflowPipelines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "no-context.json"))
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with serving(server) as address:
        yield address


@pytest.fixture(scope="session")
def pipeline_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = placement(image_cpu=f"example.com/cpu@{DIGEST}", image_gpu=f"example.com/gpu@{DIGEST}")
    return compile_pipeline(tmp_path_factory.mktemp("compiled") / "pipeline.yaml", place).path


@pytest.fixture
def submission(pipeline_path: Path) -> remote.Submission:
    return remote.prepare(pipeline_path, PARAMS)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with listening() as webhook:
        yield webhook
