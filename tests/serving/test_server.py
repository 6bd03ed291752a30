"""The service in a process of its own, on loopback. Oracle: the retriever's own answers; HTTP status codes."""

import http.client
import json
import random
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tenacity import retry, stop_after_delay, wait_fixed

from conversion_retrieval.errors import UserError
from conversion_retrieval.registry.decision import ChampionState
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.serving.protocol import RequestDocument, requests_of
from conversion_retrieval.serving.retriever import Retriever
from tests.serving.conftest import Run

NAME = "conversion-retrieval"
INFER = f"/v2/models/{NAME}/infer"
SWAPS = 20
CLIENTS = 4
HOSTILE_REQUESTS = 5_000
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Service:
    port: int
    registry: Registry
    process: subprocess.Popen
    log_path: Path

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def get(self, path: str) -> tuple[int, str]:
        connection = self.connect()
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def infer(self, *documents: dict, connection: http.client.HTTPConnection | None = None) -> dict:
        connection = connection or self.connect()
        connection.request("POST", INFER, body(*map(json.dumps, documents)), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = json.loads(response.read())
        assert response.status == 200, content
        return content


def body(*texts: str) -> str:
    return json.dumps(
        {"inputs": [{"name": "requests", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}]}
    )


@pytest.fixture(scope="module")
def service(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("service")
    registry = Registry.open(root / "registry")
    first = registry.promote(*run.bundle(root / "first", ChampionState(status="absent")))
    state = ChampionState(status="present", version=first.version, digest=first.digest)
    registry.promote(*run.bundle(root / "second", state))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    call = f"serve({registry.uri!r}, data_uri={str(run.data_dir)!r}, port={port}, poll_seconds=0.02)"
    script = f"from conversion_retrieval.serving.server import serve; {call}"
    with (root / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=log, stderr=log)
    started = Service(port=port, registry=registry, process=process, log_path=root / "log")
    try:
        wait_until(lambda: started.get("/v2/health/ready")[0] == 200)
        yield started
    finally:
        process.kill()
        process.wait()


@retry(wait=wait_fixed(0.05), stop=stop_after_delay(90))
def wait_until(condition: Callable[[], bool]) -> None:
    assert condition()


def outputs(answer: dict) -> dict[str, np.ndarray]:
    """Output tensors by name."""
    tensors = answer["outputs"]
    return {tensor["name"]: np.reshape(np.array(tensor["data"], object), tensor["shape"]) for tensor in tensors}


def history_document(retriever: Retriever, count: int = 5, **fields: object) -> dict:
    ids = retriever.index.item_ids.to_pylist()
    history = [
        {"item_id": ids[i], "event_type": "click", "event_time": f"2026-01-01T00:00:{i:02d}Z"} for i in range(count)
    ]
    return {"user_id": "u", "time": "2026-01-02T00:00:00Z", "history": history, **fields}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_taken_port_is_one_line_before_anything_is_loaded(host: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--host", host, "--port", str(port), "--registry", str(tmp_path / "none")]
        command = [sys.executable, "-m", "conversion_retrieval", "serve", *options]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: expected to listen on {host}, port {port}, found: ")
    assert "--port" in line


def test_a_bound_address_refuses_connections_until_it_listens_and_is_free_again_afterwards() -> None:
    from conversion_retrieval.serving.server import bound, listen

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for _ in range(2):
        with bound("127.0.0.1", port) as sockets, bound("127.0.0.1", port) as rivals:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            listen(sockets, "127.0.0.1", port)
            with pytest.raises(UserError, match=f"expected to listen on 127.0.0.1, port {port}, found: .*--port"):
                listen(rivals, "127.0.0.1", port)
            socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.parametrize("host", ["192.0.2.1", "h" * 64, "host\udcff"])
def test_a_host_that_is_not_this_machines_is_one_line(host: str) -> None:
    from conversion_retrieval.serving.server import bound

    expected = rf"expected to listen on {re.escape(host)}, .*--host"
    with pytest.raises(UserError, match=expected), bound(host, 8080):
        pass


def test_answers_are_those_of_the_retriever(service: Service, retriever: Retriever) -> None:
    documents = [history_document(retriever, 5, k=7), history_document(retriever, 2, k=3, surface="search")]
    found = outputs(service.infer(*documents))
    requests, events = requests_of([RequestDocument.model_validate_json(json.dumps(d)) for d in documents], None)
    for row, expected in enumerate(retriever.retrieve(requests, events, np.arange(2))):
        count = len(expected.item_ids)
        assert found["num_candidates"][row] == count
        assert tuple(found["item_ids"][row][:count]) == expected.item_ids
        assert tuple(map(json.loads, found["reasons"][row][:count])) == tuple(map(list, expected.reasons))
        np.testing.assert_allclose(found["scores"][row][:count].astype(float), expected.scores, atol=1e-6)
    assert list(found["item_ids"][1][3:]) == [""] * 4


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "nonsense"])
def test_good_request_is_answered_whatever_its_content_type(
    service: Service, retriever: Retriever, content_type: str | None
) -> None:
    connection = service.connect()
    headers = {"Content-Type": content_type} if content_type else {}
    connection.request("POST", INFER, body(json.dumps(history_document(retriever))).encode(), headers)
    assert connection.getresponse().status == 200


def test_answers_are_whole_json_bodies_with_type_and_length(service: Service, retriever: Retriever) -> None:
    connection = service.connect()
    for text, status in ((json.dumps(history_document(retriever)), 200), ("{", 400)):
        connection.request("POST", INFER, body(text))
        response = connection.getresponse()
        content = response.read()
        assert response.status == status
        assert response.headers["content-type"] == "application/json"
        assert response.headers["content-length"] == str(len(content))
        assert json.loads(content)


def test_the_id_of_a_call_comes_back_with_its_answer(service: Service, retriever: Retriever) -> None:
    connection = service.connect()
    document = {**json.loads(body(json.dumps(history_document(retriever)))), "id": "call 7"}
    connection.request("POST", INFER, json.dumps(document))
    answer = json.loads(connection.getresponse().read())
    assert (answer["id"], answer["model_name"]) == ("call 7", NAME)


def test_requests_leave_no_line_in_the_log_whatever_their_answer(service: Service, retriever: Retriever) -> None:
    before, connection = service.log_path.stat().st_size, service.connect()
    for _ in range(20):
        service.infer(history_document(retriever))
        connection.request("POST", INFER, body(json.dumps({"user_id": "u", "user_columns": {"nonsense": 1}})))
        response = connection.getresponse()
        assert response.status == 400
        assert "nonsense" in response.read().decode()
        assert service.get("/v2/models/another/ready")[0] == 404
    assert service.log_path.stat().st_size == before


@pytest.mark.parametrize("history", [{}, {"history": []}])
def test_a_context_embedding_of_another_length_is_a_400(service: Service, history: dict) -> None:
    connection = service.connect()
    documents = [{"user_id": "u", **history}, {"user_id": "u", "context_embedding": [1.0, 2.0], **history}]
    connection.request("POST", INFER, body(*map(json.dumps, documents)))
    response = connection.getresponse()
    assert response.status == 400
    assert "request 1: expected 8 numbers in context_embedding, found 2" in response.read().decode()


def test_user_known_from_the_data_needs_no_history(service: Service, run: Run) -> None:
    from conversion_retrieval.serving.commands import read_user_events
    from conversion_retrieval.tables import read_tables

    user_id = read_user_events(read_tables(run.data_dir)).user_ids[0]
    reasons = outputs(service.infer({"user_id": user_id, "k": 5}))["reasons"][0]
    strangers = outputs(service.infer({"user_id": "nobody", "k": 5}))["reasons"][0]
    assert all(json.loads(reason) for reason in reasons)
    assert not any(json.loads(reason) for reason in strangers)


def test_protocol_metadata_describes_the_model(service: Service) -> None:
    status, content = service.get(f"/v2/models/{NAME}")
    assert status == 200
    assert [tensor["name"] for tensor in json.loads(content)["inputs"]] == ["requests"]
    assert service.get("/v2/health/live")[0] == 200
    assert service.get(f"/v2/models/{NAME}/ready")[0] == 200


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/health/live", f"/v2/models/{NAME}", "/metrics"])
def test_head_is_answered_as_get_is_without_the_body(service: Service, path: str) -> None:
    connection = service.connect()
    connection.request("HEAD", path)
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"")
    connection.request("GET", path)  # the connection is still in order
    assert connection.getresponse().status == 200


