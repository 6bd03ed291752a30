"""The images that components name until a pipeline is compiled for a cluster, where digests replace them."""

from typing import Final

CPU_IMAGE: Final = "conversion-retrieval-python-cpu:local"
GPU_IMAGE: Final = "conversion-retrieval-python-gpu:local"
