"""Calls answered together. Oracle: what was asked, and the order in which an injected worker saw it."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from conversion_retrieval.serving.batching import Batcher, Overloaded


def test_a_lone_call_is_answered_without_waiting_for_company() -> None:
    batcher = Batcher(lambda calls: [call * 2 for call in calls], max_calls=8)
    assert asyncio.run(batcher(21)) == 42


def test_calls_that_arrive_during_a_batch_form_the_next_up_to_the_limit() -> None:
    entered, release = threading.Event(), threading.Event()
    batches: list[list[int]] = []

    def work(calls: Sequence[int]) -> list[int]:
        batches.append(list(calls))
        entered.set()
        assert release.wait(30)
        return [call * 10 for call in calls]

    async def ask() -> list[int]:
        batcher = Batcher(work, max_calls=4)
        first = asyncio.create_task(batcher(0))
        await asyncio.to_thread(entered.wait, 30)
        others = [asyncio.create_task(batcher(call)) for call in range(1, 7)]
        await asyncio.sleep(0)
        release.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(ask()) == [0, 10, 20, 30, 40, 50, 60]
    assert batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_each_call_gets_its_own_failure_and_a_failed_batch_fails_all_of_its_calls() -> None:
    def work(calls: Sequence[str]) -> list[str | Exception]:
        if "broken" in calls:
            raise RuntimeError("no batch")
        return [ValueError(call) if call == "bad" else call for call in calls]

    async def ask(*calls: str) -> list[object]:
        batcher = Batcher(work, max_calls=8)
        return await asyncio.gather(*map(batcher, calls), return_exceptions=True)

    good, bad = asyncio.run(ask("good", "bad"))
    assert good == "good"
    assert isinstance(bad, ValueError)
    assert [type(error) for error in asyncio.run(ask("broken", "good"))] == [RuntimeError, RuntimeError]


def test_the_worker_goes_on_after_a_failed_batch_and_a_cancelled_caller() -> None:
    def work(calls: Sequence[int]) -> list[int]:
        return [100 // call for call in calls]

    async def ask() -> int:
        batcher = Batcher(work, max_calls=1)
        gone = asyncio.create_task(batcher(5))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(ZeroDivisionError):
            await batcher(0)
        return await batcher(4)

    assert asyncio.run(ask()) == 25


def test_calls_beyond_those_that_may_wait_are_turned_away_at_once() -> None:
    async def ask() -> list[object]:
        batcher = Batcher(lambda calls: list(calls), max_calls=2, max_waiting=3)
        return await asyncio.gather(*(batcher(call) for call in range(5)), return_exceptions=True)

    answers = asyncio.run(ask())
    assert answers[:3] == [0, 1, 2]
    assert [type(answer) for answer in answers[3:]] == [Overloaded] * 2


def test_what_the_worker_begins_with_happens_in_its_own_thread() -> None:
    threads: list[threading.Thread] = []

    def work(calls: Sequence[int]) -> list[int]:
        threads.append(threading.current_thread())
        return list(calls)

    batcher = Batcher(work, max_calls=1, initializer=lambda: threads.append(threading.current_thread()))
    asyncio.run(batcher(1))
    assert len(threads) == 2
    assert threads[0] is threads[1] is not threading.main_thread()
