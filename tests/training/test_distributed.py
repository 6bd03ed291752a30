from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from conversion_retrieval.errors import UserError
from conversion_retrieval.training.checkpoint import Checkpoint, Checkpoints, Position, common_latest
from conversion_retrieval.training.distributed import (
    copy_from_first,
    gather_rows,
    process_group,
    sum_gradients,
    wait_for_all,
)
from conversion_retrieval.training.examples import batch_order
from conversion_retrieval.training.shard import Shard
from conversion_retrieval.training.stage import make_trainer
from tests.training.runs import small_config
from tests.training.separable import separable_world

SOFTMAXES = {
    "full": {},
    "sampled": {},
    "sampled_by_positive": {"mask_same_user_positives": False},
    "sampled_sparse": {},
}


def gradients(softmax: str, shard: Shard) -> dict[str, torch.Tensor]:
    """This process's share of the gradients of the first batch, without dropout."""
    losses = {"softmax": softmax.split("_")[0], **SOFTMAXES[softmax]}
    training = {"optimizer": "adamw_sparse" if softmax.endswith("sparse") else "adamw"}
    config = small_config(losses=losses, training=training, model={"history": {"dropout": 0.0}})
    world = separable_world(num_users=60)
    trainer = make_trainer(world, config, shard=shard)
    snapshot, rows = batch_order(trainer.builder.examples, 37, seed=0, epoch=0)[0]
    batch = trainer.builder.build(snapshot, rows, epoch=0, index=0)
    trainer.learner.losses(batch).total.backward()
    parameters = trainer.learner.optimizer.parameters
    sum_gradients(parameters.values())
    found = {name: p.grad.to_dense().clone() for name, p in parameters.items() if p.grad is not None}
    trainer.learner.optimizer.clip()
    trainer.learner.optimizer.step(0)  # takes the summed gradients, sparse ones included
    return found


def in_process(rank: int, world_size: int, directory: str) -> None:
    """Everything that two processes are tested on, in one start of both."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{directory}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        shard = Shard(rank=rank, world_size=world_size)
        check_gather(shard)
        check_copy(shard)
        check_common_checkpoint(shard, Path(directory) / "checkpoints")
        torch.save({softmax: gradients(softmax, shard) for softmax in SOFTMAXES}, f"{directory}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def check_gather(shard: Shard) -> None:
    """Five rows of two processes: each row's gradient is the sum of what both processes ask of it."""
    part = torch.arange(5.0)[shard.slice(5)].unsqueeze(1).requires_grad_()
    rows = gather_rows(part, shard, 5)
    assert rows.flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    (rows.flatten() * torch.arange(5.0) * (shard.rank + 1)).sum().backward()
    assert part.grad.flatten().tolist() == (3 * torch.arange(5.0))[shard.slice(5)].tolist()


def check_copy(shard: Shard) -> None:
    """Both end up with what the first had."""
    tensors = [torch.full((3,), float(shard.rank + 1)), torch.nn.Parameter(torch.full((2, 2), float(shard.rank + 5)))]
    copy_from_first(tensors, shard)
    assert tensors[0].tolist() == [1.0] * 3
    assert tensors[1].tolist() == [[5.0, 5.0]] * 2


def check_common_checkpoint(shard: Shard, directory: Path) -> None:
    """Both go on from the same one; where the second cannot read it, as from a volume that lags, it refuses another."""
    checkpoints = Checkpoints(directory=directory, fingerprint="run", keep=2)
    if shard.rank == 0:
        for step in (3, 6):
            checkpoints.save(Checkpoint(position=Position(step=step), tensors={"w": torch.zeros(1)}))
    wait_for_all()
    assert common_latest(checkpoints, shard, torch.device("cpu")).position.step == 6
    behind = replace(checkpoints, directory=directory / "empty") if shard.rank else checkpoints
    with nullcontext() if shard.rank == 0 else pytest.raises(UserError, match="found another, None, in this one"):
        common_latest(behind, shard, torch.device("cpu"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """The gradients that each of two processes ended up with, after the gather was checked in them."""
    directory = tmp_path_factory.mktemp("processes")
    mp.spawn(in_process, args=(2, str(directory)), nprocs=2)
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(processes, softmax: str) -> None:
    for name, gradient in gradients(softmax, Shard()).items():
        for found in processes:
            torch.testing.assert_close(found[softmax][name], gradient, rtol=1e-3, atol=1e-6)


def test_shards_cover_everything_once() -> None:
    for count in (0, 1, 7, 8):
        parts = [range(count)[Shard(rank=r, world_size=3).slice(count)] for r in range(3)]
        assert [i for part in parts for i in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_processes_wait_for_the_firsts_fits_longer_than_nccl_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: NCCL's own limit of ten minutes."""
    asked = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: asked.update({backend: options}))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with process_group("cuda"):
        pass
    assert asked["nccl"]["timeout"] >= timedelta(hours=1)
