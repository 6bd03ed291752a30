"""Calls that arrive while others are being answered are answered together: the towers cost little more for many."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Call = TypeVar("Call")
Answer = TypeVar("Answer")


class Overloaded(Exception):  # noqa: N818 - an answer, not a failure
    """More calls wait than may."""


class Batcher(Generic[Call, Answer]):
    """Runs ``work`` on batches of calls in one thread, which begins with ``initializer``.

    No call waits for company: an idle worker takes the first at once, and whatever comes meanwhile, up to
    ``max_calls``, is the next batch. So batches grow with the load, and a single client pays nothing.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Call]], Sequence[Answer | Exception]],
        *,
        max_calls: int,
        max_waiting: int = 1024,
        initializer: Callable[[], None] | None = None,
    ) -> None:
        self._work, self._max_calls, self._max_waiting = work, max_calls, max_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="retrieve", initializer=initializer)
        self._pending: deque[tuple[Call, asyncio.Future[Answer]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, call: Call) -> Answer:
        """The answer to one call; an exception that ``work`` returned for it, or raised for the batch, is raised.

        Raises ``Overloaded`` at once where ``max_waiting`` calls wait already: late answers help nobody.
        """
        if len(self._pending) >= self._max_waiting:
            raise Overloaded(f"expected at most {self._max_waiting} waiting calls, found as many: ask again later")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending.append((call, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            batch = [self._pending.popleft() for _ in range(min(len(self._pending), self._max_calls))]
            outcomes: Sequence[Answer | Exception]
            try:
                outcomes = await loop.run_in_executor(self._thread, self._work, [call for call, _ in batch])
            except Exception as error:  # whatever it is, its callers must hear of it
                outcomes = [error] * len(batch)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                _settle(future, outcome)


def _settle(future: "asyncio.Future[Answer]", outcome: Answer | Exception) -> None:
    if future.done():  # its caller went away
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