def test_a_wrong_method_is_told_which_are_allowed(service: Service) -> None:
    for path, method, allowed in ((INFER, "GET", "POST"), ("/v2/health/ready", "POST", "GET, HEAD")):
        connection = service.connect()
        connection.request(method, path)
        response = connection.getresponse()
        assert (response.status, response.headers["allow"]) == (405, allowed)


def test_metrics_count_answers_and_name_the_served_version(service: Service, retriever: Retriever) -> None:
    served = service.infer(history_document(retriever))["parameters"]["version"]
    content = service.get("/metrics")[1]
    assert f'conversion_retrieval_champion{{version="{served}"}} 1.0' in content
    assert 'conversion_retrieval_requests_total{outcome="answered"}' in content
    assert 'conversion_retrieval_requests_total{outcome="failed"} 0.0' in content
    column = retriever.model.spec.users.columns[0].name
    missing = 'conversion_retrieval_feature_missing_share{feature="users.%s",rows="%s"} %s'
    assert missing % (column, "training", "0.0") in content
    # The request above came without user columns.
    assert missing % (column, "serving", "NaN") not in content
    assert missing % (column, "serving", "0.0\n") not in content


def answered(service: Service) -> float:
    """How many requests the service has answered, by its own count."""
    return metric(service, 'conversion_retrieval_requests_total{outcome="answered"}')


