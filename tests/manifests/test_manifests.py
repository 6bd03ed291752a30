"""The rendered manifests; oracles: the Kubernetes schemas, the projects' own models, and the compiled pipeline."""

import copy
import shutil
import subprocess
from functools import reduce
from operator import getitem

import jsonschema
import kubernetes_validate
import pytest

from conversion_retrieval.training import launch
from conversion_retrieval.training.gpu_nodes import check_gpu_type
from pipelines import cluster
from pipelines.compile import compile_pipeline, placement
from pipelines.golden_files import GOLDEN_DIR
from tests.pipelines import compiled

from .rendered import MANIFESTS, ROOT, names, render, render_with, walk
from .schemas import validate


@pytest.fixture(scope="module")
def prod():
    return render(MANIFESTS / "overlays" / "prod")


@pytest.fixture(scope="module")
def dev():
    return render(MANIFESTS / "overlays" / "dev")


@pytest.fixture(scope="module")
def kserve_overlay(tmp_path_factory):
    directory = tmp_path_factory.mktemp("overlay")
    return render_with(directory, resources=["overlays/dev"], components=["inferenceservice"])


@pytest.fixture(scope="module")
def single_user(tmp_path_factory):
    return render_with(tmp_path_factory.mktemp("overlay"), resources=["overlays/dev"], components=["single_user"])


@pytest.fixture(scope="module")
def karpenter():
    return render(MANIFESTS / "karpenter")


@pytest.fixture(scope="module")
def dask():
    return render(MANIFESTS / "dask")


@pytest.fixture(scope="module")
def executors():
    """Every executor of every golden file: (container, Kubernetes configuration)."""
    found = []
    for path in GOLDEN_DIR.iterdir():
        spec, on_kubernetes = compiled.read(path)
        bodies = spec["deploymentSpec"]["executors"]
        found += [(bodies[name]["container"], config) for name, config in on_kubernetes.items()]
    return found


@pytest.mark.parametrize("overlay", ["prod", "dev", "kserve_overlay", "single_user", "karpenter", "dask"])
def test_every_rendered_document_is_valid(overlay, request):
    documents = request.getfixturevalue(overlay)
    assert documents
    for document in documents:
        validate(document)


# One field of every kind, where a typing error would otherwise be found by the cluster or by nobody.
TYPOS = [
    ("Deployment", ("spec", "template", "spec"), "serviceAcountName"),
    ("ServiceAccount", (), "automountServiceAccountTokens"),
    ("Role", (), "rule"),
    ("NetworkPolicy", ("spec",), "podselector"),
    ("ResourceQuota", ("spec",), "hards"),
    ("PodDisruptionBudget", ("spec",), "minavailable"),
    ("PriorityClass", (), "preemptPolicy"),
    ("ClusterTrainingRuntime", ("spec",), "mlpolicy"),
    ("InferenceService", ("spec", "predictor"), "minReplica"),
    ("ContainerNodePool", ("spec", "nodeConfig"), "guestAccelerators"),
    ("IAMServiceAccount", ("spec",), "displayname"),
    ("IAMPolicyMember", ("spec",), "roles"),
    ("NodePool", ("spec", "disruption"), "consolidationpolicy"),
    ("ResourceFlavor", ("spec",), "nodelabels"),
    ("ClusterQueue", ("spec",), "cohorts"),
    ("LocalQueue", ("spec",), "clusterqueue"),
    ("DaskCluster", ("spec", "worker"), "replica"),
]


@pytest.mark.parametrize(("kind", "path", "typo"), TYPOS)
def test_validation_refuses_a_misspelt_field_of_every_kind(kind, path, typo, prod, kserve_overlay, karpenter, dask):
    document = copy.deepcopy(next(d for d in (*prod, *kserve_overlay, *karpenter, *dask) if d["kind"] == kind))
    validate(document)
    reduce(getitem, path, document)[typo] = "x"
    with pytest.raises((ValueError, AssertionError, kubernetes_validate.ValidationError, jsonschema.ValidationError)):
        validate(document)


def test_every_custom_kind_is_validated_against_a_misspelt_field(prod, kserve_overlay, karpenter, dask):
    custom = {d["kind"] for d in (*prod, *kserve_overlay, *karpenter, *dask) if not is_kubernetes_own(d["apiVersion"])}
    assert custom <= {kind for kind, _, _ in TYPOS}


