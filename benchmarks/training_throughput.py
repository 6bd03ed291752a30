"""Training examples a second beside torch-rechub's DSSM on the same data, batch, embedding sizes and tower widths.

    pip install --no-deps --target /tmp/rechub torch-rechub==0.9.0 scikit-learn joblib threadpoolctl narwhals tqdm
    python -m benchmarks.training_throughput --rechub /tmp/rechub

torch-rechub is no dependency: it is read from the directory given, and left out when none is. Both train a DSSM on
in-batch negatives: item id embeddings shared with a mean over 50 history items, a category, a surface, dense columns,
an MLP a tower. Ours is measured in that shape, and with the default architecture (parallel DCNv2 and MLP, Transformer
history, popularity bias), for catalogues of three sizes: torch-rechub updates the whole id table in every step.
Repetitions alternate; medians are shown.

Also printed: the share of a step that making its batch takes, and the peak memory of whole trainings with the default
configuration but for the optimiser named (validations and a checkpoint included) beside what they must hold: tables +
parameters + optimiser state + one batch. Tables are the feature arrays as opened. One batch is a step's input tensors
and every activation that its forward pass keeps for the backward pass, each storage once, without parameters and
tables; neither gradients nor any temporary. Peaks are those of a fresh process (VmHWM) above its size after a tiny
training, so that Python, torch and what they load lazily (the fixed cost that is shown) do not count; the tables do.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conversion_retrieval.config import PipelineConfig, load_config, parse_config
from conversion_retrieval.training.checkpoint import Checkpoints
from conversion_retrieval.training.examples import batch_order
from conversion_retrieval.training.loop import Trainer
from conversion_retrieval.training.memory import MemoryMeter
from conversion_retrieval.training.prefetch import prefetch, prefetch_depth
from conversion_retrieval.training.stage import make_trainer
from tests.training.separable import SeparableWorld, separable_world

WIDTHS = [256, 128, 64]
MEMORY_RUNS = ((20_000, "adamw"), (100_000, "adamw"), (300_000, "adamw"), (300_000, "adamw_sparse"))
DIM, HISTORY = 64, 50  # torch-rechub's DSSM wants one size for all embeddings


def world(users: int, *, num_groups: int = 2000) -> SeparableWorld:
    """``5 * users`` queries with one positive each, ten items a group, up to 100 events a user."""
    return separable_world(
        num_groups=num_groups,
        num_users=users,
        queries_per_user=5,
        positives_per_query=1,
        hard_negatives=0,
        history_length=HISTORY,
        max_events=100,
        tasks=(0,),
    )


def our_config(batch_size: int, precision: str, optimizer: str, *, dssm: bool) -> PipelineConfig:
    """The shape of a DSSM, or the default architecture with the same widths."""
    tower: dict[str, Any] = {"hidden_sizes": WIDTHS}
    model: dict[str, Any] = {"embedding_dim": DIM, "feature_dim": DIM}
    if dssm:
        tower |= {"layout": "sequential", "cross_layers": 0, "residual": False}
        model |= {"history": {"encoder": "recency_mean", "half_life_days": [1e9]}, "popularity_bias": False}
    return parse_config(
        {
            "model": {**model, "query_tower": tower, "item_tower": tower},
            "losses": {"softmax": "sampled", "uniform_negatives": 0, "advertiser_weight": 0},
            "training": {"batch_size": batch_size, "device": "cpu", "precision": precision, "optimizer": optimizer},
        }
    )


class Ours:
    """One epoch of our loop without validation."""

    def __init__(self, data: SeparableWorld, config: PipelineConfig) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            self.trainer: Trainer = make_trainer(data, config, device=torch.device("cpu"))
        self.epoch = 0

    @property
    def optimizer(self) -> str:
        """Which optimiser was chosen."""
        return self.trainer.position.optimizer

    def places(self) -> list[tuple[int, np.ndarray]]:
        """The batches of the next epoch."""
        self.epoch += 1
        return batch_order(self.trainer.builder.examples, self.trainer.config.batch_size, 0, self.epoch)

    def build(self, place: tuple[int, np.ndarray]) -> Any:
        """Make a batch."""
        return self.trainer.builder.build(*place, epoch=self.epoch, index=0)

    def run_epoch(self) -> int:
        """Train; returns the number of examples."""
        examples = 0
        for batch in prefetch(self.build, self.places(), depth=prefetch_depth(self.trainer.learner.device)):
            self.learn(batch)
            examples += batch.num_queries
        return examples

    def learn(self, batch: Any) -> None:
        """Take a step as the loop does, with the moving average of the weights."""
        self.trainer.learner.learn(batch, 100)
        self.trainer.average.update(100)

    def input_share(self) -> float:
        """Seconds to make a batch over seconds of a step, one after the other."""
        making = learning = 0.0
        for place in self.places():
            start = time.perf_counter()
            batch = self.build(place)
            middle = time.perf_counter()
            self.learn(batch)
            making, learning = making + middle - start, learning + time.perf_counter() - middle
        return making / (making + learning)


class Rechub:
    """torch-rechub's trainer with its in-batch negatives and its own data loader."""

    def __init__(self, data: SeparableWorld, batch_size: int, workers: int) -> None:
        from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
        from torch_rechub.models.matching.dssm import DSSM
        from torch_rechub.trainers.match_trainer import MatchTrainer
        from torch_rechub.utils.data import MatchDataGenerator

        columns = flat_columns(data)
        user = [
            SparseFeature("surface", vocab_size=4, embed_dim=DIM),
            SequenceFeature(
                "history",
                vocab_size=data.num_items + 1,
                embed_dim=DIM,
                pooling="mean",
                shared_with="item",
                padding_idx=0,
            ),
            DenseFeature("aggregate"),
        ]
        item = [
            SparseFeature("item", vocab_size=data.num_items + 1, embed_dim=DIM, padding_idx=0),
            SparseFeature("shelf", vocab_size=6, embed_dim=DIM),
            *(DenseFeature(name) for name in ("price", "price_missing", "performance")),
        ]
        params = {"dims": WIDTHS, "activation": "relu"}
        self.trainer = MatchTrainer(
            DSSM(user, item, user_params=params, item_params=params, temperature=0.07),
            mode=2,
            in_batch_neg=True,
            optimizer_params={"lr": 3e-3, "weight_decay": 1e-4},
        )
        self.examples = len(columns["item"])
        self.loader, *_ = MatchDataGenerator(columns, np.zeros(self.examples)).generate_dataloader(
            columns, columns, batch_size=batch_size, num_workers=workers
        )

    def run_epoch(self) -> int:
        """Train; returns the number of examples."""
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            self.trainer.train_one_epoch(self.loader)
        return self.examples


