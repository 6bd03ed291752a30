"""What training takes at its peak beside what it must hold: tables, parameters, optimiser state and one batch.

Peaks of the process count from its size once the libraries are loaded, what an earlier training left behind included;
what the GPU holds counts from zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

STATUS: Final = Path("/proc/self/status")
CLEAR_REFS: Final = Path("/proc/self/clear_refs")
FORGET_PEAK: Final = "5"  # to ``CLEAR_REFS``: the peak becomes the present size
MIB: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes. ``peak`` is above ``fixed``, what Python and its libraries took before; the rest is what must be held.

    ``tables`` are the features as opened (on a GPU: the catalogue on it), ``parameters`` the model's, frozen ones too,
    ``optimizer_state`` includes a moving average of the weights, ``batch`` is one step's input, on a CPU with the
    activations that its backward pass needs.
    """

    fixed: int
    peak: int
    tables: int
    parameters: int
    optimizer_state: int
    batch: int

    @property
    def held(self) -> int:
        """What no training of this model and batch size could do without."""
        return self.tables + self.parameters + self.optimizer_state + self.batch

    @property
    def ratio(self) -> float:
        """The peak over what must be held."""
        return self.peak / max(self.held, 1)

    def values(self) -> dict[str, float]:
        """All figures by name."""
        return {**asdict(self), "ratio": round(self.ratio, 3)}

    def __str__(self) -> str:
        parts = ("tables", "parameters", "optimizer_state", "batch")
        held = ", ".join(f"{name.replace('_', ' ')} {getattr(self, name) / MIB:,.0f}" for name in parts)
        return (
            f"memory: peak {self.peak / MIB:,.0f} MiB above the libraries' {self.fixed / MIB:,.0f} MiB, "
            f"{self.ratio:.2f} x the {self.held / MIB:,.0f} MiB of {held}"
        )


class MemoryMeter:
    """Measures one training on one device; make it before the features are opened."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._batch: int | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        _load_libraries()
        self._earlier_peak, self._fixed = 0, 0
        if device.type == "cpu":
            with suppress(OSError):
                CLEAR_REFS.write_text(FORGET_PEAK)
            self._earlier_peak, self._fixed = _process_bytes("VmHWM"), _process_bytes("VmRSS")

    @contextmanager
    def first_step(self, batch: object, tables: object, parameters: object) -> Iterator[None]:
        """Around a training step: the first one's batch is weighed, on a CPU with its activations."""
        if self._batch is not None or self.device.type == "cuda":
            self._batch = self._batch or held_bytes(batch)
            yield
            return
        kept: dict[int, int] = {}
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors((batch, tables, parameters))}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        self._batch = held_bytes(batch) + sum(kept.values())

    def footprint(self, *, tables: object, parameters: object, optimizer_state: object) -> Footprint | None:
        """The figures so far; None before the first step, and where the platform does not tell a process's peak.

        One that keeps the peak of what ran before tells nothing until training exceeds it.
        """
        peak = self._peak()
        if self._batch is None or peak is None:
            return None
        return Footprint(
            fixed=self._fixed,
            peak=peak,
            tables=held_bytes(tables),
            parameters=held_bytes(parameters),
            optimizer_state=held_bytes(optimizer_state),
            batch=self._batch,
        )

    def later(self, footprint: Footprint) -> Footprint:
        """The same with the peak of what came since."""
        return replace(footprint, peak=max(self._peak() or 0, footprint.peak))

    def _peak(self) -> int | None:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        highest = _process_bytes("VmHWM")
        # The kernel counts pages thread by thread, so two figures of one moment may be a few apart.
        if highest <= self._earlier_peak and self._earlier_peak > self._fixed + MIB:
            return None
        return max(highest - self._fixed, 0) if highest else None


def held_bytes(value: object) -> int:
    """Bytes of all arrays, tensors and Arrow tables inside a nest of dataclasses and containers."""
    return sum(_leaf_bytes(leaf) for leaf in _leaves(value))


def tensors(value: object) -> list[Tensor]:
    """All tensors inside such a nest."""
    return [leaf for leaf in _leaves(value) if isinstance(leaf, Tensor)]


def _leaves(value: Any) -> Iterator[Any]:
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _leaf_bytes(leaf: Any) -> int:
    if isinstance(leaf, Tensor):
        return leaf.numel() * leaf.element_size()
    return int(leaf.nbytes) if isinstance(leaf, np.ndarray | pa.Table | pa.Array | pa.ChunkedArray) else 0


def _load_libraries() -> None:
    """Load what torch loads with its first optimiser: tens of megabytes of code, whatever is trained."""
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])


def _process_bytes(key: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, 0 where the platform does not tell."""
    if not STATUS.exists():
        return 0
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == f"{key}:"), 0)
