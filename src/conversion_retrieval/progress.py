"""Progress of long steps: a bar with rate and time left on a terminal, plain lines now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


def say(message: str, *, stream: TextIO | None = None) -> None:
    """One plain line about what is going on, on standard error."""
    print(message, file=stream or sys.stderr, flush=True)


class Meter:
    """Counts finished work and shows it; made by ``meter``."""

    def __init__(self, description: str, total: float | None, unit: str, bar: Progress | None) -> None:
        self._description, self._total, self._unit, self._bar = description, total, unit, bar
        self._done = 0.0
        self._start = self._last_line = time.monotonic()
        self._task = bar.add_task(description, total=total, rate="", note="") if bar else None

    def advance(self, amount: float = 1, note: str = "") -> None:
        """``amount`` more is done; ``note`` (a loss, say) replaces the last one."""
        self._done += amount
        now = time.monotonic()
        rate = self._done / max(now - self._start, 1e-9)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{rate:,.0f} {self._unit}/s", note=note)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            of = f"/{self._total:,.0f}" if self._total else ""
            left = f", {(self._total - self._done) / max(rate, 1e-9):,.0f} s left" if self._total else ""
            say(f"{self._description}: {self._done:,.0f}{of} {self._unit}, {rate:,.0f}/s{left} {note}".rstrip())


@contextmanager
def meter(description: str, *, total: float | None = None, unit: str = "steps") -> Iterator[Meter]:
    """Show the progress of a block of work; call ``advance`` on what this yields."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Meter(description, total, unit, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield Meter(description, total, unit, bar)


def track(items: Iterable[T], description: str, *, total: int | None = None, unit: str = "steps") -> Iterator[T]:
    """Iterate over ``items`` and show how far it is."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with meter(description, total=total, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()