def metric(service: Service, name: str) -> float:
    return next(float(line.rpartition(" ")[2]) for line in metrics(service).splitlines() if line.startswith(name))


def metrics(service: Service) -> str:
    return service.get("/metrics")[1]


@pytest.fixture
def load(service: Service, retriever: Retriever, tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Clients in another process, which ask until its standard input ends and then print what they got."""
    bodies = [body(json.dumps(history_document(retriever, count, k=5))) for count in (0, 2, 5)]
    (tmp_path / "bodies").write_text("\n".join(bodies))
    command = [sys.executable, "-m", "benchmarks.http_load", f"--port={service.port}", f"--clients={CLIENTS}"]
    before = answered(service)
    process = subprocess.Popen(
        [*command, "--bodies", str(tmp_path / "bodies")], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    wait_until(lambda: answered(service) >= before + 2 * CLIENTS)
    yield process
    process.kill()
    process.wait()


def test_no_request_of_another_process_fails_across_twenty_champion_swaps(
    service: Service, load: subprocess.Popen
) -> None:
    champion = service.registry.champion().version
    others = sorted(service.registry.versions(), key=lambda version: version == champion)
    switches = metric(service, "conversion_retrieval_champion_switches_total")
    for swap in range(SWAPS):
        version = service.registry.rollback(others[swap % 2]).version
        wait_until(
            lambda version=version: f'conversion_retrieval_champion{{version="{version}"}} 1.0' in metrics(service)
        )
        before = answered(service)
        wait_until(lambda before=before: answered(service) >= before + CLIENTS or load.poll() is not None)
    told, _ = load.communicate(timeout=60)
    outcome = json.loads(told)
    assert outcome["failures"] == []
    assert outcome["failed"] == 0
    assert outcome["requests"] == sum(outcome["versions"].values()) > SWAPS * CLIENTS
    assert sorted(outcome["versions"]) == sorted(others)
    assert metric(service, "conversion_retrieval_champion_switches_total") == switches + SWAPS


def test_unreadable_champion_does_not_stop_the_service(service: Service, retriever: Retriever) -> None:
    served = service.registry.champion()
    pointer = Path(service.registry.uri) / "champion.json"
    pointer.write_text("{")
    wait_until(lambda: "conversion_retrieval_poll_failures_total 0.0" not in service.get("/metrics")[1])
    assert service.infer(history_document(retriever))["parameters"]["version"]
    service.registry.rollback(served.version)


def mutated(rng: random.Random, retriever: Retriever) -> str:
    """An inference body with something wrong in the document, the tensor, or the JSON itself."""
    good = history_document(retriever)
    nasty = rng.choice([None, -1, 10**30, 1e308, "", "x" * 5000, [], {}, True, "\u0000", "9999-99-99", [[]], [None]])
    choice = rng.randrange(8)
    if choice == 0:
        field = rng.choice(["user_id", "history", "k", "advertiser_cap", "unknown", "exclude_seen", "surface"])
        wrong = {**good, field: {"a": nasty} if field != "k" else [nasty]}
        return body(json.dumps(wrong))
    if choice == 1:
        wrong_event = {**good["history"][0], rng.choice(["item_id", "event_type", "event_time"]): {"a": nasty}}
        return body(json.dumps({**good, "history": [wrong_event]}))
    if choice == 2:
        return body(json.dumps(good))[: rng.randrange(1, 150)]
    if choice == 3:
        tensor = {"name": "requests", "datatype": "BYTES", "shape": [1], "data": [json.dumps(good)]}
        tensor[rng.choice(list(tensor))] = {"a": nasty}
        return json.dumps({"inputs": [tensor]})
    if choice == 4:
        return "[" * rng.randrange(50, 50_000)
    if choice == 5:
        return body(*[json.dumps(good)] * rng.choice([0, 65, 200]))
    if choice == 6:
        return json.dumps({"inputs": nasty})
    return body("".join(map(chr, (rng.randrange(32, 0xD7FF) for _ in range(30)))))


def hostile(rng: random.Random, retriever: Retriever) -> tuple[str, str, object, dict[str, str]]:
    choice = rng.randrange(12)
    if choice == 0:
        methods = ["PUT", "DELETE", "PATCH", "GET", "OPTIONS", "TRACE"]
        return rng.choice(methods), INFER, None, {}
    if choice == 1:
        paths = [
            f"/v2/repository/models/{NAME}/unload",
            f"/v2/repository/models/{NAME}/load",
            f"/v1/models/{NAME}:predict",
            f"/v2/models/{NAME}/versions/1/infer",
            "/v2/models/other/infer",
            "/v2/models/../../etc/passwd/infer",
            "/%2e%2e/%00",
            "/docs",
            "/" + "a" * 3000,
        ]
        return "POST", rng.choice(paths), body(json.dumps(history_document(retriever))), {}
    if choice == 2:
        headers = {
            "Inference-Header-Content-Length": rng.choice(["-1", "5", "x", "999999999"]),
        }
        return "POST", INFER, body(json.dumps(history_document(retriever))), headers
    if choice == 3:
        return "POST", INFER, rng.randbytes(rng.randrange(0, 2000)), {"Content-Encoding": rng.choice(["gzip", "br"])}
    if choice == 4:
        return "POST", INFER, rng.randbytes(rng.randrange(0, 2000)), {"Content-Type": "application/octet-stream"}
    return "POST", INFER, mutated(rng, retriever).encode("utf-8", "surrogatepass"), {}


def test_five_thousand_hostile_requests_get_a_4xx_and_never_kill_the_service(
    service: Service, retriever: Retriever
) -> None:
    rng = random.Random(0)
    connection = service.connect()
    statuses: dict[int, int] = {}
    for _ in range(HOSTILE_REQUESTS):
        method, path, content, headers = hostile(rng, retriever)
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionError, BrokenPipeError):
            connection.close()  # closed by an earlier answer
            connection.request(method, path, content, headers)
            response = connection.getresponse()
        answer = response.read()
        assert 400 <= response.status < 500, (method, path, content, response.status, answer)
        statuses[response.status] = statuses.get(response.status, 0) + 1
    assert set(statuses) >= {400, 404, 405, 415}
    assert service.process.poll() is None
    assert service.infer(history_document(retriever))["outputs"]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_oversized_body_is_refused_without_being_read(service: Service, declared: bool) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        length = b"Content-Length: 99999999999" if declared else b"Transfer-Encoding: chunked"
        connection.sendall(b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n")
        if not declared:
            chunk = b"10000\r\n" + b"[" * 0x10000 + b"\r\n"
            try:
                for _ in range(70):
                    connection.sendall(chunk)
            except ConnectionError:
                pass
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("garbage", [b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"\x16\x03\x01"])
def test_what_is_not_http_is_refused(service: Service, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(100)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert service.get("/v2/health/ready")[0] == 200
