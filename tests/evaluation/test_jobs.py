from functools import partial

import pytest

from conversion_retrieval.errors import UserError
from conversion_retrieval.evaluation.jobs import Job, run_jobs
from conversion_retrieval.progress import say


def work(path, number):
    say(f"working on {number}")
    if number == 1:
        raise UserError("expected luck, found none")
    if number == 3:
        raise MemoryError
    path.write_text(str(number))


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
