"""The next batches are made in a thread while the current one is learned from."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


def prefetch(make: Callable[[A], T], arguments: Iterable[A], *, depth: int = 2) -> Iterator[T]:
    """``map(make, arguments)`` in order, up to ``depth`` results ahead; an exception is raised where its turn is."""
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
