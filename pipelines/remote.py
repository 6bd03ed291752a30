"""Versions and runs on Kubeflow Pipelines: each command checks first, creates once, and finishes what was begun."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import kfp_server_api
import urllib3
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_fixed

from conversion_retrieval import notification
from conversion_retrieval.errors import UserError
from conversion_retrieval.notification import CANCELING
from conversion_retrieval.progress import say
from pipelines import cluster
from pipelines.compile import images, require_pinned, version_name
from pipelines.connection import Client, translated
from pipelines.parameters import check_parameters, read_pipeline

EXPERIMENT: Final = "conversion-retrieval"
PAGE_SIZE: Final = 100
EQUALS: Final = 1  # of the API's filter operations
CONFLICT, TOO_MANY = 409, 429
POLL_ATTEMPTS: Final = 30
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


def upload(client: Client, submission: Submission) -> Version:
    """The submission's version on the server, the only one of its bytes: equal bytes have equal names.

    The pipeline is created without a version (the API's upload of a pipeline would add one of another name), then the
    version is uploaded to it. Each step is left out where it is done already, by an interrupted command or another
    submitter.
    """
    with translated("upload"):
        pipeline_id = _ensured_pipeline(client, submission.pipeline_name)
        version_id = _ensured_version(client, pipeline_id, submission)
    return Version(pipeline_id=pipeline_id, version_id=version_id, name=submission.version_name)


def submit(
    client: Client,
    submission: Submission,
    *,
    run_name: str = "",
    service_account: str = cluster.SERVICE_ACCOUNT,
) -> str:
    """Create a run and return its id; with ``run_name``, an equal run of that name instead of a second one.

    Raises ``UserError`` if the run of that name is of another version or has other parameters.
    """
    version = upload(client, submission)
    with translated("submit"):
        experiment_id = ensured_experiment(client)
        if run_name and (found := client.list_runs(experiment_id=experiment_id, **named(run_name)).runs):
            return _equal_run(found[0], version, submission)
        run = client.run_pipeline(
            experiment_id,
            run_name or f"{version.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
            params=dict(submission.parameters),
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
            service_account=service_account,
        )
    return str(run.run_id)


def _equal_run(run: Any, version: Version, submission: Submission) -> str:
    reference = run.pipeline_version_reference  # None for a run that was made from a file
    is_same_version = reference is not None and reference.pipeline_version_id == version.version_id
    if not is_same_version or run_parameters(run) != dict(submission.parameters):
        raise UserError(
            f"expected no run called {run.display_name!r} with another version or other parameters, found "
            f"{run.run_id}: choose another --run-name"
        )
    return str(run.run_id)


def run_status(client: Client, run_id: str) -> Any:
    """The server's record of a run; ``UserError`` for an unknown id."""
    with translated(f"run {run_id}"):
        return client.get_run(run_id)


def terminate(client: Client, run_id: str, *, webhook_url: str = "") -> str:
    """Stop a run, tell its webhook, and return its state; a finished one is left as it is.

    The exit handler of a terminated run starts only where Argo runs exit hooks after a deadline: so the command itself
    tells that the run is being cancelled. ``webhook_url`` is the run's parameter by default.
    """
    run = run_status(client, run_id)
    if run.state in FINISHED:
        return str(run.state)
    with translated(f"run {run_id}"):
        client.terminate_run(run_id)
    url = webhook_url or str(run_parameters(run).get("notification_url") or "")
    notification.notify(webhook_url=url, registry_uri="", run_id=run_id, state=CANCELING, error="terminated by hand")
    return CANCELING


def wait(client: Client, run_id: str, *, poll_seconds: float = 10.0) -> str:
    """Show a run's tasks as they change until it has finished; its final state."""
    shown: dict[str, str] = {}
    # A run takes hours: a restarting server or proxy must not end the waiting for it.
    patient = retry(
        retry=retry_if_exception(_is_passing),
        stop=stop_after_attempt(POLL_ATTEMPTS),
        wait=wait_fixed(poll_seconds),
        reraise=True,
    )
    with translated(f"run {run_id}"):
        while (run := patient(client.get_run)(run_id)).state not in FINISHED:
            _show_changes(run, shown)
            time.sleep(poll_seconds)
    _show_changes(run, shown)
    return str(run.state)


def task_states(run: Any) -> dict[str, str]:
    """The state of each task of a run by its display name."""
    details = getattr(run.run_details, "task_details", None) or []
    return {task.display_name: task.state for task in details if task.display_name and task.state}


def run_parameters(run: Any) -> dict[str, Any]:
    """The parameters that a run or a recurring run was given."""
    return dict((run.runtime_config and run.runtime_config.parameters) or {})


def require_finished_well(state: str, run_id: str) -> None:
    """``UserError`` for a run that did not succeed."""
    if state != "SUCCEEDED":
        raise UserError(f"run {run_id} ended {state.lower()}: look at its tasks in the UI")


def _show_changes(run: Any, shown: dict[str, str]) -> None:
    for name, state in task_states(run).items():
        if shown.get(name) != state:
            shown[name] = state
            say(f"{name}: {state.lower()}")


def _is_conflict(error: BaseException) -> bool:
    return isinstance(error, kfp_server_api.ApiException) and error.status == CONFLICT


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, kfp_server_api.ApiException):
        return error.status is not None and (error.status == TOO_MANY or error.status >= 500)
    return isinstance(error, urllib3.exceptions.HTTPError)


# Another submitter may create a thing between the look and the creation: the second look finds it.
_looking_again = retry(retry=retry_if_exception(_is_conflict), stop=stop_after_attempt(2), reraise=True)


@_looking_again
def _ensured_pipeline(client: Client, name: str) -> str:
    found = client.list_pipelines(namespace=client.namespace, **named(name)).pipelines
    if not found:
        found = [client.create_pipeline(name)]
    return str(found[0].pipeline_id)


@_looking_again
def _ensured_version(client: Client, pipeline_id: str, submission: Submission) -> str:
    name = submission.version_name
    found = client.list_pipeline_versions(pipeline_id, **named(name)).pipeline_versions
    if not found:
        found = [client.upload_pipeline_version(str(submission.path), name, pipeline_id=pipeline_id)]
    return str(found[0].pipeline_version_id)


@_looking_again
def ensured_experiment(client: Client) -> str:
    """The id of the experiment that runs and schedules belong to, created unless it is there."""
    return str(client.create_experiment(EXPERIMENT, namespace=client.namespace).experiment_id)


def named(name: str) -> dict[str, Any]:
    """List arguments that find what is called ``name``."""
    predicate = {"operation": EQUALS, "key": "display_name", "stringValue": name}
    return {"filter": json.dumps({"predicates": [predicate]}), "page_size": PAGE_SIZE}
