"""Reading a compiled pipeline strictly: unknown fields and wrong types raise."""

from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The PipelineSpec's executors and the platform's, by name, after parsing both documents strictly."""
    spec, platform = yaml.safe_load_all(path.read_text())
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    on_kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for config in on_kubernetes.values():
        json_format.ParseDict(config, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    return spec, on_kubernetes


def tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task of the pipeline and its groups by name."""
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    return {name: task for dag in dags for name, task in dag["tasks"].items()}