def is_kubernetes_own(api_version: str) -> bool:
    group, _, version = api_version.rpartition("/")
    return not group or "." not in group or (group.endswith(".k8s.io") and version == "v1")


def test_the_types_of_gpu_on_the_node_pools_are_values_that_the_parameter_takes(prod):
    pools = [d["spec"]["nodeConfig"] for d in prod if d["kind"] == "ContainerNodePool"]
    offered = {a["type"] for pool in pools for a in pool.get("guestAccelerator", [])}
    assert offered
    for gpu_type in offered:
        check_gpu_type(gpu_type)


def test_no_document_is_there_twice(prod):
    keys = [(d["apiVersion"], d["kind"], d["metadata"]["name"]) for d in prod]
    assert len(keys) == len(set(keys))


def test_everything_with_a_namespace_is_in_the_pipelines_namespace(prod):
    assert names(prod, "Namespace") == {cluster.NAMESPACE}
    assert {d["metadata"]["namespace"] for d in prod if "namespace" in d["metadata"]} == {cluster.NAMESPACE}


def test_the_service_account_that_runs_use_exists_and_every_account_is_used(prod):
    used = {m["serviceAccountName"] for d in prod for m in walk(d) if "serviceAccountName" in m}
    assert names(prod, "ServiceAccount") == used | {cluster.SERVICE_ACCOUNT}


def test_role_bindings_bind_roles_and_accounts_that_exist(prod):
    for binding in (d for d in prod if d["kind"] in {"RoleBinding", "ClusterRoleBinding"}):
        assert binding["roleRef"]["name"] in names(prod, binding["roleRef"]["kind"])
        assert {s["name"] for s in binding["subjects"]} <= names(prod, "ServiceAccount")


def test_roles_grant_no_wildcard_no_secrets_and_no_escalation(prod):
    for role in (d for d in prod if d["kind"] in {"Role", "ClusterRole"}):
        for rule in role["rules"]:
            assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
            assert not {"pods/exec", "roles", "rolebindings"} & set(rule["resources"])
            if "secrets" in rule["resources"]:  # that of the artifact store, which the launcher reads as the pod
                assert (rule["resourceNames"], rule["verbs"]) == (["mlpipeline-minio-artifact"], ["get"])


def test_the_role_lets_the_training_sdk_look_for_its_runtime_in_both_places(prod):
    """The SDK asks for the namespace's runtime first, and goes on to the cluster's after a "not found" alone."""
    granted = {
        resource
        for role in prod
        if role["kind"] in {"Role", "ClusterRole"}
        for rule in role["rules"]
        if "get" in rule["verbs"]
        for resource in rule["resources"]
    }
    assert {"trainjobs", "trainingruntimes", "clustertrainingruntimes"} <= granted


def test_names_are_resolved_on_clusters_whose_resolver_is_no_pod(prod):
    (policy,) = [d for d in prod if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] == "allow-dns"]
    blocks = {to["ipBlock"]["cidr"] for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to}
    assert blocks == {"169.254.169.254/32", "169.254.20.10/32"}
    assert all({port["port"] for port in rule["ports"]} == {53} for rule in policy["spec"]["egress"])


# Kubernetes tells a pod to end and its Service to leave it out at the same time, and does not wait for the Service.
SECONDS_UNTIL_NO_REQUEST_COMES = 5
KUBERNETES_GRACE_SECONDS = 30


def test_a_server_that_is_to_end_listens_until_no_more_requests_are_sent_to_it(prod, kserve_overlay):
    (deployment,) = [d for d in prod if d["kind"] == "Deployment"]
    (service,) = [d for d in kserve_overlay if d["kind"] == "InferenceService"]
    for pod in (deployment["spec"]["template"]["spec"], service["spec"]["predictor"]):
        (container,) = pod["containers"]
        command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep"
        grace = pod.get("terminationGracePeriodSeconds", KUBERNETES_GRACE_SECONDS)
        assert SECONDS_UNTIL_NO_REQUEST_COMES <= float(seconds) < grace / 2


@pytest.mark.parametrize("overlay", ["prod", "dev"])
def test_applying_an_overlay_leaves_secrets_alone(overlay, request):
    assert not names(request.getfixturevalue(overlay), "Secret")


