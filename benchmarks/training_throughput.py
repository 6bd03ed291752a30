"""Training examples a second beside torch-rechub's DSSM on the same data, batch, embedding sizes and tower widths.

    pip install --no-deps --target /tmp/rechub torch-rechub==0.9.0 scikit-learn joblib threadpoolctl narwhals tqdm
    python -m benchmarks.training_throughput --rechub /tmp/rechub

torch-rechub is no dependency: it is read from the directory given, and left out when none is. Both train a DSSM on
in-batch negatives: item id embeddings shared with a mean over 50 history items, a category, a surface, dense columns,
an MLP a tower. Ours is measured in that shape, and with the default architecture (parallel DCNv2 and MLP, Transformer
history, popularity bias). Repetitions alternate; medians are shown.

Also printed: the share of a step that making its batch takes, and peak memory against tables + parameters +
optimiser state + one batch (its inputs and what its backward pass must remember).
"""

import argparse
import contextlib
import io
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import psutil
import torch

from conversion_retrieval.config import PipelineConfig, parse_config
from conversion_retrieval.training.examples import batch_order
from conversion_retrieval.training.loop import Trainer
from conversion_retrieval.training.prefetch import prefetch
from conversion_retrieval.training.stage import make_trainer
from tests.training.separable import SeparableWorld, separable_world

WIDTHS = [256, 128, 64]
DIM, HISTORY = 64, 50  # torch-rechub's DSSM wants one size for all embeddings


def world(users: int) -> SeparableWorld:
    """``5 * users`` queries with one positive each, 20,000 items, up to 100 events a user."""
    return separable_world(
        num_groups=2000,
        num_users=users,
        queries_per_user=5,
        positives_per_query=1,
        hard_negatives=0,
        history_length=HISTORY,
        max_events=100,
        tasks=(0,),
    )


def our_config(batch_size: int, precision: str, *, dssm: bool) -> PipelineConfig:
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
            "training": {"batch_size": batch_size, "device": "cpu", "precision": precision},
        }
    )


class Ours:
    """One epoch of our loop without validation."""

    def __init__(self, data: SeparableWorld, config: PipelineConfig) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            self.trainer: Trainer = make_trainer(data, config, device=torch.device("cpu"))
        self.epoch = 0

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
        for batch in prefetch(self.build, self.places()):
            self.trainer.learner.learn(batch, 100)
            examples += batch.num_queries
        return examples

    def input_share(self) -> float:
        """Seconds to make a batch over seconds of a step, one after the other."""
        making = learning = 0.0
        for place in self.places():
            start = time.perf_counter()
            batch = self.build(place)
            middle = time.perf_counter()
            self.trainer.learner.learn(batch, 100)
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


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors and arrays inside a nest of dataclasses and containers."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if is_dataclass(value):
        return sum(tensor_bytes(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    return 0


def peak_growth(action: Callable[[], object]) -> int:
    """How far the process grew above its size before ``action``, in bytes, sampled every five milliseconds."""
    process = psutil.Process()
    before, peak, done = process.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return peak - before


def activation_bytes(trainer: Trainer, batch: Any) -> int:
    """Bytes that a step's forward pass keeps for its backward pass, each storage once, parameters left out."""
    known = {p.untyped_storage().data_ptr() for p in trainer.learner.optimizer.parameters.values()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.learner.losses(batch)
    return sum(kept.values())


def print_memory(data: SeparableWorld, config: PipelineConfig) -> None:
    """Peak growth while setting up and training one epoch, against what must be held."""
    made: list[Ours] = []

    def train() -> None:
        made.append(Ours(data, config))
        made[0].run_epoch()

    grown = peak_growth(train)
    trainer, batch = made[0].trainer, made[0].build(made[0].places()[0])
    held = {
        "tables": tensor_bytes(trainer.builder.catalogue)
        + tensor_bytes(data.split("train"))
        + tensor_bytes(data.events),
        "parameters": tensor_bytes(dict(trainer.learner.optimizer.parameters)),
        "optimiser": tensor_bytes(trainer.learner.optimizer.state()),
        "batch": tensor_bytes(batch) + activation_bytes(trainer, batch),
    }
    total = sum(held.values())
    print("memory: " + ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in held.items()))
    print(f"peak growth {grown / 2**20:.1f} MiB = {grown / total:.2f} x their sum {total / 2**20:.1f} MiB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rechub", default="", help="directory that torch-rechub==0.9.0 was installed into")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--users", type=int, default=8000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of ours")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = world(options.users)
    print_memory(data, our_config(options.batch_size, options.precision, dssm=False))
    runners: dict[str, Any] = {
        "ours, DSSM shape": Ours(data, our_config(options.batch_size, options.precision, dssm=True)),
        "ours, default architecture": Ours(data, our_config(options.batch_size, options.precision, dssm=False)),
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
        print(f"{name}: {median:,.0f} examples/s ({min(found):,.0f} to {max(found):,.0f}){ratio}")
    for name, runner in runners.items():
        if isinstance(runner, Ours):
            print(f"{name}: input pipeline {100 * runner.input_share():.1f}% of a step")


if __name__ == "__main__":
    main()
