"""What a person sees of a local run: a line a stage, its progress, its messages; everything else goes to the log.

kfp.local writes its own logging, the stages' output and tracebacks to one stream. ``StageView`` takes the place of
that stream, keeps all of it in a file, and shows the part that says something.
"""

import builtins
import io
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Optional

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
STARTED: Final = re.compile(r"INFO - Executing task '([\w-]+)'")
FINISHED: Final = re.compile(r"Task '([\w-]+)' finished with status (SUCCESS|FAILURE)")
# The lines of ``conversion_retrieval.progress``: "train: 1,200/5,000 steps, 80/s, 47 s left loss 3.21".
PROGRESS: Final = re.compile(r"(?P<what>[^:]+): (?P<done>[\d,]+)/(?P<total>[\d,]+) \S+, [\d,]+/s.*")
# "pyarrow.lib.ArrowInvalid: text", "struct.error: text", "MemoryError". Log lines may fall between a traceback's, so
# that a word without a module ("INFO: text") must be a built-in exception, or be called like one.
EXCEPTION: Final = re.compile(
    r"(?P<module>(?:(?:[A-Za-z_]\w*|<locals>)\.)+)?(?P<type>[A-Z]\w*|[a-z]*error)(?::(?: (?P<text>.*))?)?"
)
EXCEPTION_NAME: Final = re.compile(r"\w+(?:Error|Exception|Interrupt|Exit)")
USER_ERRORS: Final = re.compile(r"conversion_retrieval\.(?:errors|storage)\.\w+: ")
NOISE: Final = re.compile(r"\[KFP Executor|ModuleNotFoundError\(|\s*$|.*Warning: |\s+warnings\.warn")
# kfp's executor prints its whole input as JSON, from a brace to a brace on lines of their own.
JSON_STARTS, JSON_ENDS = "{", "}"
INDENT: Final = "    "


class StageView(io.TextIOBase):
    """A text stream that shows stages as they run; ``stages`` are the pipeline's, in order.

    A task that is none of them is shown only when it fails.
    """

    def __init__(self, log_path: Path, *, stages: Sequence[str], console: Optional[Console] = None) -> None:
        self.failed_stage = ""
        self.failure = ""
        self.failure_is_users = False
        self._console = console or Console(stderr=True, highlight=False)
        self._log = log_path.open("w", encoding="utf-8")
        self._stages, self._started = list(stages), time.monotonic()
        self._pending, self._running, self._in_json, self._in_traceback = "", False, False, False
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def writable(self) -> bool:
        """A stream to write to."""
        return True

    def write(self, text: str, /) -> int:
        """Take output in pieces of any size; complete lines are logged and shown."""
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            self._log.write(line + "\n")
            self._show(ANSI.sub("", line))
        return len(text)

    def close(self) -> None:
        """End the bar and the log."""
        if not self.closed:
            self._end_bar()
            self._log.close()
        super().close()

    def _show(self, line: str) -> None:
        if started := STARTED.search(line):
            self._start(started[1].replace("-", "_"))
        elif finished := FINISHED.search(line):
            self._finish(finished[1].replace("-", "_"), finished[2])
        elif self._running and line.startswith(INDENT):
            self._stage_line(line.removeprefix(INDENT))

    def _start(self, stage: str) -> None:
        self._started = time.monotonic()
        self._running, self._in_json, self._in_traceback = True, False, False
        if not self.failed_stage:  # what an earlier stage logged and survived is not why this one fails
            self.failure, self.failure_is_users = "", False
        if stage in self._stages:
            number = self._stages.index(stage) + 1
            self._console.print(f"[{number}/{len(self._stages)}] {stage}", style="bold", markup=False)

    def _finish(self, stage: str, status: str) -> None:
        self._end_bar()
        self._running = False
        if status == "FAILURE":
            self.failed_stage = self.failed_stage or stage
            self._console.print("      failed" if stage in self._stages else f"      {stage} failed", markup=False)
        elif stage in self._stages:
            self._console.print(f"      done in {time.monotonic() - self._started:,.1f} s")

    def _stage_line(self, line: str) -> None:
        if self._in_json or line == JSON_STARTS:
            self._in_json = line != JSON_ENDS
        elif line.startswith("Traceback (most recent call last)"):
            self._in_traceback = True
        elif self._in_traceback:
            self._traceback_line(line)
        elif progress := PROGRESS.fullmatch(line):
            self._progress(line, progress["what"], _number(progress["done"]), _number(progress["total"]))
        elif not NOISE.match(line):
            self._print(line)

    def _traceback_line(self, line: str) -> None:
        exception = EXCEPTION.fullmatch(line)
        if exception and (exception["module"] or _is_exception_name(exception["type"])):
            self._in_traceback = False
            if self.failed_stage:  # tasks that run at the end come after the failure
                return
            kind, text = exception["type"], (exception["text"] or "").strip()
            self.failure_is_users = bool(text and USER_ERRORS.match(line))
            self.failure = text if self.failure_is_users else f"{kind}: {text}" if text else kind

    def _progress(self, line: str, what: str, done: float, total: float) -> None:
        if not self._console.is_terminal:
            self._print(line)
            return
        if self._bar is None:
            columns = (TextColumn("      {task.description}"), BarColumn(), TextColumn("{task.fields[line]}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(what, total=total, line="")
            self._bar.start()
        assert self._task is not None
        rest = line.partition(": ")[2]
        self._bar.update(self._task, description=what, completed=done, total=total, line=rest)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _print(self, line: str) -> None:
        self._console.print(f"      {line}", markup=False, soft_wrap=True)


def _is_exception_name(name: str) -> bool:
    known = getattr(builtins, name, None)
    return bool(EXCEPTION_NAME.fullmatch(name) or (isinstance(known, type) and issubclass(known, BaseException)))


def _number(text: str) -> float:
    return float(text.replace(",", ""))
