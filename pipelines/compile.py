"""Compile a pipeline to YAML: the same bytes every time, images pinned, a version named after the content."""

import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from kfp import compiler

from components.images import CPU_IMAGE, GPU_IMAGE
from conversion_retrieval.contracts import write_bytes
from conversion_retrieval.errors import UserError
from conversion_retrieval.training.gpu_nodes import LABEL_KEY, LABEL_VALUE
from pipelines import cluster
from pipelines.ablation import ablation_pipeline
from pipelines.placement import Placement
from pipelines.training import training_pipeline

PINNED: Final = re.compile(r"[\w.\-/:]+@sha256:[0-9a-f]{64}")
PIPELINES: Final[Mapping[str, Callable[[Placement], Any]]] = {
    "training": training_pipeline,
    "ablation": ablation_pipeline,
}
LOCAL_IMAGES: Final = frozenset({CPU_IMAGE, GPU_IMAGE})


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What ``compile_pipeline`` wrote: the pipeline, its version's name, and the resources beside it if asked for."""

    path: Path
    version: str
    manifests_path: Path | None = None


def placement(
    *,
    image_cpu: str = "",
    image_gpu: str = "",
    allow_mutable_image: bool = False,
    evaluate_on_gpu: bool = False,
    spot: bool = False,
    train_nodes: int = 1,
    queue: str = "",
    cost_center: str = "conversion-retrieval",
    gpu_type_label: str = cluster.GPU_TYPE_LABEL,
    dask: bool = False,
    retry: bool = True,
) -> Placement:
    """Check the compile options; without any image the pipeline names those of a local run.

    Raises ``UserError`` for an image that is not pinned by digest, for one image without the other, and for what
    Kubernetes would not take as a label.
    """
    if bool(image_cpu) != bool(image_gpu):
        raise UserError("expected both --image-cpu and --image-gpu or neither, found one")
    if image_cpu and not allow_mutable_image:
        for option, image in (("--image-cpu", image_cpu), ("--image-gpu", image_gpu)):
            require_pinned(image, where=option)
    _require_label(LABEL_VALUE, cost_center, where="--cost-center")
    _require_label(LABEL_VALUE, queue or "none", where="--queue")
    _require_label(LABEL_KEY, gpu_type_label, where="--gpu-type-label")
    return Placement(
        image_cpu=image_cpu or CPU_IMAGE,
        image_gpu=image_gpu or GPU_IMAGE,
        evaluate_on_gpu=evaluate_on_gpu,
        spot=spot,
        train_nodes=train_nodes,
        queue=queue,
        cost_center=cost_center,
        gpu_type_label=gpu_type_label,
        dask=dask,
        retry=retry,
    )


def require_pinned(image: str, *, where: str) -> None:
    """``UserError`` unless ``image`` is named by digest: a tag can change under a running schedule."""
    if not PINNED.fullmatch(image):
        raise UserError(
            f"expected an image pinned by digest (name@sha256:...) in {where}, found {image!r}; "
            "--allow-mutable-image accepts it for development"
        )


def _require_label(syntax: re.Pattern[str], text: str, *, where: str) -> None:
    if not syntax.fullmatch(text):
        kind = "key" if syntax is LABEL_KEY else "value"
        raise UserError(f"expected the {kind} of a Kubernetes label (letters, digits, -_.) in {where}, found {text!r}")


def compile_pipeline(
    output: Path, place: Placement, *, pipeline_name: str = "training", manifests: bool = False
) -> Compiled:
    """Write a pipeline's YAML to ``output``, and with ``manifests`` its Kubernetes resources beside it.

    Raises ``UserError`` for a pipeline that is not one of ``PIPELINES`` and an output that cannot be written.
    """
    if pipeline_name not in PIPELINES:
        raise UserError(f"expected a pipeline out of {', '.join(PIPELINES)}, found {pipeline_name!r}")
    pipeline = PIPELINES[pipeline_name](place)
    content = _compiled(pipeline)
    version = version_name(pipeline.name, content)
    _write(output, content)
    if not manifests:
        return Compiled(path=output, version=version)
    manifests_path = output.with_suffix(".manifests.yaml")
    _write(manifests_path, _compiled(pipeline, version=version))
    return Compiled(path=output, version=version, manifests_path=manifests_path)


def version_name(pipeline_name: str, content: bytes) -> str:
    """The name of the pipeline's version that these bytes are."""
    return f"{pipeline_name}-{hashlib.sha256(content).hexdigest()[:12]}"


def images(content: bytes) -> set[str]:
    """The images that a compiled pipeline names."""
    spec = next(yaml.safe_load_all(content))
    return {executor["container"]["image"] for executor in spec["deploymentSpec"]["executors"].values()}


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"expected to write {path}, found: {error.strerror}; choose another --output") from None


def _compiled(pipeline: Any, *, version: str = "") -> bytes:
    options: dict[str, Any] = {}
    if version:
        options["kubernetes_manifest_format"] = True
        options["kubernetes_manifest_options"] = compiler.compiler_utils.KubernetesManifestOptions(
            pipeline_name=pipeline.name,
            pipeline_version_name=version,
            namespace=cluster.NAMESPACE,
            include_pipeline_manifest=True,
        )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path), **options)
        return path.read_bytes()
