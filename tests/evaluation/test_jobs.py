import os
import select
import signal
from functools import partial

import pytest

from conversion_retrieval.errors import UserError
from conversion_retrieval.evaluation.jobs import Job, run_jobs
from conversion_retrieval.progress import say
from conversion_retrieval.training.interruption import Interrupted


def work(path, number):
    say(f"working on {number}")
    if number == 1:
        raise UserError("expected luck, found none")
    if number == 3:
        raise MemoryError
    path.write_text(str(number))


def have_the_parent_stopped(path):
    """Ends, leaving a mark, once the signal is passed on, to whichever of the process's threads."""
    came, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.kill(os.getppid(), signal.SIGTERM)
    if select.select([came], [], [], 60)[0]:
        path.touch()


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_job_that_fails_stops_no_other_and_is_named_with_its_log(tmp_path):
    jobs = [
        Job(name=f"job {n}", work=partial(work, tmp_path / str(n), n), log_path=tmp_path / "logs" / f"{n}.log")
        for n in range(3)
    ]
    with pytest.raises(
        UserError, match=r"found 1 failed, the first job 1 \(expected luck, found none; its log: .*1.log"
    ):
        run_jobs(jobs, num_processes=2)
    assert [(tmp_path / str(n)).exists() for n in range(3)] == [True, False, True]
    assert (tmp_path / "logs" / "1.log").read_text() == "working on 1\n"


def test_a_failure_without_words_is_named_by_its_kind(tmp_path):
    job = Job(name="job", work=partial(work, tmp_path / "3", 3), log_path=tmp_path / "3.log")
    with pytest.raises(UserError, match=r"the first job \(MemoryError\(\); its log"):
        run_jobs([job], num_processes=1)
    assert "MemoryError" in job.log_path.read_text()


def test_sigterm_is_passed_on_to_what_runs_and_nothing_more_is_begun(tmp_path, capsys):
    """Oracle: the first job waits for the signal and says that it came; the second would leave a mark, too."""
    before = signal.getsignal(signal.SIGTERM)
    jobs = [
        Job(name="first", work=partial(have_the_parent_stopped, tmp_path / "first"), log_path=tmp_path / "1.log"),
        Job(name="second", work=partial(work, tmp_path / "second", 2), log_path=tmp_path / "2.log"),
    ]
    with pytest.raises(Interrupted):
        run_jobs(jobs, num_processes=1)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["1.log", "first"]
    assert "run again to go on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_job_that_the_kernel_kills_stops_no_other(tmp_path):
    jobs = [
        Job(name="killed", work=be_killed, log_path=tmp_path / "killed.log"),
        Job(name="other", work=partial(work, tmp_path / "2", 2), log_path=tmp_path / "2.log"),
    ]
    with pytest.raises(UserError, match=r"found 1 failed, the first killed \(its process ended with exit code -9; its"):
        run_jobs(jobs, num_processes=1)
    assert (tmp_path / "2").read_text() == "2"
