"""The compiled YAML under version control: a change of it is seen in review, an accidental one fails a test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipelines import cluster
from pipelines.compile import compile_pipeline, placement
from pipelines.placement import Placement

GOLDEN_DIR: Final = Path(__file__).with_name("golden")
_DIGEST: Final = "sha256:" + "0" * 64
GOLDEN: Final[Mapping[str, Placement]] = {
    "training.yaml": placement(),
    "training-cluster.yaml": placement(
        image_cpu=f"registry.example.com/conversion-retrieval-cpu@{_DIGEST}",
        image_gpu=f"registry.example.com/conversion-retrieval-gpu@{_DIGEST}",
        evaluate_on_gpu=True,
        spot=True,
    ),
    "training-nodes.yaml": placement(
        image_cpu=f"registry.example.com/conversion-retrieval-cpu@{_DIGEST}",
        image_gpu=f"registry.example.com/conversion-retrieval-gpu@{_DIGEST}",
        train_nodes=2,
        queue=cluster.QUEUE,
    ),
    "ablation.yaml": placement(),
}


def write_golden(directory: Path = GOLDEN_DIR) -> list[Path]:
    """Rewrite every golden file; returns their paths."""
    return [
        compile_pipeline(directory / name, place, pipeline_name=pipeline_of(name)).path
        for name, place in GOLDEN.items()
    ]


def pipeline_of(name: str) -> str:
    """The pipeline that a golden file is of: the word before the hyphen."""
    return name.removesuffix(".yaml").partition("-")[0]
