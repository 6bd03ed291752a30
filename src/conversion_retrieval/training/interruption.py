"""SIGTERM ends a run between two steps, or in the middle of a validation: the loop saves, the next run resumes.

Before the first step and after the last validation there is nothing to save, and the process ends as any other.
"""

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


class Abandoned(Exception):  # noqa: N818 - no error: work is given up on request
    """SIGTERM came inside ``StopRequest.abandoning``."""


class StopRequest:
    """Whether SIGTERM came."""

    def __init__(self) -> None:
        self.received = False
        self._abandons = False

    def __call__(self, _signum: int, _frame: FrameType | None) -> None:
        """Note the signal; the loop looks between two steps."""
        self.received = True
        self._abandon()

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """A block that changes nothing lasting: the signal raises ``Abandoned`` from wherever the block is.

        Only for work without collectives, in which other processes would wait for this one.
        """
        self._abandons = True
        try:
            if self.received:
                self._abandon()
            yield
        finally:
            self._abandons = False

    def _abandon(self) -> None:
        if self._abandons:
            self._abandons = False  # once: a second signal must not disturb the way out
            raise Abandoned


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
