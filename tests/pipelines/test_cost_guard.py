"""No GPU waits for a CPU stage: read from the compiled YAML, whatever the code meant to say."""

import pytest

from conversion_retrieval.training import trainjob
from pipelines import cluster
from pipelines.compile import PIPELINES, compile_pipeline, placement
from pipelines.golden_files import GOLDEN, GOLDEN_DIR

from . import compiled

GPU_EXECUTORS = {
    "training.yaml": {"exec-train"},
    "training-cluster.yaml": {"exec-train", "exec-evaluate"},
    "training-nodes.yaml": set(),
    "ablation.yaml": {"exec-train"},
}


@pytest.fixture(params=sorted(GOLDEN))
def golden(request):
    return request.param, *compiled.read(GOLDEN_DIR / request.param)


def asks_for_gpu(container: dict) -> bool:
    return "accelerator" in container.get("resources", {})


def tolerates_gpu(config: dict) -> bool:
    return any(t.get("key") == cluster.GPU_RESOURCE for t in config.get("tolerations", []))


def test_only_the_expected_stages_ask_for_a_gpu(golden):
    name, spec, _ = golden
    executors = spec["deploymentSpec"]["executors"]
    assert {e for e, body in executors.items() if asks_for_gpu(body["container"])} == GPU_EXECUTORS[name]


def test_a_gpu_stage_has_timeout_selector_toleration_shared_memory_and_retries(golden):
    name, spec, on_kubernetes = golden
    by_executor = {c["executorLabel"]: c_name for c_name, c in spec["components"].items() if "executorLabel" in c}
    retries = {t["componentRef"]["name"]: t.get("retryPolicy", {}) for t in compiled.tasks(spec).values()}
    for executor in GPU_EXECUTORS[name]:
        config = on_kubernetes[executor]
        assert int(config["activeDeadlineSeconds"]) > 0
        assert config["nodeSelector"]
        assert tolerates_gpu(config)
        assert [mount["mountPath"] for mount in config["emptyDirMounts"]] == ["/dev/shm"]
        assert retries[by_executor[executor]]["maxRetryCount"] >= 1
        assert retries[by_executor[executor]]["backoffFactor"] > 1


def test_no_attempt_runs_out_of_the_window_in_which_the_backend_retries(golden):
    """Argo measures the backoff's maximum duration from the first attempt's start and ends attempts that pass it."""
    _, spec, on_kubernetes = golden
    executors = {name: c["executorLabel"] for name, c in spec["components"].items() if "executorLabel" in c}
    policies = {
        t["componentRef"]["name"]: t["retryPolicy"] for t in compiled.tasks(spec).values() if "retryPolicy" in t
    }
    assert set(policies) == set(executors)
    for component, policy in policies.items():
        limit = int(on_kubernetes[executors[component]]["activeDeadlineSeconds"])
        retries, first_pause = int(policy["maxRetryCount"]), seconds(policy["backoffDuration"])
        pauses = sum(first_pause * policy["backoffFactor"] ** n for n in range(retries))
        assert seconds(policy["backoffMaxDuration"]) >= (retries + 1) * limit + pauses


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def test_no_other_stage_could_land_on_a_gpu_node(golden):
    name, _, on_kubernetes = golden
    for executor, config in on_kubernetes.items():
        if executor not in GPU_EXECUTORS[name]:
            assert not tolerates_gpu(config)
            assert "nodeSelector" not in config
            (affinity,) = config["nodeAffinity"]
            assert affinity["matchExpressions"][0]["values"] == [cluster.GENERAL_POOL]


def test_every_stage_is_bounded_labelled_and_runs_as_an_ordinary_user(golden):
    _, spec, on_kubernetes = golden
    for executor, body in spec["deploymentSpec"]["executors"].items():
        resources, config = body["container"]["resources"], on_kubernetes[executor]
        for quantity in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
            assert resources[quantity]
        assert resources["memoryRequest"] <= resources["memoryLimit"]
        assert int(config["activeDeadlineSeconds"]) > 0
        assert config["securityContext"]["runAsNonRoot"] is True
        assert config["podMetadata"]["labels"]["conversion-retrieval/cost-center"]
        assert f"exec-{config['podMetadata']['labels']['conversion-retrieval/stage']}" == executor


def test_no_stage_is_cached_because_the_key_does_not_see_the_bytes(golden):
    _, spec, _ = golden
    leaf = {c_name for c_name, c in spec["components"].items() if "executorLabel" in c}
    for task in compiled.tasks(spec).values():
        if task["componentRef"]["name"] in leaf:
            assert not task["cachingOptions"].get("enableCache")


def test_spot_capacity_is_tolerated_and_preferred_only_where_asked_for():
    _, on_kubernetes = compiled.read(GOLDEN_DIR / "training-cluster.yaml")
    spot = {
        e for e, c in on_kubernetes.items() if any(t["key"] == cluster.CAPACITY_LABEL for t in c.get("tolerations", []))
    }
    assert spot == {"exec-train", "exec-evaluate"}
    _, plain = compiled.read(GOLDEN_DIR / "training.yaml")
    assert cluster.CAPACITY_LABEL not in str(plain)


def test_the_cost_center_reaches_every_pod_also_those_of_a_training_on_nodes(tmp_path):
    place = placement(cost_center="ads", train_nodes=2)
    spec, on_kubernetes = compiled.read(compile_pipeline(tmp_path / "p.yaml", place).path)
    labels = {config["podMetadata"]["labels"][trainjob.COST_CENTER_LABEL] for config in on_kubernetes.values()}
    env = {e["name"]: e["value"] for e in spec["deploymentSpec"]["executors"]["exec-train"]["container"]["env"]}
    assert labels == {env["TRAINING_COST_CENTER"]} == {"ads"}


@pytest.mark.parametrize("spot", [True, False])
def test_a_training_on_nodes_is_told_of_spot_capacity_only_where_asked_for(spot, tmp_path):
    spec, _ = compiled.read(compile_pipeline(tmp_path / "p.yaml", placement(spot=spot, train_nodes=2)).path)
    env = {e["name"]: e["value"] for e in spec["deploymentSpec"]["executors"]["exec-train"]["container"]["env"]}
    assert env.get("TRAINING_SPOT") == (f"{cluster.CAPACITY_LABEL}={cluster.SPOT_CAPACITY}" if spot else None)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_an_evaluation_on_the_gpu_pool_asks_for_the_one_gpu_that_it_uses(pipeline, tmp_path):
    place = placement(evaluate_on_gpu=True)
    spec, _ = compiled.read(compile_pipeline(tmp_path / "p.yaml", place, pipeline_name=pipeline).path)
    executors = spec["deploymentSpec"]["executors"]
    asked = {name: executors[f"exec-{name}"]["container"]["resources"]["accelerator"] for name in ("train", "evaluate")}
    assert asked["evaluate"]["resourceCount"] == "1"
    assert asked["train"]["resourceCount"].startswith("{{$.inputs.parameters")  # the parameter gpu_count


def test_a_training_on_nodes_waits_without_a_gpu_on_a_small_pod():
    spec, on_kubernetes = compiled.read(GOLDEN_DIR / "training-nodes.yaml")
    container = spec["deploymentSpec"]["executors"]["exec-train"]["container"]
    assert container["resources"]["cpuLimit"] <= 2
    assert {env["name"]: env["value"] for env in container["env"]}["TRAINING_IMAGE"] == container["image"]
    assert on_kubernetes["exec-train"]["pvcMount"][0]["constant"] == cluster.CHECKPOINT_CLAIM
