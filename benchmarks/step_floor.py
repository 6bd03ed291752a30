"""How near a training step of the default architecture comes to what the device could do at best.

    python -m benchmarks.step_floor --batch-size 8192

The floor is the larger of two times: the step's floating point operations (counted by torch) at the rate of a large
matrix product in the same precision, and the bytes that must move at the rate of a large copy, both measured here.
Bytes: AdamW reads weight, gradient and two moments and writes all but the gradient, the backward pass writes each
gradient once, and every activation kept for it is written and read once. Caches and fusion can do with less, and
look-ups of rows move less than whole tables: a bound for orientation. On a GPU also: recall in bf16 and in fp32 after
the same epochs from the same seed. Runs on a CPU too, to see that it works; it is meant for an NVIDIA GPU.
"""

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training_throughput import world
from conversion_retrieval.config import load_config
from conversion_retrieval.training.examples import batch_order
from conversion_retrieval.training.loop import Trainer
from conversion_retrieval.training.memory import MemoryMeter
from conversion_retrieval.training.stage import make_trainer
from tests.training.separable import SeparableWorld

ADAMW_PASSES = 8  # floats moved a weight: four read, three written, and its gradient written before


def seconds(action: Callable[[], object], device: torch.device, *, repetitions: int) -> float:
    """Median duration of ``action`` on the device, after one call to warm up."""
    durations = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations[1:])


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Floating point operations a second of a square product."""
    left = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / seconds(lambda: left @ left, device, repetitions=10)


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, of a copy."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device, repetitions=10)


def trainer_of(data: SeparableWorld, device: torch.device, **training: Any) -> Trainer:
    """The default configuration on the device."""
    overrides = [f"training.{name}={value}" for name, value in {"device": device.type, **training}.items()]
    with contextlib.redirect_stderr(io.StringIO()):
        return make_trainer(data, load_config(None, overrides), device=device)


def print_floor(data: SeparableWorld, device: torch.device, batch_size: int, precision: str, size: int) -> None:
    """One step beside its floor."""
    trainer = trainer_of(data, device, batch_size=batch_size, precision=precision)
    snapshot, rows = max(batch_order(trainer.builder.examples, batch_size, 0, 0), key=lambda place: len(place[1]))
    batch = trainer.builder.build(snapshot, rows, epoch=0, index=0)
    parameters = trainer.learner.optimizer.parameters
    meter = MemoryMeter(torch.device("cpu"))
    with meter.first_step(batch, trainer.builder.catalogue, parameters), FlopCounterMode(display=False) as counter:
        trainer.learner.learn(batch, 100)
    kept = meter.footprint(tables=(), parameters=(), optimizer_state=())
    step = seconds(lambda: trainer.learner.learn(batch, 100), device, repetitions=10)
    moved = ADAMW_PASSES * 4 * sum(p.numel() for p in parameters.values()) + 2 * (kept.batch if kept else 0)
    dtype = torch.bfloat16 if trainer.learner.bf16 else torch.float32
    arithmetic, memory = counter.get_total_flops() / product_rate(device, dtype, size), moved / copy_rate(device, 2**28)
    print(
        f"{device.type}, {precision}, batch {batch.num_queries:,}: {batch.num_queries / step:,.0f} examples/s, step "
        f"{1e3 * step:.1f} ms; arithmetic floor {1e3 * arithmetic:.1f} ms ({arithmetic / step:.0%}), memory floor "
        f"{1e3 * memory:.1f} ms ({memory / step:.0%})",
        flush=True,
    )


def print_recall(data: SeparableWorld, device: torch.device, batch_size: int, precision: str, epochs: int) -> None:
    """Recall of a short training."""
    trainer = trainer_of(data, device, batch_size=batch_size, precision=precision, max_epochs=epochs)
    with contextlib.redirect_stderr(io.StringIO()):
        found = trainer.fit().best_value
    print(f"{device.type}, {precision}: recall@100 {found:.4f} after {epochs} epochs", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--users", type=int, default=8000)
    parser.add_argument("--groups", type=int, default=2000, help="of ten items")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--product-size", type=int, default=0, help="of the square product; 0 chooses")
    options = parser.parse_args()
    device = torch.device(options.device)
    data = world(options.users, num_groups=options.groups)
    size = options.product_size or (8192 if device.type == "cuda" else 2048)
    for precision in ("fp32", "bf16"):
        print_floor(data, device, options.batch_size, precision, size)
    for precision in ("fp32", "bf16"):
        print_recall(data, device, options.batch_size, precision, options.epochs)


if __name__ == "__main__":
    main()
