"""How a run ended, told to people: stages record the outcome in the registry, the exit handler posts it to a webhook.

An exit handler cannot read the outputs of the tasks it guards (they may never have run), so what is known travels
through ``REGISTRY/runs/<run id>.json``.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.progress import say
from conversion_retrieval.registry.decision import read_decision
from conversion_retrieval.storage import NotFoundError, open_store

URL_VARIABLE: Final = "NOTIFICATION_URL"
TIMEOUT_SECONDS: Final = 10
ATTEMPTS: Final = 3
# Backends before 2.17 report ML Metadata's states, COMPLETE rather than SUCCEEDED; a skipped task counts as done.
SUCCESSES: Final = frozenset({"SUCCEEDED", "COMPLETE", "CACHED", "SKIPPED"})
FAILED, CANCELING = "FAILED", "CANCELING"
# The verdicts after which a run has nothing left to do; "promote" has its version to write first.
LAST_VERDICTS: Final = frozenset({"invalid", "reject", "insufficient_data"})


def record_outcome(
    registry_uri: str,
    run_id: str,
    *,
    verdict: str,
    report_uri: str = "",
    report_dir: Path | None = None,
    decision_dir: Path | None = None,
) -> None:
    """Keep what a run has come to so far, with the reason that the report or the decision gives.

    A later stage's record replaces an earlier one's. A run without registry keeps none. A registry that cannot keep it
    is told of and never raises: what the stage did stands.
    """
    if not registry_uri:
        return
    outcome: dict[str, Any] = {"verdict": verdict, "report": report_uri}
    if report_dir is not None:
        outcome["reason"] = json.loads((report_dir / "validation.json").read_text())["reason"]
    if decision_dir is not None:
        outcome |= _of_decision(decision_dir)
    with _best_effort():
        _write_outcome(registry_uri, run_id, outcome)


def record_promotion(registry_uri: str, run_id: str, *, version: str) -> None:
    """Add the promoted version to what ``record_outcome`` kept; from then on the run counts as finished.

    As ``record_outcome``, never raises for the registry's condition: the champion is swapped already.
    """
    with _best_effort():
        _write_outcome(registry_uri, run_id, _outcome_or_error(registry_uri, run_id) | {"version": version})


def read_outcome(registry_uri: str, run_id: str) -> dict[str, Any]:
    """What ``record_outcome`` kept last; empty if the run ended before anything was known, or has no registry."""
    if not registry_uri:
        return {}
    try:
        outcome = json.loads(open_store(registry_uri).read(_key(run_id)).content)
    except NotFoundError:
        return {}
    return outcome if isinstance(outcome, dict) else {}


def notify(*, webhook_url: str, registry_uri: str, run_id: str, state: str, error: str = "") -> bool:
    """Post a run's end as JSON; whether it arrived. Never raises: a broken webhook must not fail a good run.

    ``webhook_url`` falls back to the environment's ``NOTIFICATION_URL``; with neither, nothing is sent.
    """
    url = webhook_url or os.environ.get(URL_VARIABLE, "")
    if not url:
        say("notify: no webhook is configured, nothing sent")
        return False
    try:
        post(url, message(run_id=run_id, state=state, error=error, outcome=_outcome_or_error(registry_uri, run_id)))
    except Exception as failure:  # whatever it is, the run's own result stands
        # Not the failure's text: urllib's may hold the address, and a webhook's address is its password.
        say(f"notify: the webhook was not reached ({type(failure).__name__}); the run's result stands")
        return False
    say("notify: sent")
    return True


def message(*, run_id: str, state: str, error: str, outcome: dict[str, Any]) -> dict[str, Any]:
    """The posted JSON. ``text`` is what chat systems show; the other keys are for programs.

    The decision's reason holds recall with its interval and n; ``recall`` has the same as numbers.
    """
    ended = ended_as(state, outcome)
    parts = [f"conversion-retrieval run {run_id}: {ended}"]
    parts += [text for text in (outcome.get("reason"), error, outcome.get("report")) if text]
    return {"text": " - ".join(parts), "run_id": run_id, "ended": ended, "state": state, "error": error, **outcome}


def ended_as(state: str, outcome: dict[str, Any]) -> str:
    """One word for how a run ended: the verdict, ``failed``, ``canceling``, ``cancelled`` or ``none``.

    The exit handler of a terminated run is told the state that its tasks were left in, which may be RUNNING. The same
    is said of a finished run by backends that update states later than they start the handler: then the run's own
    record decides.
    """
    if state in {FAILED, CANCELING}:
        return state.lower()
    verdict = str(outcome.get("verdict") or "none")
    if state in SUCCESSES or verdict in LAST_VERDICTS or "version" in outcome:
        return verdict
    return "cancelled"


def post(url: str, body: dict[str, Any]) -> None:
    """POST ``body`` as JSON, again after a network error or a server's 5xx; raises what the last attempt did."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise UserError("expected an http:// or https:// webhook address")
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=0.2, max=5),
        retry=retry_if_exception(_may_pass),
        reraise=True,
    )
    with retrying.copy()(urllib.request.urlopen, request, timeout=TIMEOUT_SECONDS) as response:
        response.read()


def _may_pass(error: BaseException) -> bool:
    """A 4xx is an answer, and the same next time.

    What happens before the request is sent is urllib's error; a connection that then breaks or says nothing is not.
    """
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, OSError)


def _write_outcome(registry_uri: str, run_id: str, outcome: dict[str, Any]) -> None:
    content = json.dumps(outcome, indent=2, allow_nan=False).encode()
    open_store(registry_uri).write(_key(run_id), content)


@contextmanager
def _best_effort() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        say(f"the run's record was not kept, so its notification will not know how it ended: {one_line(error)}")


def _of_decision(decision_dir: Path) -> dict[str, Any]:
    decision = read_decision(decision_dir)
    recall = next((asdict(check) for check in decision.checks if check.name == "recall_floor"), None)
    return {"reason": decision.reason, "recall": recall}


def _outcome_or_error(registry_uri: str, run_id: str) -> dict[str, Any]:
    try:
        return read_outcome(registry_uri, run_id)
    except (UserError, ValueError) as error:
        return {"reason": f"the run's record could not be read: {error}"}


def _key(run_id: str) -> str:
    # A store refuses parts that start with a dot, so that none can leave it.
    return f"runs/{quote(run_id, safe='').replace('.', '%2E')}.json"