def test_the_secret_that_the_pipeline_names_may_be_absent_and_is_the_one_that_operators_are_told_to_create(executors):
    secrets = [secret for _, config in executors for secret in config.get("secretAsEnv", [])]
    assert secrets
    assert all(secret["optional"] for secret in secrets)
    ((name, key),) = {(s["secretName"], k["secretKey"]) for s in secrets for k in s["keyToEnv"]}
    told = f"kubectl -n {cluster.NAMESPACE} create secret generic {name} --from-literal={key}="
    assert told in (ROOT / "docs" / "operations.md").read_text()


def test_the_claims_that_the_pipeline_and_the_runtime_mount_exist(prod, executors):
    by_pipeline = {mount["constant"] for _, config in executors for mount in config.get("pvcMount", [])}
    by_runtime = {m["claimName"] for d in prod for m in walk(d) if "claimName" in m}
    assert names(prod, "PersistentVolumeClaim") == by_pipeline == by_runtime


def test_the_checkpoint_path_is_the_same_in_pipeline_and_runtime(prod, executors):
    in_pipeline = {mount["mountPath"] for _, config in executors for mount in config.get("pvcMount", [])}
    runtime = next(d for d in prod if d["kind"] == "ClusterTrainingRuntime")
    mounts = {m["mountPath"] for m in walk(runtime) if m.get("name") == "checkpoints" and "mountPath" in m}
    assert mounts == in_pipeline == {cluster.CHECKPOINT_DIR}


def preparing_jobs(documents):
    """(claim, path, pod) of every Job that hands a volume over."""
    for job in (d for d in documents if d["kind"] == "Job"):
        pod = job["spec"]["template"]["spec"]
        (volume,) = pod["volumes"]
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        assert mount["name"] == volume["name"]
        yield volume["persistentVolumeClaim"]["claimName"], mount["mountPath"], pod


def test_a_job_hands_every_volume_that_a_stage_mounts_to_the_group_of_the_stages(prod, dask, tmp_path):
    """A stage's own pod cannot: kfp has no fsGroup, and a fresh volume belongs to root."""
    path = compile_pipeline(tmp_path / "p.yaml", placement(dask=True)).path
    _, on_kubernetes = compiled.read(path)
    mounts = [mount for config in on_kubernetes.values() for mount in config.get("pvcMount", [])]
    jobs = [*preparing_jobs(prod), *preparing_jobs(dask)]
    assert {(claim, path) for claim, path, _ in jobs} == {(m["constant"], m["mountPath"]) for m in mounts}
    groups = {int(config["securityContext"]["runAsGroup"]) for config in on_kubernetes.values()}
    assert {pod["securityContext"]["fsGroup"] for *_, pod in jobs} == groups


