"""A server with the v2beta1 endpoints of Kubeflow Pipelines that the commands use: real paths, field names, errors.

Like the real one it checks ids, unique names and the fields of a body (against kfp's own models), and little else:
parameters and cron expressions pass as they come.
"""

import json
import os
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api

INVALID, NOT_FOUND, ALREADY_EXISTS, UNAUTHENTICATED = (400, 3), (404, 5), (409, 6), (401, 16)


class ApiError(Exception):
    """An HTTP status with the gRPC code that the gateway puts into the body."""

    def __init__(self, code: tuple[int, int], message: str) -> None:
        super().__init__(message)
        self.status, self.grpc_code = code


class KubeflowPipelines:
    """The server's state. ``fail_next`` makes requests to a path fail once, as a restarting server would."""

    def __init__(self, token: str = "") -> None:
        self.token = token
        self.cookie = ""
        self.contents: dict[str, bytes] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.recurring_runs: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.fail_next: list[tuple[str, str, int]] = []
        self.next_states: dict[str, list[str]] = {}
        self.login_page = False
        self.before_create: list[Callable[[], None]] = []
        self.lock = threading.RLock()

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> dict[str, Any]:
        self.requests.append((method, path))
        for failure in self.fail_next:
            if failure[:2] == (method, path):
                self.fail_next.remove(failure)
                raise ApiError((failure[2], 14), "the server is being restarted")
        for (verb, pattern), handler in ROUTES.items():
            if verb == method and (match := re.fullmatch(f"/apis/v2beta1/{pattern}", path)):
                result: dict[str, Any] = handler(self, *match.groups(), query=query, body=body)
                return result
        raise ApiError(NOT_FOUND, f"no such endpoint: {method} {path}")

    def page(self, key: str, things: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        for predicate in json.loads(query.get("filter") or '{"predicates": []}')["predicates"]:
            assert predicate["operation"] in ("EQUALS", 1)
            things = [t for t in things if t.get(predicate["key"]) == predicate["stringValue"]]
        return {key: things[: int(query.get("page_size") or 10)], "total_size": len(things)}

    def state(self, **_: Any) -> dict[str, Any]:
        """For tests in another process: no endpoint of the real server."""
        names = ("experiments", "pipelines", "versions", "runs", "recurring_runs")
        return {name: list(getattr(self, name).values()) for name in names}

    def healthz(self, **_: Any) -> dict[str, Any]:
        return {"multi_user": False}

    def list_experiments(self, query: dict[str, str], **_: Any) -> dict[str, Any]:
        return self.page("experiments", list(self.experiments.values()), query)

    def create_experiment(self, body: Any, **_: Any) -> dict[str, Any]:
        self._require_free_name(self.experiments, body)
        return self._create(self.experiments, "experiment_id", body, kfp_server_api.V2beta1Experiment)

    def list_pipelines(self, query: dict[str, str], **_: Any) -> dict[str, Any]:
        return self.page("pipelines", list(self.pipelines.values()), query)

    def create_pipeline(self, body: Any, **_: Any) -> dict[str, Any]:
        if not body.get("name"):
            raise ApiError(INVALID, "name is required")
        if self.before_create:
            self.before_create.pop()()
        self._require_free_name(self.pipelines, body)
        return self._create(self.pipelines, "pipeline_id", body, kfp_server_api.V2beta1Pipeline)

    def upload_pipeline(self, query: dict[str, str], body: Any, **_: Any) -> dict[str, Any]:
        """With the pipeline comes a version of the pipeline's name."""
        pipeline = self.create_pipeline({"name": query["name"], "display_name": query["name"]})
        self._add_version(pipeline["pipeline_id"], query["name"], body)
        return pipeline

    def upload_version(self, query: dict[str, str], body: Any, **_: Any) -> dict[str, Any]:
        if query["pipelineid"] not in self.pipelines:
            raise ApiError(NOT_FOUND, "Pipeline not found")
        return self._add_version(query["pipelineid"], query["name"], body)

    def list_versions(self, pipeline_id: str, query: dict[str, str], **_: Any) -> dict[str, Any]:
        versions = [v for v in self.versions.values() if v["pipeline_id"] == pipeline_id]
        return self.page("pipeline_versions", versions, query)

    def create_run(self, body: Any, **_: Any) -> dict[str, Any]:
        self._require_version(body)
        return self._create(self.runs, "run_id", {**body, "state": "PENDING"}, kfp_server_api.V2beta1Run)

    def list_runs(self, query: dict[str, str], **_: Any) -> dict[str, Any]:
        return self.page("runs", list(self.runs.values()), query)

    def get_run(self, run_id: str, **_: Any) -> dict[str, Any]:
        run = self._get(self.runs, run_id, "Run")
        if states := self.next_states.get(run_id):
            run["state"] = states.pop(0)
            task = {"task_id": "1", "display_name": "train", "state": run["state"]}
            run["run_details"] = {"task_details": [task]}
        return run

    def terminate_run(self, run_id: str, **_: Any) -> dict[str, Any]:
        self._get(self.runs, run_id, "Run")["state"] = "CANCELING"
        return {}

    def create_recurring_run(self, body: Any, **_: Any) -> dict[str, Any]:
        self._require_version(body)
        status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[body["mode"]]
        values = {**body, "status": status}
        return self._create(self.recurring_runs, "recurring_run_id", values, kfp_server_api.V2beta1RecurringRun)

    def list_recurring_runs(self, query: dict[str, str], **_: Any) -> dict[str, Any]:
        return self.page("recurringRuns", list(self.recurring_runs.values()), query)

    def switch_recurring_run(self, run_id: str, verb: str, **_: Any) -> dict[str, Any]:
        self._get(self.recurring_runs, run_id, "RecurringRun")["status"] = f"{verb.upper()}D"
        return {}

    def delete_recurring_run(self, run_id: str, **_: Any) -> dict[str, Any]:
        self._get(self.recurring_runs, run_id, "RecurringRun")
        del self.recurring_runs[run_id]
        return {}

    def _require_free_name(self, table: dict[str, Any], body: Any) -> None:
        if any(thing["display_name"] == body["display_name"] for thing in table.values()):
            raise ApiError(ALREADY_EXISTS, f"The name {body['display_name']} already exist")

    def _create(self, table: dict[str, Any], key: str, values: dict[str, Any], model: Any) -> dict[str, Any]:
        if unknown := set(values) - set(model.attribute_map.values()):
            raise ApiError(INVALID, f"unknown field {sorted(unknown)[0]}")
        thing = {key: str(uuid.uuid4()), "created_at": datetime.now(UTC).isoformat(), **values}
        table[thing[key]] = thing
        return thing

    def _add_version(self, pipeline_id: str, name: str, body: Any) -> dict[str, Any]:
        if any(v["display_name"] == name and v["pipeline_id"] == pipeline_id for v in self.versions.values()):
            raise ApiError(ALREADY_EXISTS, f"The name {name} already exist")
        values = {"pipeline_id": pipeline_id, "display_name": name}
        version = self._create(self.versions, "pipeline_version_id", values, kfp_server_api.V2beta1PipelineVersion)
        self.contents[version["pipeline_version_id"]] = body
        return version

    def _require_version(self, body: Any) -> None:
        if body["pipeline_version_reference"]["pipeline_version_id"] not in self.versions:
            raise ApiError(NOT_FOUND, "PipelineVersion not found")

    def _get(self, table: dict[str, Any], key: str, kind: str) -> dict[str, Any]:
        if key not in table:
            raise ApiError(NOT_FOUND, f"{kind} {key} not found")
        found: dict[str, Any] = table[key]
        return found


ROUTES: dict[tuple[str, str], Any] = {
    ("GET", "state"): KubeflowPipelines.state,
    ("GET", "healthz"): KubeflowPipelines.healthz,
    ("GET", "experiments"): KubeflowPipelines.list_experiments,
    ("POST", "experiments"): KubeflowPipelines.create_experiment,
    ("GET", "pipelines"): KubeflowPipelines.list_pipelines,
    ("POST", "pipelines"): KubeflowPipelines.create_pipeline,
    ("POST", "pipelines/upload"): KubeflowPipelines.upload_pipeline,
    ("POST", "pipelines/upload_version"): KubeflowPipelines.upload_version,
    ("GET", "pipelines/([^/]+)/versions"): KubeflowPipelines.list_versions,
    ("POST", "runs"): KubeflowPipelines.create_run,
    ("GET", "runs"): KubeflowPipelines.list_runs,
    ("GET", "runs/([^/:]+)"): KubeflowPipelines.get_run,
    ("POST", "runs/([^/:]+):terminate"): KubeflowPipelines.terminate_run,
    ("POST", "recurringruns"): KubeflowPipelines.create_recurring_run,
    ("GET", "recurringruns"): KubeflowPipelines.list_recurring_runs,
    ("POST", "recurringruns/([^/:]+):(enable|disable)"): KubeflowPipelines.switch_recurring_run,
    ("DELETE", "recurringruns/([^/:]+)"): KubeflowPipelines.delete_recurring_run,
}


@contextmanager
def serving(state: KubeflowPipelines) -> Iterator[str]:
    """Serve ``state`` on a free loopback port; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                if state.token and self.headers.get("Authorization") != f"Bearer {state.token}":
                    raise ApiError(UNAUTHENTICATED, "Request header error: there is no user identity header.")
                if state.cookie and self.headers.get("Cookie") != state.cookie:
                    raise ApiError(UNAUTHENTICATED, "Request header error: there is no session.")
                query = {key: values[0] for key, values in parse_qs(url.query).items()}
                with state.lock:
                    answer, status = state.answer(self.command, url.path, query, self._body(body)), 200
            except ApiError as error:
                answer, status = {"error": str(error), "message": str(error), "code": error.grpc_code}, error.status
            if state.login_page:
                self._send(200, "text/html", b"<html>Log in</html>")
            else:
                self._send(status, "application/json", json.dumps(answer).encode())

        def _send(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = do  # noqa: N815

        def _body(self, body: bytes) -> Any:
            content_type = self.headers.get("Content-Type") or ""
            if content_type.startswith("multipart/"):
                message = BytesParser().parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
                return message.get_payload()[0].get_payload(decode=True)
            return json.loads(body) if body else None

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def main() -> None:
    """Serve until standard input ends; the first line of standard output is the address."""
    with serving(KubeflowPipelines(token=os.environ.get("KFP_SERVER_TOKEN", ""))) as address:
        print(address, flush=True)  # noqa: T201 - how the tests learn the port
        sys.stdin.read()


if __name__ == "__main__":
    main()
