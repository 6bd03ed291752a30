"""Which GPU computes in what; oracle: the compute capabilities of NVIDIA's GPUs."""

from types import SimpleNamespace

import pytest
import torch

from conversion_retrieval.training.config import TrainingConfig
from conversion_retrieval.training.devices import uses_bf16


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_only_gpus_with_bfloat16_in_hardware_use_it_by_themselves(monkeypatch, capability, expected):
    """A V100 (7.0) and a T4 (7.5) emulate it, and torch counts that as support unless asked not to."""
    properties = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _device: True)
    assert uses_bf16(TrainingConfig(), torch.device("cuda")) is expected
    assert uses_bf16(TrainingConfig(precision="bf16"), torch.device("cuda"))