def flat_columns(data: SeparableWorld) -> dict[str, np.ndarray]:
    """One row a training example, histories included: what a loader without views needs."""
    split = data.split("train")
    arrays = data.query_arrays(split, np.arange(len(split)))
    item = split.positives.item
    performance = np.stack([data.performance(0), data.performance(1)])[split.snapshot, item]
    return {
        "surface": arrays.surface,
        "history": arrays.history_item + 1,
        "aggregate": arrays.user_aggregates[:, 0],
        "item": item.astype(np.int64) + 1,
        "shelf": data.items.categorical[item, 0].astype(np.int64),
        "price": data.items.numeric[item, 0],
        "price_missing": data.items.numeric[item, 1],
        "performance": performance[:, 0],
    }


def rate(run_epoch: Callable[[], int]) -> float:
    """Examples a second of one epoch."""
    start = time.perf_counter()
    return run_epoch() / (time.perf_counter() - start)


def train_once(data: SeparableWorld, config: PipelineConfig, *, memory: MemoryMeter | None = None) -> Trainer:
    """A whole training with checkpoints."""
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stderr(io.StringIO()):
        checkpoints = Checkpoints(directory=Path(directory), fingerprint="benchmark", keep=1)
        trainer = make_trainer(data, config, checkpoints=checkpoints, memory=memory)
        trainer.fit()
    return trainer


def give_memory_back() -> None:
    """Give back what the process no longer needs (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def print_memory(items: int, batch_size: int, optimizer: str, threads: int) -> None:
    """Train on a catalogue of ``items`` and print peak and parts; in a process of its own."""
    torch.set_num_threads(threads)
    options = ["device=cpu", f"batch_size={batch_size}", "max_steps=30", "validate_every_steps=15"]
    config = load_config(None, [f"training.{option}" for option in (*options, f"optimizer={optimizer}")])
    train_once(separable_world(num_users=50), config)
    give_memory_back()
    memory = MemoryMeter(torch.device("cpu"))
    trainer = train_once(world(8000, num_groups=items // 10), config, memory=memory)
    softmax = "full" if trainer.builder.full else "sampled"
    print(f"{items:,} items, {softmax} softmax, {optimizer}: {trainer.footprint()}", flush=True)


def print_memory_apart(*arguments: Any) -> None:
    """``print_memory`` in a fresh process."""
    process = multiprocessing.get_context("spawn").Process(target=print_memory, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"expected the memory of {arguments} to be measured, found exit code {process.exitcode}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rechub", default="", help="directory that torch-rechub==0.9.0 was installed into")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--users", type=int, default=8000)
    sizes = [20_000, 100_000, 1_000_000]
    parser.add_argument("--items", type=int, nargs="+", default=sizes, help="in the catalogues, multiples of 10")
    parser.add_argument("--optimizer", choices=["auto", "adamw", "adamw_sparse"], default="auto", help="of ours")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of ours")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="weigh trainings first")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for items, optimizer in MEMORY_RUNS if options.memory else ():
        print_memory_apart(items, options.batch_size, optimizer, options.threads)
    for items in options.items:
        print_rates(items, options)


def print_rates(items: int, options: argparse.Namespace) -> None:
    """Train on a catalogue of ``items`` and print examples a second and the input pipeline's share."""
    data = world(options.users, num_groups=items // 10)
    ours = (options.batch_size, options.precision, options.optimizer)
    runners: dict[str, Any] = {
        "ours, DSSM shape": Ours(data, our_config(*ours, dssm=True)),
        "ours, default architecture": Ours(data, our_config(*ours, dssm=False)),
    }
    if options.rechub:
        sys.path.insert(0, options.rechub)
        for workers in (0, 2):
            runners[f"torch-rechub DSSM, {workers} loader workers"] = Rechub(data, options.batch_size, workers)
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(options.repetitions):
        for name, runner in runners.items():
            rates[name].append(rate(runner.run_epoch))
    best_rechub = max((statistics.median(r) for name, r in rates.items() if "rechub" in name), default=0.0)
    for name, found in rates.items():
        median = statistics.median(found)
        ratio = f", {median / best_rechub:.1f} x torch-rechub" if best_rechub and "ours" in name else ""
        print(f"{items:,} items, {name}: {median:,.0f} examples/s ({min(found):,.0f} to {max(found):,.0f}){ratio}")
    for name, runner in runners.items():
        if isinstance(runner, Ours):
            share = 100 * runner.input_share()
            print(f"{items:,} items, {name}: input pipeline {share:.1f}% of a step ({runner.optimizer})", flush=True)


if __name__ == "__main__":
    main()
