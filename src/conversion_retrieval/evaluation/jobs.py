"""Independent pieces of work, each in a process of its own.

Each writes what it says to a file. One that raises, or that the kernel kills, stops no other, and a repeated run has
only the failed ones to do. SIGTERM is passed on to those that run, and no other is begun.
"""

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path

from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.processors import usable_processors
from conversion_retrieval.progress import say
from conversion_retrieval.training.interruption import Interrupted, stop_on_sigterm


@dataclass(frozen=True, kw_only=True)
class Job:
    """``work`` must be picklable; what it prints on standard error goes to ``log_path``."""

    name: str
    work: Callable[[], object]
    log_path: Path


def run_jobs(jobs: Sequence[Job], *, num_processes: int) -> None:
    """Run all jobs, ``num_processes`` at a time, the machine's cores divided among them.

    Raises ``UserError`` naming the first that failed, once all have ended; ``Interrupted`` after SIGTERM, once those
    that ran have ended.
    """
    processes = _Processes(threads=max(1, usable_processors() // num_processes))
    failed: list[str] = []
    # One thread waits for each process: a pool of processes would leave them behind when this one is stopped.
    pool = ThreadPoolExecutor(num_processes)
    with stop_on_sigterm(processes.stop) as stop:
        try:
            submitted = {pool.submit(processes.run, job): job for job in jobs}
            for count, future in enumerate(as_completed(submitted), start=1):
                if stop.received:
                    break
                job, reason = submitted[future], future.result()
                say(f"[{count}/{len(jobs)}] {job.name}: {f'failed: {reason}' if reason else 'done'}")
                if reason:
                    failed.append(f"{job.name} ({reason}; its log: {job.log_path})")
        finally:
            processes.stop()  # nothing is left to stop unless this ends early
            pool.shutdown(cancel_futures=True)
    if stop.received:
        say("stopped by SIGTERM: run again to go on")
        raise Interrupted
    if failed:
        raise UserError(
            f"expected {len(jobs)} jobs to end well, found {len(failed)} failed, the first {failed[0]}: "
            "run again to do only what is missing"
        )


@dataclass(kw_only=True)
class _Processes:
    """Those that run now, and whether any more may begin."""

    threads: int
    context: SpawnContext = field(default_factory=lambda: multiprocessing.get_context("spawn"))
    running: list[SpawnProcess] = field(default_factory=list)
    stopped: bool = False

    def run(self, job: Job) -> str:
        """Run a job to its end; returns why it failed, nothing where it did not."""
        if self.stopped:
            return "not begun"
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_run, args=(job, self.threads, sender))
        with sender:
            process.start()
        self.running.append(process)
        if self.stopped:  # ``stop`` may have looked before the process was there
            process.terminate()
        reason = None
        with receiver, contextlib.suppress(EOFError):
            reason = str(receiver.recv())
        process.join()
        self.running.remove(process)
        return f"its process ended with exit code {process.exitcode}" if reason is None else reason

    def stop(self) -> None:
        """Pass SIGTERM on, and begin nothing more."""
        self.stopped = True
        for process in list(self.running):
            if process.is_alive():
                process.terminate()


def _run(job: Job, threads: int, sender: Connection) -> None:
    import torch

    torch.set_num_threads(threads)
    job.log_path.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    with job.log_path.open("a") as log, contextlib.redirect_stderr(log):
        try:
            job.work()
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
            reason = one_line(error) or repr(error)
    sender.send(reason)
