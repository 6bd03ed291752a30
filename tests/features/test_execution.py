"""Partitions on threads, on Dask in this process and on Dask in others: the same bytes, and errors of one line."""

import os
import sys
import time

import psutil
import pytest

from conversion_retrieval.errors import UserError
from conversion_retrieval.features import build, execution
from conversion_retrieval.features.partitions import build_partition
from tests.features.tables import random_rows
from tests.features.worlds import build_world, short_config

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def rows():
    return [{"event_id": f"e{number:05d}", **row} for number, row in enumerate(random_rows(7, users=9, count=300))]


@pytest.fixture(scope="module")
def other_processes():
    """A cluster whose scheduler is reached by TCP and whose two workers are processes of their own."""
    with distributed.LocalCluster(
        threads_per_worker=1, host="127.0.0.1", **execution.IN_PROCESS | {"processes": True, "n_workers": 2}
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def no_workers():
    with distributed.LocalCluster(**execution.IN_PROCESS | {"n_workers": 0}) as cluster:
        yield cluster.scheduler_address


def on(**features):
    return short_config(features={"aggregate_windows_days": [1, 5], **features})


@pytest.fixture(scope="module")
def digests(rows, tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("once"), rows, config=on(num_partitions=1)).digests


@pytest.mark.parametrize("partitions", [1, 2, 5])
@pytest.mark.parametrize("where", ["threads", "dask", "processes"])
def test_neither_partitions_nor_where_they_run_change_a_byte(
    where, partitions, rows, digests, other_processes, tmp_path
):
    place = {"threads": {}, "dask": {"use_dask": True}, "processes": {"dask_address": other_processes}}[where]
    world = build_world(tmp_path, rows, config=on(num_partitions=partitions, **place))
    assert world.digests == digests


def test_partitions_of_a_cluster_run_in_its_processes(rows, other_processes, tmp_path, monkeypatch):
    processes = []

    def note(plan, partitions, config):
        directories = execution.run_partitions(plan, partitions, config)
        processes.extend(int((directory / "process").read_text()) for directory in directories)
        return directories

    monkeypatch.setattr(execution, "build_partition", build_and_sign)
    monkeypatch.setattr(build, "run_partitions", note)
    build_world(tmp_path, rows, config=on(num_partitions=5, dask_address=other_processes))
    assert len(processes) == 5
    assert os.getpid() not in processes


def build_and_sign(plan, partition):
    directory = build_partition(plan, partition)
    (directory / "process").write_text(str(os.getpid()))
    return directory


def test_shared_directory_is_all_that_workers_need_and_is_left_empty(rows, digests, other_processes, tmp_path):
    shared = tmp_path / "volume"
    shared.mkdir()
    plans = []

    def remember(plan, partitions, config):
        plans.append(plan)
        return execution.run_partitions(plan, partitions, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "run_partitions", remember)
        config = on(num_partitions=2, dask_address=other_processes, shared_dir=str(shared))
        assert build_world(tmp_path, rows, config=config).digests == digests
    (plan,) = plans
    assert all(path.is_relative_to(shared) for path in (*plan.files, plan.scratch_dir))
    assert list(shared.iterdir()) == []


def test_what_killed_runs_left_in_the_shared_directory_goes_after_a_day(rows, digests, tmp_path):
    """A pod that is out of memory clears nothing away, and the volume outlives it; another run's is not touched."""
    names = {".build_features.old": 90_000, ".build_features.new": 80_000, "somebody's": 90_000}
    for name, age in names.items():
        (tmp_path / "volume" / name / "000000").mkdir(parents=True)
        os.utime(tmp_path / "volume" / name, (time.time() - age,) * 2)
    assert build_world(tmp_path, rows, config=on(shared_dir=str(tmp_path / "volume"))).digests == digests
    assert sorted(path.name for path in (tmp_path / "volume").iterdir()) == [".build_features.new", "somebody's"]


def test_shared_directory_that_is_not_there_is_one_line(rows, tmp_path):
    with pytest.raises(UserError, match=r"expected a directory to write partitions to at .*gone"):
        build_world(tmp_path, rows, config=on(shared_dir=str(tmp_path / "gone")))


def test_partition_that_is_done_twice_is_there_once(rows, tmp_path, monkeypatch):
    """A cluster gives a partition to another worker when it has lost sight of the first."""
    plans = []

    def twice(plan, partitions, config):
        first = execution.run_partitions(plan, partitions, config)
        again = [build_partition(plan, partition) for partition in partitions]
        plans.append(sorted(path.name for path in plan.scratch_dir.iterdir()))
        assert again == first
        return again

    monkeypatch.setattr(build, "run_partitions", twice)
    build_world(tmp_path, rows, config=on(num_partitions=3))
    assert plans == [["000000", "000001", "000002"]]


def one_line(caught):
    assert "\n" not in str(caught.value)


def test_scheduler_that_cannot_be_reached_is_one_line(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "CONNECT_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"expected a Dask scheduler at tcp://127\.0\.0\.1:9") as caught:
        build_world(tmp_path, rows, config=on(dask_address="tcp://127.0.0.1:9"))
    one_line(caught)


def test_cluster_without_workers_is_one_line(rows, no_workers, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "WORKERS_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"expected workers of the Dask cluster at .*, found none") as caught:
        build_world(tmp_path, rows, config=on(dask_address=no_workers))
    one_line(caught)


def test_workers_of_another_release_are_refused(rows, other_processes, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "__version__", "9.9.9")
    with pytest.raises(UserError, match=r"expected release 9\.9\.9 on the Dask worker tcp://127") as caught:
        build_world(tmp_path, rows, config=on(dask_address=other_processes))
    one_line(caught)


def test_workers_that_do_not_see_the_stages_directory_are_told_of_the_setting(other_processes, tmp_path):
    with (
        distributed.Client(other_processes, set_as_default=False) as client,
        pytest.raises(UserError, match=r"to see .*elsewhere, found nothing there: set features\.shared_dir") as caught,
    ):
        execution._check_workers(client, tmp_path / "elsewhere", other_processes)
    one_line(caught)


def test_error_of_a_partition_arrives_as_itself(rows, other_processes, tmp_path, monkeypatch):
    mixed = [{**row, "context_embedding": [1.0] * (1 + number % 2)} for number, row in enumerate(rows)]
    with pytest.raises(UserError, match="vectors of") as caught:
        build_world(tmp_path, mixed, config=on(num_partitions=1, dask_address=other_processes))
    one_line(caught)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (distributed.KilledWorker("task", "tcp://10.0.0.1:1", 3), "give them more memory"),
        (distributed.comm.core.CommClosedError("gone"), "to stay reachable"),
        (ModuleNotFoundError("No module named 'conversion_retrieval'"), "expected this package on the Dask workers"),
    ],
)
def test_what_a_cluster_does_to_its_tasks_is_one_line(failure, message):
    with pytest.raises(UserError, match=message) as caught, execution._explained("tcp://scheduler:8786"):
        raise failure
    one_line(caught)


def listening():
    return {
        connection.laddr for connection in psutil.Process().connections() if connection.status == psutil.CONN_LISTEN
    }


def test_cluster_in_this_process_listens_to_nobody_else():
    before = listening()
    with execution._client(""):
        assert {address.ip for address in listening() - before} <= {"127.0.0.1"}


def test_dask_that_is_not_installed_is_one_line(rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"pip install 'conversion-retrieval\[dask\]'"):
        build_world(tmp_path, rows, config=on(use_dask=True))
