"""The next batches are made in a thread while a GPU learns from the current one.

A CPU has no time to spare meanwhile: a step takes all cores, and with a thread beside it OpenMP's barriers wait for the
core that it took, which costs more than making the batch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

A = TypeVar("A")
T = TypeVar("T")


def prefetch(make: Callable[[A], T], arguments: Iterable[A], *, depth: int = 2) -> Iterator[T]:
    """``map(make, arguments)`` in order, up to ``depth`` results ahead; an exception is raised where its turn is."""
    if not depth:
        yield from map(make, arguments)
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
    pending: deque[Future[T]] = deque()
    try:
        for argument in arguments:
            pending.append(pool.submit(make, argument))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prefetch_depth(device: torch.device) -> int:
    """How many batches to make ahead for a device."""
    return 0 if device.type == "cpu" else 2
