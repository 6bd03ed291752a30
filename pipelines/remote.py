"""Runs and schedules on Kubeflow Pipelines: each command checks first, creates once, and finishes what was begun."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Optional

import kfp

from conversion_retrieval.errors import UserError
from conversion_retrieval.progress import say
from pipelines import cluster
from pipelines.compile import images, require_pinned, version_name
from pipelines.connection import translated
from pipelines.cron import check_cron
from pipelines.parameters import check_parameters, read_pipeline

EXPERIMENT: Final = "conversion-retrieval"
PAGE_SIZE: Final = 100
EQUALS: Final = 1  # of the API's filter operations
FINISHED: Final = frozenset({"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"})


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A compiled pipeline and its parameters, checked, before anything is sent."""

    path: Path
    pipeline_name: str
    version_name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Version:
    """A pipeline version on the server."""

    pipeline_id: str
    version_id: str
    name: str


def prepare(path: Path, given: Iterable[str], *, allow_mutable_image: bool = False) -> Submission:
    """Check a pipeline file, its images and the parameters; ``UserError`` for what would fail on the cluster."""
    spec = read_pipeline(path)
    content = path.read_bytes()
    if not allow_mutable_image:
        for image in sorted(images(content)):
            require_pinned(image, where=str(path))
    pipeline_name = spec["pipelineInfo"]["name"]
    return Submission(
        path=path,
        pipeline_name=pipeline_name,
        version_name=version_name(pipeline_name, content),
        parameters=check_parameters(spec, given),
    )


def upload(client: kfp.Client, submission: Submission) -> Version:
    """The submission's version on the server, uploaded unless it is there: equal bytes have equal names."""
    with translated("upload"):
        pipeline_id = client.get_pipeline_id(submission.pipeline_name)
        if pipeline_id is None:
            pipeline_id = client.upload_pipeline(
                str(submission.path), pipeline_name=submission.pipeline_name
            ).pipeline_id
        found = client.list_pipeline_versions(pipeline_id, **_named(submission.version_name)).pipeline_versions
        version = (found or [None])[0] or client.upload_pipeline_version(
            str(submission.path), submission.version_name, pipeline_id=pipeline_id
        )
    return Version(pipeline_id=pipeline_id, version_id=version.pipeline_version_id, name=submission.version_name)


def submit(
    client: kfp.Client,
    submission: Submission,
    *,
    run_name: str = "",
    namespace: Optional[str] = None,
    service_account: str = cluster.SERVICE_ACCOUNT,
) -> str:
    """Create a run and return its id; a run of the same ``run_name`` is returned instead of made again."""
    version = upload(client, submission)
    with translated("submit"):
        experiment_id = client.create_experiment(EXPERIMENT, namespace=namespace).experiment_id
        if run_name:
            found = client.list_runs(experiment_id=experiment_id, **_named(run_name)).runs
            if found:
                return str(found[0].run_id)
        run = client.run_pipeline(
            experiment_id,
            run_name or f"{version.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
            params=dict(submission.parameters),
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
            service_account=service_account,
        )
    return str(run.run_id)


def schedule(
    client: kfp.Client,
    submission: Submission,
    *,
    cron: str,
    name: str,
    paused: bool = False,
    namespace: Optional[str] = None,
    service_account: str = cluster.SERVICE_ACCOUNT,
) -> str:
    """Leave exactly one recurring run called ``name``, as asked for, and return its id.

    A recurring run cannot be changed: a different one is replaced. The new one is made disabled, the old ones are
    deleted, then it is enabled, so that at no moment two fire; repeated after a crash it goes on from there.
    """
    cron = check_cron(cron)
    version = upload(client, submission)
    with translated("schedule"):
        experiment_id = client.create_experiment(EXPERIMENT, namespace=namespace).experiment_id
        existing = client.list_recurring_runs(experiment_id=experiment_id, **_named(name)).recurring_runs or []
        wanted = next((run for run in existing if _matches(run, cron, version, submission, service_account)), None)
        if wanted is None:
            wanted = client.create_recurring_run(
                experiment_id,
                name,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                params=dict(submission.parameters),
                pipeline_id=version.pipeline_id,
                version_id=version.version_id,
                enabled=False,
                service_account=service_account,
            )
        wanted_id = str(wanted.recurring_run_id)
        for run in existing:
            if run.recurring_run_id != wanted_id:
                client.delete_recurring_run(run.recurring_run_id)
        (client.disable_recurring_run if paused else client.enable_recurring_run)(wanted_id)
    return wanted_id


def run_status(client: kfp.Client, run_id: str) -> Any:
    """The server's record of a run; ``UserError`` for an unknown id."""
    with translated(f"run {run_id}"):
        return client.get_run(run_id)


def terminate(client: kfp.Client, run_id: str) -> str:
    """Stop a run and return its state; a finished one is left as it is."""
    run = run_status(client, run_id)
    if run.state in FINISHED:
        return str(run.state)
    with translated(f"run {run_id}"):
        client.terminate_run(run_id)
    return "CANCELING"


def wait(client: kfp.Client, run_id: str, *, poll_seconds: float = 10.0) -> str:
    """Show a run's tasks as they change until it has finished; its final state."""
    shown: dict[str, str] = {}
    while (run := run_status(client, run_id)).state not in FINISHED:
        _show_changes(run, shown)
        time.sleep(poll_seconds)
    _show_changes(run, shown)
    return str(run.state)


def task_states(run: Any) -> dict[str, str]:
    """The state of each task of a run by its display name."""
    details = getattr(run.run_details, "task_details", None) or []
    return {task.display_name: task.state for task in details if task.display_name and task.state}


def run_address(host: str, run_id: str) -> str:
    """Where a person looks at the run."""
    return f"{host.rstrip('/')}/#/runs/details/{run_id}"


def _show_changes(run: Any, shown: dict[str, str]) -> None:
    for name, state in task_states(run).items():
        if shown.get(name) != state:
            shown[name] = state
            say(f"{name}: {state.lower()}")


def _named(name: str) -> dict[str, Any]:
    """List arguments that find what is called ``name``."""
    predicate = {"operation": EQUALS, "key": "display_name", "stringValue": name}
    return {"filter": json.dumps({"predicates": [predicate]}), "page_size": PAGE_SIZE}


def _matches(run: Any, cron: str, version: Version, submission: Submission, service_account: str) -> bool:
    """Whether a recurring run does what is asked for, leaving aside if it is paused."""
    reference, trigger = run.pipeline_version_reference, run.trigger
    return bool(
        reference
        and reference.pipeline_version_id == version.version_id
        and trigger
        and trigger.cron_schedule
        and trigger.cron_schedule.cron == cron
        and str(run.max_concurrency) == "1"
        and run.no_catchup
        and run.service_account == service_account
        and dict(run.runtime_config.parameters or {}) == dict(submission.parameters)
    )


def require_finished_well(state: str, run_id: str) -> None:
    """``UserError`` for a run that did not succeed."""
    if state != "SUCCEEDED":
        raise UserError(f"run {run_id} ended {state.lower()}: look at its tasks in the UI")
