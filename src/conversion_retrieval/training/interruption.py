"""SIGTERM ends a run between two steps: the loop saves and leaves, and the next run resumes."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

EXIT_CODE: Final = 128 + signal.SIGTERM


class Interrupted(SystemExit):
    """The process was asked to end; the exit code is what a shell reports for SIGTERM, so that it counts as failed."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class StopRequest:
    """Whether SIGTERM came."""

    def __init__(self) -> None:
        self.received = False

    def __call__(self, _signum: int, _frame: FrameType | None) -> None:
        """Note the signal; the loop looks between two steps."""
        self.received = True


@contextmanager
def stop_on_sigterm() -> Iterator[StopRequest]:
    """Watch for SIGTERM inside the block; outside the main thread, where no handler may be set, it never comes."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = signal.signal(signal.SIGTERM, request)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, previous)
