"""The Dask option's manifests: valid for the operator's own schema, and consistent with the base installation."""

import importlib.util
import json
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from conversion_retrieval.config import parse_config
from pipelines.compile import compile_pipeline, placement
from tests.manifests.rendered import render
from tests.pipelines import compiled

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def documents():
    return render(ROOT / "manifests" / "dask")


def one(documents, kind):
    return next(document for document in documents if document["kind"] == kind)


def operator_definition(name):
    """One of the operator's own definitions, as dask-kubernetes carries them; its Kubernetes parts are references."""
    package = importlib.util.find_spec("dask_kubernetes")
    if package is None:
        pytest.skip("dask-kubernetes, which carries the schema, is not installed")
    path = Path(package.origin).parent / "operator" / "customresources" / "templates.yaml"
    return yaml.safe_load(path.read_text())["definitions"][f"dask.k8s.api.v1.{name}"]


def test_the_cluster_has_the_operators_fields_and_no_others(documents):
    spec = one(documents, "DaskCluster")["spec"]
    parts = [(spec, operator_definition("DaskCluster")["properties"]["spec"])]
    parts += [(spec[role], operator_definition(f"Dask{role.title()}")) for role in ("worker", "scheduler")]
    for found, definition in parts:
        assert set(definition["required"]) <= set(found) <= set(definition["properties"])


def test_the_clusters_pods_and_service_are_valid(documents):
    spec = one(documents, "DaskCluster")["spec"]
    for role in ("worker", "scheduler"):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role}, "spec": spec[role]["spec"]}
        kubernetes_validate.validate(pod, "1.32", strict=True)
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec["scheduler"]["service"]}
    kubernetes_validate.validate(service, "1.32", strict=True)


def test_the_other_documents_are_valid(documents):
    for document in documents:
        if document["kind"] != "DaskCluster":
            kubernetes_validate.validate(document, "1.32", strict=True)


def test_workers_mount_the_claim_that_is_there_and_run_under_an_account_of_the_base(documents):
    cluster = one(documents, "DaskCluster")["spec"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in cluster["worker"]["spec"]["volumes"]]
    assert claims == [one(documents, "PersistentVolumeClaim")["metadata"]["name"]]
    base = render(ROOT / "manifests" / "base")
    accounts = {d["metadata"]["name"] for d in base if d["kind"] == "ServiceAccount"}
    assert {cluster[role]["spec"]["serviceAccountName"] for role in ("worker", "scheduler")} <= accounts


def config_in(path):
    """The JSON that a page shows after ``config_json=``."""
    return json.loads(re.search(r"config_json='(\{.*dask.*\})'", (ROOT / path).read_text())[1])


def test_the_stage_meets_the_workers_on_their_volume_where_the_documented_configuration_says(documents, tmp_path):
    workers = one(documents, "DaskCluster")["spec"]["worker"]["spec"]["containers"][0]
    claim = one(documents, "PersistentVolumeClaim")["metadata"]["name"]
    for name in ("training", "ablation"):
        path = compile_pipeline(tmp_path / f"{name}.yaml", placement(dask=True), pipeline_name=name).path
        _, on_kubernetes = compiled.read(path)
        mounted = {e: c["pvcMount"] for e, c in on_kubernetes.items() if "pvcMount" in c and e != "exec-train"}
        assert list(mounted) == ["exec-build-features"]
        (mount,) = mounted["exec-build-features"]
        assert (mount["constant"], mount["mountPath"]) == (claim, workers["volumeMounts"][0]["mountPath"])
    config = parse_config(config_in("docs/operations.md"))
    assert config.features.shared_dir == mount["mountPath"]


def test_the_documented_address_is_that_of_the_clusters_scheduler(documents):
    cluster = one(documents, "DaskCluster")
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    port = next(p["port"] for p in cluster["spec"]["scheduler"]["service"]["ports"] if p["name"] == "tcp-comm")
    address = f"tcp://{name}-scheduler.{namespace}.svc:{port}"  # the operator calls the service so
    assert parse_config(config_in("docs/operations.md")).features.dask_address == address
    assert address in (ROOT / "manifests" / "dask" / "kustomization.yaml").read_text()


def test_the_network_policy_and_the_service_select_the_clusters_pods(documents):
    cluster = one(documents, "DaskCluster")
    label = {"dask.org/cluster-name": cluster["metadata"]["name"]}
    policy = next(d for d in documents if d["metadata"]["name"] == "allow-dask")
    assert policy["spec"]["podSelector"]["matchLabels"] == label
    assert label.items() <= cluster["spec"]["scheduler"]["service"]["selector"].items()
