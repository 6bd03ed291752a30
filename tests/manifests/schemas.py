"""Strict validation of every kind of document that the manifests hold, by whichever schema there is to install.

Kubernetes' own kinds: kubernetes-validate. KServe, Kubeflow Trainer, Config Connector: the projects' models. The Dask
operator: the definition in its wheel. Karpenter and Kueue publish no schema that pip can install: for them this file
says, by their reference documentation, which fields of theirs these manifests may use.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from cnrm_pydantic_models import containernodepool, iampolicymember, iamserviceaccount
from kserve import V1beta1InferenceService, V1beta1PredictorSpec
from kubeflow_trainer_api import models as trainer_models

KUBERNETES_VERSION = "1.32"
CONFIG_CONNECTOR = {
    "ContainerNodePool": containernodepool.Model,
    "IAMServiceAccount": iamserviceaccount.Model,
    "IAMPolicyMember": iampolicymember.Model,
}


def validate(document: dict[str, Any]) -> None:
    """Raise for an unknown field, a missing one, or a value of another type."""
    kind = document["kind"]
    if kind in CONFIG_CONNECTOR:
        CONFIG_CONNECTOR[kind].model_validate(document, strict=True)
    elif kind == "ClusterTrainingRuntime":
        model = trainer_models.TrainerV1alpha1ClusterTrainingRuntime
        assert model.from_dict(document).to_dict() == document, "a field that the model does not know was dropped"
    elif kind == "InferenceService":
        validate_inference_service(document)
    elif kind == "DaskCluster":
        jsonschema.validate(document, dask_cluster())
    elif kind in WRITTEN_HERE:
        api_version, spec = WRITTEN_HERE[kind]
        assert document["apiVersion"] == api_version
        jsonschema.validate(document["spec"], spec)
    else:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def validate_inference_service(document: dict[str, Any]) -> None:
    """KServe's own fields against its models, the rest of the predictor as the pod that it becomes."""
    assert set(document) <= set(V1beta1InferenceService.attribute_map.values())
    predictor = document["spec"]["predictor"]
    assert set(predictor) <= set(V1beta1PredictorSpec.attribute_map.values())
    own = {"minReplicas", "maxReplicas", "labels", "annotations"}
    pod_spec = {key: value for key, value in predictor.items() if key not in own}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": pod_spec}
    kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)


@cache
def dask_cluster() -> dict[str, Any]:
    """The DaskCluster definition as dask-kubernetes installs it in a cluster, with unknown fields refused."""
    package = importlib.util.find_spec("dask_kubernetes")
    assert package is not None, "expected dask-kubernetes, whose wheel carries the definition: run `make setup`"
    assert package.origin is not None
    chart = Path(package.origin).parent / "operator" / "deployment" / "helm" / "dask-kubernetes-operator"
    definition = yaml.safe_load((chart / "crds" / "daskcluster.yaml").read_text())
    schema: dict[str, Any] = closed(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    # The API server knows metadata without the definition saying so.
    schema["properties"] |= {"metadata": {"type": "object"}, "apiVersion": {}, "kind": {}}
    return schema


def closed(schema: Any) -> Any:
    """A schema whose objects take no field that they do not list."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    is_open = result.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in result
    if isinstance(result.get("properties"), dict) and result.get("type") == "object" and not is_open:
        result["additionalProperties"] = False
    return result


def record(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": sorted(required),
        "additionalProperties": False,
    }


def list_of(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


TEXT = {"type": "string", "minLength": 1}
LABELS = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}}
QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?([KMGT]i?|m)?$"}
EFFECT = one_of("NoSchedule", "PreferNoSchedule", "NoExecute")
TAINT = record({"key": TEXT, "effect": EFFECT}, {"value": TEXT})
TOLERATION = record({"key": TEXT, "operator": one_of("Exists", "Equal"), "effect": EFFECT}, {"value": TEXT})
REQUIREMENT = record(
    {"key": TEXT, "operator": one_of("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")}, {"values": list_of(TEXT)}
)

# https://karpenter.sh/docs/concepts/nodepools/ and https://kueue.sigs.k8s.io/docs/concepts/
NODE_POOL = record(
    {
        "template": record(
            {
                "spec": record(
                    {
                        "nodeClassRef": record({"group": TEXT, "kind": TEXT, "name": TEXT}),
                        "requirements": list_of(REQUIREMENT),
                    },
                    {"taints": list_of(TAINT), "expireAfter": TEXT},
                )
            },
            {"metadata": record({}, {"labels": LABELS, "annotations": LABELS})},
        )
    },
    {
        "limits": {"type": "object", "additionalProperties": QUANTITY},
        "disruption": record(
            {
                "consolidationPolicy": one_of("WhenEmpty", "WhenEmptyOrUnderutilized"),
                "consolidateAfter": {"type": "string", "pattern": r"^((\d+(s|m|h))+|Never)$"},
            }
        ),
        "weight": {"type": "integer", "minimum": 1, "maximum": 100},
    },
)
FLAVOR_QUOTA = record(
    {"name": TEXT, "resources": list_of(record({"name": TEXT, "nominalQuota": QUANTITY}, {"borrowingLimit": QUANTITY}))}
)
CLUSTER_QUEUE = record(
    {
        "namespaceSelector": record({"matchLabels": LABELS}),
        "resourceGroups": list_of(record({"coveredResources": list_of(TEXT), "flavors": list_of(FLAVOR_QUOTA)})),
    },
    {"queueingStrategy": one_of("StrictFIFO", "BestEffortFIFO")},
)
WRITTEN_HERE = {
    "NodePool": ("karpenter.sh/v1", NODE_POOL),
    "ResourceFlavor": ("kueue.x-k8s.io/v1beta2", record({"nodeLabels": LABELS}, {"tolerations": list_of(TOLERATION)})),
    "ClusterQueue": ("kueue.x-k8s.io/v1beta2", CLUSTER_QUEUE),
    "LocalQueue": ("kueue.x-k8s.io/v1beta2", record({"clusterQueue": TEXT})),
}
