"""SIGTERM ends a run between two steps, or in the middle of a validation: the loop saves, the next run resumes.

Before the first step there is nothing to save, and the process ends as any other.
"""

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
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
    """Whether SIGTERM came; ``then`` is called when it does."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.received = False
        self._then = then
        self._abandons = False

    def __call__(self, _signum: int, _frame: FrameType | None) -> None:
        """Note the signal; the loop looks between two steps."""
        self.received = True
        self._then()
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
def stop_on_sigterm(then: Callable[[], object] = lambda: None) -> Iterator[StopRequest]:
    """Watch for SIGTERM inside the block, and call ``then`` when it comes.

    Outside the main thread, where no handler may be set, it never comes.
    """
    request = StopRequest(then)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = signal.signal(signal.SIGTERM, request)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_and_forward_sigterm(command: Sequence[str]) -> int:
    """Run a command to its end and return its exit code; SIGTERM is passed on to it.

    A pod's SIGTERM reaches its first process alone. Raises ``Interrupted`` when the command ended after the signal.
    """
    process: subprocess.Popen[bytes] | None = None

    def forward() -> None:
        if process is not None:
            process.terminate()

    with stop_on_sigterm(forward) as stop:
        process = subprocess.Popen(command)  # noqa: S603 - our own command
        if stop.received:
            process.terminate()
        code = process.wait()
    if stop.received:
        raise Interrupted
    return code
