"""The compiled YAML; oracles: the golden files, protobuf's strict parser, a second process."""

import subprocess
import sys

import pytest
import yaml

from conversion_retrieval.errors import UserError
from pipelines import cluster
from pipelines.compile import compile_pipeline, images, placement, version_name
from pipelines.golden_files import GOLDEN, GOLDEN_DIR, write_golden

from . import compiled

DIGEST = "sha256:" + "a" * 64
GPU_PARAMETERS = ("gpu_type", "gpu_count")


def test_the_golden_files_are_what_the_code_compiles_to_byte_for_byte(tmp_path):
    for path in write_golden(tmp_path):
        assert path.read_bytes() == (GOLDEN_DIR / path.name).read_bytes(), f"{path.name} changed: run `make golden`"
    assert {path.name for path in GOLDEN_DIR.iterdir()} == set(GOLDEN)


def test_another_process_with_another_hash_seed_compiles_the_same_bytes(tmp_path):
    command = [sys.executable, "-m", "pipelines", "compile", "--output", str(tmp_path / "other.yaml")]
    subprocess.run(command, check=True, env={"PATH": "", "PYTHONHASHSEED": "7"}, capture_output=True)
    assert (tmp_path / "other.yaml").read_bytes() == (GOLDEN_DIR / "training.yaml").read_bytes()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_golden_files_parse_strictly(name):
    spec, on_kubernetes = compiled.read(GOLDEN_DIR / name)
    assert set(on_kubernetes) == set(spec["deploymentSpec"]["executors"])


def test_strict_parsing_refuses_a_misspelt_field(tmp_path):
    text = (GOLDEN_DIR / "training.yaml").read_text().replace("runAsNonRoot", "runAsNonRoots", 1)
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(Exception, match="runAsNonRoots"):
        compiled.read(tmp_path / "p.yaml")


def test_the_version_is_named_after_the_content():
    first, second = (
        version_name("training", (GOLDEN_DIR / name).read_bytes())
        for name in ("training.yaml", "training-cluster.yaml")
    )
    assert first != second
    assert first == version_name("training", (GOLDEN_DIR / "training.yaml").read_bytes())


@pytest.mark.parametrize(
    "image", ["repo/cpu", "repo/cpu:v1", "repo/cpu:latest", f"repo/cpu@{DIGEST[:-1]}", "@" + DIGEST, ""]
)
def test_an_image_that_is_not_pinned_by_digest_is_refused(image):
    with pytest.raises(UserError, match=r"pinned by digest|both --image-cpu and --image-gpu"):
        placement(image_cpu=image, image_gpu=f"repo/gpu@{DIGEST}")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("cost_center", "my team"),
        ("cost_center", ""),
        ("queue", "gpus/all"),
        ("gpu_type_label", "nvidia.com/gpu/product"),
        ("gpu_type_label", ""),
    ],
)
def test_a_label_that_kubernetes_would_refuse_on_every_pod_is_refused_here(option, text):
    with pytest.raises(UserError, match=f"of a Kubernetes label .* in --{option.replace('_', '-')}"):
        placement(**{option: text})


def test_a_mutable_image_passes_only_when_allowed(tmp_path):
    place = placement(image_cpu="repo/cpu:dev", image_gpu="repo/gpu:dev", allow_mutable_image=True)
    assert images(compile_pipeline(tmp_path / "p.yaml", place).path.read_bytes()) == {"repo/cpu:dev", "repo/gpu:dev"}


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"expected to write .* choose another --output"):
        compile_pipeline(tmp_path / "file" / "p.yaml", placement())


def test_a_pipeline_that_there_is_not_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(UserError, match="out of training, ablation, found 'abaltion'"):
        compile_pipeline(tmp_path / "p.yaml", placement(), pipeline_name="abaltion")


def test_manifests_hold_the_pipeline_and_the_version_that_the_content_names(tmp_path):
    result = compile_pipeline(tmp_path / "p.yaml", placement(), manifests=True)
    assert result.manifests_path is not None
    pipeline, version = yaml.safe_load_all(result.manifests_path.read_text())
    spec, platform = yaml.safe_load_all(result.path.read_text())
    assert (pipeline["apiVersion"], pipeline["kind"]) == ("pipelines.kubeflow.org/v2beta1", "Pipeline")
    assert version["kind"] == "PipelineVersion"
    assert version["metadata"] == {"name": result.version, "namespace": cluster.NAMESPACE}
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"]
    assert version["spec"]["pipelineSpec"] == spec
    assert version["spec"]["platformSpec"] == platform


def test_every_parameter_is_documented_and_only_the_two_addresses_lack_a_default():
    spec, _ = compiled.read(GOLDEN_DIR / "training.yaml")
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert all(parameter.get("description") for parameter in parameters.values())
    required = {name for name, parameter in parameters.items() if "defaultValue" not in parameter}
    assert required == {"data_uri", "registry_uri"}


@pytest.mark.parametrize("name", ["training.yaml", "ablation.yaml"])
def test_type_and_count_of_gpus_are_parameters_of_their_own(name):
    spec, _ = compiled.read(GOLDEN_DIR / name)
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    kinds = {key: (parameters[key]["parameterType"], parameters[key]["defaultValue"]) for key in GPU_PARAMETERS}
    assert kinds == {"gpu_type": ("STRING", ""), "gpu_count": ("STRING", "1")}


@pytest.mark.parametrize("name", ["training.yaml", "training-cluster.yaml", "ablation.yaml"])
def test_the_type_of_gpu_reaches_the_node_selector_of_the_gpu_pods(name):
    """The backend resolves a selector only as a whole, from a parameter: followed here from the form to the pod."""
    spec, on_kubernetes = compiled.read(GOLDEN_DIR / name)
    tasks = compiled.tasks(spec)
    given = tasks["select-gpu-nodes"]["inputs"]["parameters"]
    assert given["gpu_type"]["componentInputParameter"].removeprefix("pipelinechannel--") == "gpu_type"
    assert given["type_label"]["runtimeValue"]["constant"] == cluster.GPU_TYPE_LABEL
    selectors = [config["nodeSelector"] for config in on_kubernetes.values() if "nodeSelector" in config]
    channel = "pipelinechannel--select-gpu-nodes-Output"
    assert selectors
    assert all(s == {"nodeSelectorJson": {"componentInputParameter": channel}} for s in selectors)
    passed = [task.get("inputs", {}).get("parameters", {}).get(channel, {}) for task in tasks.values()]
    (origin,) = [source["taskOutputParameter"] for source in passed if "taskOutputParameter" in source]
    assert origin == {"outputParameterKey": "Output", "producerTask": "select-gpu-nodes"}


def test_the_label_of_gpu_types_is_a_compile_option(tmp_path):
    place = placement(gpu_type_label="nvidia.com/gpu.product")
    spec, _ = compiled.read(compile_pipeline(tmp_path / "p.yaml", place).path)
    label = compiled.tasks(spec)["select-gpu-nodes"]["inputs"]["parameters"]["type_label"]
    assert label == {"runtimeValue": {"constant": "nvidia.com/gpu.product"}}


def test_without_retries_nothing_else_of_the_yaml_changes(tmp_path):
    """Oracle: the golden file with its retry policies cut out."""
    spec, platform = yaml.safe_load_all(compile_pipeline(tmp_path / "p.yaml", placement(retry=False)).path.read_text())
    golden, golden_platform = yaml.safe_load_all((GOLDEN_DIR / "training.yaml").read_text())
    policies = [task.pop("retryPolicy", None) for task in compiled.tasks(golden).values()]
    assert any(policies)
    assert (spec, platform) == (golden, golden_platform)