def test_the_job_that_training_and_the_operations_page_name_is_there(prod):
    assert names(prod, "Job") == {launch.PREPARING_JOB}
    assert launch.PREPARING_JOB in (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("writable", [True, False])
def test_the_job_fails_where_it_cannot_write_and_leaves_nothing_where_it_can(writable, prod, dask, tmp_path):
    for claim, path, pod in (*preparing_jobs(prod), *preparing_jobs(dask)):
        volume = tmp_path / claim
        if writable:  # root may write anywhere, but nobody to a directory that is not there
            volume.mkdir()
        container = pod["containers"][0]
        *command, last = [*container["command"], *container["args"]]
        assert last == path
        done = subprocess.run([*command, str(volume)], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == writable, done.stderr
        assert ("expected group" in done.stdout) != writable
        assert not writable or not list(volume.iterdir())


def test_every_config_map_key_that_is_read_exists_and_every_config_map_is_read(prod):
    read = {
        (m["configMapKeyRef"]["name"], m["configMapKeyRef"]["key"])
        for d in prod
        for m in walk(d)
        if "configMapKeyRef" in m
    }
    there = {(d["metadata"]["name"], key) for d in prod if d["kind"] == "ConfigMap" for key in d["data"]}
    assert read == there


def test_every_priority_class_exists_and_is_used(prod):
    used = {m["priorityClassName"] for d in prod for m in walk(d) if "priorityClassName" in m}
    assert names(prod, "PriorityClass") == used


def gke_pools(documents):
    effects = {"NO_SCHEDULE": "NoSchedule"}
    for pool in (d["spec"]["nodeConfig"] for d in documents if d["kind"] == "ContainerNodePool"):
        taints = {(t["key"], t["value"], effects[t["effect"]]) for t in pool.get("taint", [])}
        yield pool["labels"], taints


def karpenter_pools(documents):
    for pool in (d["spec"]["template"] for d in documents):
        taints = {(t["key"], t["value"], t["effect"]) for t in pool["spec"].get("taints", [])}
        yield pool["metadata"]["labels"], taints


def tolerated(taint, tolerations) -> bool:
    key, value, effect = taint
    return any(
        t["key"] == key and t["effect"] == effect and (t["operator"] == "Exists" or t["value"] == value)
        for t in tolerations
    )


@pytest.mark.parametrize("provider", ["gke", "karpenter"])
def test_every_label_and_taint_that_the_pipeline_names_is_on_a_node_pool_and_the_other_way_round(
    provider, prod, karpenter, executors
):
    pools = list(gke_pools(prod) if provider == "gke" else karpenter_pools(karpenter))
    labels = {item for pool_labels, _ in pools for item in pool_labels.items()}
    taints = {taint for _, pool_taints in pools for taint in pool_taints}
    expressions = [a["matchExpressions"][0] for _, c in executors for a in c.get("nodeAffinity", [])]
    wanted = {(e["key"], value) for e in expressions for value in e["values"]}
    spec, _ = compiled.read(GOLDEN_DIR / "training.yaml")
    selected = compiled.tasks(spec)["select-gpu-nodes"]["inputs"]["parameters"]
    wanted |= set(selected["pool"]["runtimeValue"]["constant"].items())
    assert labels == wanted
    tolerations = [t for _, config in executors for t in config.get("tolerations", [])]
    assert all(tolerated(taint, tolerations) for taint in taints)
    assert all(any(tolerated(taint, [t]) for taint in taints) for t in tolerations)


@pytest.mark.parametrize("provider", ["gke", "karpenter"])
def test_every_gpu_pool_is_tainted_so_that_nothing_else_lands_there(provider, prod, karpenter):
    for labels, taints in gke_pools(prod) if provider == "gke" else karpenter_pools(karpenter):
        is_gpu = labels[cluster.POOL_LABEL] == cluster.GPU_POOL
        assert (cluster.GPU_RESOURCE in {key for key, _, _ in taints}) == is_gpu


def test_the_training_runtime_is_the_one_that_the_train_stage_starts(prod):
    from conversion_retrieval.training import trainjob

    assert names(prod, "ClusterTrainingRuntime") == {trainjob.RUNTIME} == {cluster.TRAINING_RUNTIME}
    runtime = next(d for d in prod if d["kind"] == "ClusterTrainingRuntime")
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert job["name"] == trainjob.REPLICATED_JOB
    pod = job["template"]["spec"]["template"]["spec"]
    (node,) = pod["containers"]
    assert node["command"] == ["torchrun", "-m", "conversion_retrieval.training.worker"]
    assert pod["nodeSelector"] == {cluster.POOL_LABEL: cluster.GPU_POOL}
    refused = {t for _, taints in gke_pools(prod) for t in taints if not tolerated(t, pod["tolerations"])}
    assert {key for key, *_ in refused} == {cluster.CAPACITY_LABEL}  # only `compile --spot` adds that one


def test_the_queue_that_the_pipeline_names_leads_to_gpus_on_the_gpu_pool(prod, executors):
    labels = {config["podMetadata"]["labels"].get(cluster.QUEUE_LABEL) for _, config in executors} - {None}
    in_env = {
        e["value"] for container, _ in executors for e in container.get("env", []) if e["name"] == "TRAINING_QUEUE"
    }
    (queue,) = [d for d in prod if d["kind"] == "LocalQueue"]
    assert labels | in_env == {queue["metadata"]["name"]}
    (cluster_queue,) = [d for d in prod if d["kind"] == "ClusterQueue"]
    assert queue["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
    flavors = {f["name"] for group in cluster_queue["spec"]["resourceGroups"] for f in group["flavors"]}
    assert flavors == names(prod, "ResourceFlavor")


def test_pods_and_stages_run_as_the_same_ordinary_user(prod, executors):
    users = {m["runAsUser"] for d in prod for m in walk(d) if "runAsUser" in m}
    assert users == {cluster.USER_ID} == {int(c["securityContext"]["runAsUser"]) for _, c in executors}


@pytest.mark.parametrize("overlay", ["prod", "dev", "kserve_overlay", "dask"])
def test_every_pod_keeps_to_the_restricted_pod_security_standard(overlay, request):
    """As the namespace says of what this project starts; oracle: the standard's list of fields."""
    documents = request.getfixturevalue(overlay)
    pods = [m for d in documents for m in walk(d) if isinstance(m.get("containers"), list)]
    assert pods
    for pod in pods:
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert all(set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim"} for volume in pod.get("volumes", []))


def allows(policy, target, port) -> bool:
    """Whether a policy lets packets out to ``target``: a namespace's name, an address, or None for any address."""
    for rule in policy["spec"]["egress"]:
        to = rule.get("to", [{"ipBlock": {"cidr": None}}])
        blocks = {peer["ipBlock"]["cidr"] for peer in to if "ipBlock" in peer}
        labels = [peer["namespaceSelector"]["matchLabels"] for peer in to if "namespaceSelector" in peer]
        there = blocks | {label["kubernetes.io/metadata.name"] for label in labels}
        if target in there and port in {allowed["port"] for allowed in rule["ports"]}:
            return True
    return False


# Where packets arrive once a service's address has been rewritten to a pod's or a node's: the service's own port is no
# help. Oracles: the target ports of Kubeflow's minio-service over MinIO and SeaweedFS; 6443 of kubeadm, kind and k3s;
# GKE's documentation of network policies with workload identity, without and with Dataplane V2.
@pytest.mark.parametrize("overlay", ["prod", "dev"])
@pytest.mark.parametrize(
    ("policy", "target", "port"),
    [
        *(("allow-kubeflow", "kubeflow", port) for port in (8080, 8887, 8888, 9000, 8333)),
        ("allow-kubeflow", None, 6443),
        ("allow-storage-and-identity", None, 443),
        *(("allow-storage-and-identity", "169.254.169.252/32", port) for port in (987, 988)),
        *(("allow-storage-and-identity", "169.254.169.254/32", port) for port in (80, 8080)),
    ],
)
def test_pods_reach_what_they_need_at_the_port_behind_its_service(overlay, policy, target, port, request):
    documents = request.getfixturevalue(overlay)
    (found,) = [d for d in documents if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] == policy]
    assert allows(found, target, port)


def test_the_dask_operator_reaches_the_scheduler_that_it_ends_when_idle(dask):
    """It asks at the dashboard, then at the scheduler's own port, and does nothing where it gets no answer."""
    (dask_cluster,) = [d for d in dask if d["kind"] == "DaskCluster"]
    assert dask_cluster["spec"]["idleTimeout"] > 0
    (policy,) = [d for d in dask if d["metadata"]["name"] == "allow-dask"]
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "dask-operator"}}}
    (rule,) = [rule for rule in policy["spec"]["ingress"] if operator in rule["from"]]
    services = {port["port"] for port in dask_cluster["spec"]["scheduler"]["service"]["ports"]}
    assert {port["port"] for port in rule["ports"]} == services == {8786, 8787}


