"""Recurring runs on Kubeflow Pipelines: one of a name, one run at a time, nothing caught up after a pause."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import kfp_server_api

from conversion_retrieval.errors import UserError
from pipelines import cluster
from pipelines.connection import Client, translated
from pipelines.cron import check_cron
from pipelines.remote import Submission, Version, ensured_experiment, named, run_parameters, upload

NOT_FOUND: Final = 404


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A recurring run as it is wanted, leaving aside whether it is paused."""

    name: str
    cron: str
    experiment_id: str
    version: Version
    parameters: Mapping[str, Any]
    service_account: str

    def matches(self, run: Any) -> bool:
        """Whether a recurring run on the server does what is wanted."""
        reference, trigger = run.pipeline_version_reference, run.trigger
        return bool(
            reference
            and reference.pipeline_version_id == self.version.version_id
            and trigger
            and trigger.cron_schedule
            and trigger.cron_schedule.cron == self.cron
            and str(run.max_concurrency) == "1"
            and run.no_catchup
            and run.service_account == self.service_account
            and run_parameters(run) == dict(self.parameters)
        )

    def existing(self, client: Client) -> list[Any]:
        """Every recurring run of this name, the first made first."""
        found = client.list_recurring_runs(experiment_id=self.experiment_id, **named(self.name)).recurring_runs or []
        return sorted(found, key=lambda run: (run.created_at, run.recurring_run_id))

    def create_disabled(self, client: Client) -> None:
        """Create the recurring run so that it does not fire yet."""
        client.create_recurring_run(
            self.experiment_id,
            self.name,
            cron_expression=self.cron,
            max_concurrency=1,
            no_catchup=True,
            params=dict(self.parameters),
            pipeline_id=self.version.pipeline_id,
            version_id=self.version.version_id,
            enabled=False,
            service_account=self.service_account,
        )


def schedule(
    client: Client,
    submission: Submission,
    *,
    cron: str,
    name: str,
    paused: bool = False,
    service_account: str = cluster.SERVICE_ACCOUNT,
) -> str:
    """Leave exactly one recurring run called ``name``, as asked for, and return its id.

    A recurring run cannot be changed: a different one is replaced. The new one is made disabled, the others are
    deleted, then it is enabled, so that at no moment two fire; repeated after a crash it goes on from there. Of two
    commands at once both keep the one that was made first; of two that ask for different things the one whose recurring
    run the other deleted raises ``UserError``.
    """
    cron = check_cron(cron)
    version = upload(client, submission)
    with translated("schedule"):
        wanted = Schedule(
            name=name,
            cron=cron,
            experiment_id=ensured_experiment(client),
            version=version,
            parameters=submission.parameters,
            service_account=service_account,
        )
        return _leave_one(client, wanted, paused=paused)


def _leave_one(client: Client, wanted: Schedule, *, paused: bool) -> str:
    if not any(wanted.matches(run) for run in wanted.existing(client)):
        wanted.create_disabled(client)
    existing = wanted.existing(client)
    kept = next((str(run.recurring_run_id) for run in existing if wanted.matches(run)), "")
    if not kept:
        raise UserError(
            f"expected the schedule {wanted.name!r} as just made, found it replaced meanwhile: run the command again"
        )
    for run in existing:
        if run.recurring_run_id != kept:
            _delete(client, run.recurring_run_id)
    (client.disable_recurring_run if paused else client.enable_recurring_run)(kept)
    return kept


def _delete(client: Client, recurring_run_id: str) -> None:
    try:
        client.delete_recurring_run(recurring_run_id)
    except kfp_server_api.ApiException as error:
        if error.status != NOT_FOUND:  # another command deleted it
            raise
