"""Recurring runs against a server with the real endpoints; oracle: the server's state."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from conversion_retrieval.errors import UserError
from pipelines import remote, schedules
from pipelines.connection import connect


def test_schedule_leaves_one_enabled_recurring_run_without_catch_up(server, host, submission):
    for _ in range(3):
        schedules.schedule(connect(host), submission, cron="0 0 3 * * *", name="nightly")
    (schedule,) = server.recurring_runs.values()
    assert schedule["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert (schedule["status"], schedule["no_catchup"], schedule["max_concurrency"]) == ("ENABLED", True, 1)


@pytest.mark.parametrize(
    ("change", "cron"), [({}, "0 30 4 * * *"), ({"parameters": {"data_uri": "gs://other/data"}}, "0 0 3 * * *")]
)
def test_a_changed_schedule_replaces_the_old_one(server, host, submission, change, cron):
    old = schedules.schedule(connect(host), submission, cron="0 0 3 * * *", name="nightly")
    changed = remote.Submission(**{**vars(submission), **change})
    new = schedules.schedule(connect(host), changed, cron=cron, name="nightly")
    assert new != old
    assert list(server.recurring_runs) == [new]
    assert server.recurring_runs[new]["status"] == "ENABLED"


def test_an_interrupted_replacement_never_leaves_two_enabled_and_is_completed(server, host, submission):
    old = schedules.schedule(connect(host), submission, cron="0 0 3 * * *", name="nightly")
    server.fail_next.append(("DELETE", f"/apis/v2beta1/recurringruns/{old}", 503))
    with pytest.raises(UserError, match="503"):
        schedules.schedule(connect(host), submission, cron="0 30 4 * * *", name="nightly")
    assert [run["status"] for run in server.recurring_runs.values()].count("ENABLED") == 1
    new = schedules.schedule(connect(host), submission, cron="0 30 4 * * *", name="nightly")
    assert list(server.recurring_runs) == [new]


def test_a_schedule_is_paused_and_resumed_by_flag(server, host, submission):
    schedule_id = schedules.schedule(connect(host), submission, cron="0 0 3 * * *", name="nightly", paused=True)
    assert server.recurring_runs[schedule_id]["status"] == "DISABLED"
    schedules.schedule(connect(host), submission, cron="0 0 3 * * *", name="nightly")
    assert server.recurring_runs[schedule_id]["status"] == "ENABLED"


def test_racing_schedulers_leave_one_enabled_recurring_run(server, host, submission):
    clients = [connect(host) for _ in range(6)]

    def command(client) -> str:
        return schedules.schedule(client, submission, cron="0 0 3 * * *", name="nightly")

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(command, clients))
    (schedule,) = server.recurring_runs.values()
    assert schedule["status"] == "ENABLED"


def test_a_schedule_that_another_command_replaced_meanwhile_is_one_line(server, host, submission):
    """The rival deletes our recurring run, which is not what it was asked for, before we enable it."""
    client, make = connect(host), schedules.Schedule.create_disabled

    def make_and_lose(wanted, client):
        make(wanted, client)
        server.recurring_runs.clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules.Schedule, "create_disabled", make_and_lose)
        with pytest.raises(
            UserError, match="'nightly' as just made, found it replaced meanwhile: run the command again"
        ):
            schedules.schedule(client, submission, cron="0 0 3 * * *", name="nightly")
    assert schedules.schedule(client, submission, cron="0 0 3 * * *", name="nightly") in server.recurring_runs
