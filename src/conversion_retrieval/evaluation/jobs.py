"""Independent pieces of work in processes of their own.

Each writes what it says to a file. One that raises stops no other; where the kernel kills a process, those that have
not ended fail with it. Either way a repeated run has only the failed ones to do.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.progress import say


@dataclass(frozen=True, kw_only=True)
class Job:
    """``work`` must be picklable; what it prints on standard error goes to ``log_path``."""

    name: str
    work: Callable[[], object]
    log_path: Path


def run_jobs(jobs: Sequence[Job], *, num_processes: int) -> None:
    """Run all jobs, ``num_processes`` at a time, the machine's cores divided among them.

    Raises ``UserError`` naming the first that failed, once all have ended.
    """
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    failed: list[str] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, _limit_threads, (threads,)) as pool:
        submitted = {pool.submit(_run, job): job for job in jobs}
        for count, future in enumerate(as_completed(submitted), start=1):
            job, error = submitted[future], future.exception()
            reason = "" if error is None else one_line(error) or repr(error)
            say(f"[{count}/{len(jobs)}] {job.name}: {f'failed: {reason}' if reason else 'done'}")
            if reason:
                failed.append(f"{job.name} ({reason}; its log: {job.log_path})")
    if failed:
        raise UserError(
            f"expected {len(jobs)} jobs to end well, found {len(failed)} failed, the first {failed[0]}: "
            "run again to do only what is missing"
        )


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _run(job: Job) -> None:
    job.log_path.parent.mkdir(parents=True, exist_ok=True)
    with job.log_path.open("a") as log, contextlib.redirect_stderr(log):
        job.work()