def test_the_label_that_lets_requests_and_scrapes_in_is_in_the_operations_page(prod):
    (policy,) = [d for d in prod if d["metadata"]["name"] == "allow-requests-to-serve"]
    ((peer,),) = [rule["from"] for rule in policy["spec"]["ingress"]]
    ((key, value),) = peer["namespaceSelector"]["matchLabels"].items()
    assert f"kubectl label namespace MONITORING {key}={value}" in (ROOT / "docs" / "operations.md").read_text()


def test_serving_survives_a_node_drain_and_the_budget_selects_its_pods(prod):
    (deployment,) = [d for d in prod if d["kind"] == "Deployment"]
    (budget,) = [d for d in prod if d["kind"] == "PodDisruptionBudget"]
    (scaler,) = [d for d in prod if d["kind"] == "HorizontalPodAutoscaler"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert scaler["spec"]["minReplicas"] > budget["spec"]["minAvailable"]


# docs/serving.md: one process keeps about one core busy, however many it may use.
CORES_OF_A_BUSY_SERVER = 0.95


def test_a_busy_server_is_above_what_the_autoscaler_aims_at(prod):
    (deployment,) = [d for d in prod if d["kind"] == "Deployment"]
    (scaler,) = [d for d in prod if d["kind"] == "HorizontalPodAutoscaler"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (metric,) = scaler["spec"]["metrics"]
    share = metric["resource"]["target"]["averageUtilization"] / 100
    assert share * float(container["resources"]["requests"]["cpu"]) < CORES_OF_A_BUSY_SERVER


def test_the_servers_of_kserve_ask_for_as_much(prod, kserve_overlay):
    (deployment,) = [d for d in prod if d["kind"] == "Deployment"]
    (service,) = [d for d in kserve_overlay if d["kind"] == "InferenceService"]
    pods = deployment["spec"]["template"]["spec"], service["spec"]["predictor"]
    ours, kserves = ([container["resources"] for container in pod["containers"]] for pod in pods)
    assert ours == kserves


@pytest.mark.parametrize("overlay", ["prod", "dev"])
def test_applying_an_overlay_leaves_the_number_of_servers_to_the_autoscaler(overlay, request):
    documents = request.getfixturevalue(overlay)
    scaled = {d["spec"]["scaleTargetRef"]["name"] for d in documents if d["kind"] == "HorizontalPodAutoscaler"}
    assert scaled == names(documents, "Deployment")
    assert not any("replicas" in d["spec"] for d in documents if d["kind"] == "Deployment")


def test_the_kserve_component_replaces_the_deployment_and_what_belongs_to_it(kserve_overlay):
    assert names(kserve_overlay, "InferenceService") == {"conversion-retrieval"}
    gone = {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    assert not gone & {d["kind"] for d in kserve_overlay}


def test_in_a_profiles_namespace_rights_and_queue_are_for_that_namespace(tmp_path):
    """As the operations page says: the overlay with another ``namespace:``, and nothing else."""
    documents = render_with(tmp_path, resources=["overlays/prod"], namespace="team-a")
    assert {d["metadata"]["namespace"] for d in documents if "namespace" in d["metadata"]} == {"team-a"}
    bindings = [d for d in documents if d["kind"].endswith("RoleBinding")]
    assert len(bindings) == 2
    assert {subject["namespace"] for binding in bindings for subject in binding["subjects"]} == {"team-a"}
    (namespace,) = [d["metadata"] for d in documents if d["kind"] == "Namespace"]
    (queue,) = [d for d in documents if d["kind"] == "ClusterQueue"]
    labels = namespace["labels"] | {"kubernetes.io/metadata.name": namespace["name"]}
    assert queue["spec"]["namespaceSelector"]["matchLabels"].items() <= labels.items()


def test_in_kubeflows_own_namespace_the_queue_is_open_to_it(tmp_path):
    documents = render_with(tmp_path, resources=["overlays/prod"], components=["single_user"])
    (queue,) = [d for d in documents if d["kind"] == "ClusterQueue"]
    assert queue["spec"]["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow"}}


def test_in_kubeflows_own_namespace_nothing_holds_for_kubeflows_pods(single_user):
    assert not {d["kind"] for d in single_user} & {"Namespace", "NetworkPolicy", "ResourceQuota", "LimitRange"}
    namespaces = {d["metadata"].get("namespace") for d in single_user}
    assert namespaces == {"kubeflow", None}  # None: of the whole cluster
    bindings = [d for d in single_user if d["kind"].endswith("RoleBinding")]
    accounts = names(single_user, "ServiceAccount")
    assert len(bindings) == 2
    for binding in bindings:
        assert all(s["name"] in accounts and s["namespace"] == "kubeflow" for s in binding["subjects"])


def test_kserve_serves_the_image_of_the_overlay_that_the_component_is_added_to(tmp_path):
    """As docs/serving.md says: added to the overlay itself, for only then do its images apply."""
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    overlay = tmp_path / "manifests" / "overlays" / "prod"
    with (overlay / "kustomization.yaml").open("a") as kustomization:
        kustomization.write("components: [../../inferenceservice]\n")
    documents = render(overlay)
    (service,) = [d for d in documents if d["kind"] == "InferenceService"]
    assert all("@sha256:" in container["image"] for container in service["spec"]["predictor"]["containers"])
    assert not names(documents, "Deployment")
    assert "kustomize edit add component ../../inferenceservice" in (ROOT / "docs" / "serving.md").read_text()


def test_production_images_are_pinned_by_digest(prod):
    images = {m["image"] for d in prod for m in walk(d) if isinstance(m.get("image"), str)}
    assert images
    assert all("@sha256:" in image for image in images)
