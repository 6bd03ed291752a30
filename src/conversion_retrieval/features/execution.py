"""Running partitions: on threads, on a Dask cluster inside this process, or on one elsewhere."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from conversion_retrieval import __version__
from conversion_retrieval.errors import UserError
from conversion_retrieval.features.config import FeatureConfig
from conversion_retrieval.features.partitions import Partition, Plan, build_partition
from conversion_retrieval.processors import usable_processors
from conversion_retrieval.progress import meter

CONNECT_SECONDS: Final = 30.0
WORKERS_SECONDS: Final = 600.0  # an autoscaled cluster begins without workers
IN_PROCESS: Final[Mapping[str, Any]] = {
    "processes": False,
    "n_workers": 1,
    "memory_limit": 0,  # the process has its own limit
    "silence_logs": logging.ERROR,
    # Both serve pages, by default to everybody: keep them to this machine, on any free port, and without graphics.
    "dashboard_address": "127.0.0.1:0",
    "worker_dashboard_address": "127.0.0.1:0",
    "scheduler_kwargs": {"dashboard": False},
}
Results = Iterator[tuple[int, Path]]


def run_partitions(plan: Plan, partitions: Sequence[Partition], config: FeatureConfig) -> list[Path]:
    """Build all partitions where the configuration says; their directories in partition order.

    ``UserError`` where a Dask cluster cannot be reached, has other code, does not see the scratch directory, or loses
    its workers.
    """
    run = _on_dask if config.use_dask or config.dask_address else _on_threads
    directories: dict[int, Path] = {}
    with meter("partitions", total=len(partitions), unit="partitions") as progress:
        for index, directory in run(plan, partitions, config.dask_address):
            directories[index] = directory
            progress.advance()
    return [directories[partition.index] for partition in partitions]


def _on_threads(plan: Plan, partitions: Sequence[Partition], _: str) -> Results:
    with ThreadPoolExecutor(max_workers=usable_processors()) as pool:
        futures: dict[Future[Path], int] = {pool.submit(build_partition, plan, p): p.index for p in partitions}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()


def _on_dask(plan: Plan, partitions: Sequence[Partition], address: str) -> Results:
    with _client(address) as client, _explained(address):
        if address:
            _check_workers(client, plan.scratch_dir, address)
        yield from _submitted(client, plan, partitions)


def _submitted(client: Any, plan: Plan, partitions: Sequence[Partition]) -> Results:
    from distributed import as_completed as dask_as_completed

    shared = client.scatter(plan, broadcast=True)
    futures = [client.submit(build_partition, shared, partition, pure=False) for partition in partitions]
    index = {future.key: partition.index for future, partition in zip(futures, partitions, strict=True)}
    try:
        for future in dask_as_completed(futures, loop=client.loop):  # type: ignore[no-untyped-call]
            yield index[future.key], future.result()
    finally:
        client.cancel(futures)


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """A client of the cluster at ``address``, or of one made in this process for as long as it is needed."""
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise UserError(
            "expected dask for features.use_dask or features.dask_address, found none: "
            "install it with pip install 'conversion-retrieval[dask]'"
        ) from None
    if address:
        try:
            client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
        except (OSError, TimeoutError, ValueError) as error:
            raise UserError(f"features.dask_address: expected a Dask scheduler at {address}, found: {error}") from None
        with client:
            yield client
        return
    with (
        LocalCluster(threads_per_worker=usable_processors(), **IN_PROCESS) as cluster,  # type: ignore[no-untyped-call]
        Client(cluster, set_as_default=False) as client,  # type: ignore[no-untyped-call]
    ):
        yield client


def _check_workers(client: Any, scratch_dir: Path, address: str) -> None:
    """Every worker must run this release and see the directory that results go through."""
    try:
        client.wait_for_workers(1, timeout=WORKERS_SECONDS)
    except TimeoutError:
        raise UserError(f"expected workers of the Dask cluster at {address}, found none: start some") from None
    for worker, (version, sees) in sorted(client.run(_worker_view, str(scratch_dir)).items()):
        if version != __version__:
            raise UserError(f"expected release {__version__} on the Dask worker {worker}, found {version}")
        if not sees:
            raise UserError(
                f"expected the Dask worker {worker} to see {scratch_dir}, found nothing there: "
                "set features.shared_dir to a directory on a volume that the stage and all workers mount"
            )


def _worker_view(scratch_dir: str) -> tuple[str, bool]:
    """Runs on a worker: its release, and whether the stage's scratch directory is there."""
    return __version__, Path(scratch_dir).is_dir()


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """What a cluster does to its tasks, as one line."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        yield
    except KilledWorker as error:
        raise UserError(
            f"expected the Dask workers at {address} to live through a partition, found: {error.last_worker} died: "
            "give them more memory or raise features.num_partitions"
        ) from None
    except ModuleNotFoundError as error:
        raise UserError(f"expected this package on the Dask workers at {address}, found: {error}") from None
    except (CancelledError, CommClosedError) as error:
        raise UserError(
            f"expected the Dask scheduler at {address} to stay reachable, found: {type(error).__name__}"
        ) from None
