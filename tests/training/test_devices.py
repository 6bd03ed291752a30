"""Which GPU computes in what; oracle: the compute capabilities of NVIDIA's GPUs."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor
from torch._inductor.exc import InductorError

from conversion_retrieval.model.config import TowerConfig
from conversion_retrieval.model.tower import Tower
from conversion_retrieval.training.config import TrainingConfig
from conversion_retrieval.training.devices import compile_towers, uses_bf16


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


@pytest.mark.parametrize(("option", "goes_on"), [("auto", True), ("on", False)])
def test_towers_that_cannot_be_compiled_run_as_written_unless_compiling_was_asked_for(
    tmp_path, monkeypatch, option, goes_on
):
    """Oracle: what the tower gives uncompiled; the compiler that torch would call is not there."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()  # what one case could not compile the other would not try
    tower, x = Tower(3, TowerConfig(hidden_sizes=(4,))), torch.ones(5, 3)
    expected = tower(x)
    with dynamo.patch(suppress_errors=False), inductor.patch({"cpp.cxx": (None, "/nonexistent/g++")}):
        compile_towers(TrainingConfig(compile=option), torch.device("cuda"), tower)
        with nullcontext() if goes_on else pytest.raises(InductorError, match=r"No working C\+\+ compiler"):
            assert torch.equal(tower(x), expected)
