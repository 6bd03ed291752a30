"""Times ``retrieve`` for one user and the HTTP service under load, on a synthetic catalogue.

The bundle is made by the real stages, trained for a few steps: speed does not depend on the weights.

    python -m benchmarks.serving --items 100000 --requests 2000 --seconds 10
"""

import argparse
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch

from conversion_retrieval.config import parse_config
from conversion_retrieval.contracts import new_artifact, read_manifest
from conversion_retrieval.datasets.config import SyntheticConfig
from conversion_retrieval.datasets.synthetic import generate
from conversion_retrieval.features.build import build_features
from conversion_retrieval.index.stage import build_index
from conversion_retrieval.registry.bundle import assemble_bundle
from conversion_retrieval.registry.decision import ChampionState, Decision, read_decision, write_decision
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.serving.commands import read_user_events
from conversion_retrieval.serving.requests import Request, UserEvents
from conversion_retrieval.serving.retriever import Retriever
from conversion_retrieval.tables import read_tables
from conversion_retrieval.training.stage import train

KINDS = ("features", "spec", "model", "evaluation", "index")
CONFIG = parse_config(
    {"training": {"max_steps": 2, "batch_size": 256, "max_epochs": 1}, "index": {"tuning_queries": 200}}
)
INFER = "/v2/models/conversion-retrieval/infer"


def main() -> None:
    """Make a bundle, measure, print."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        registry, bundle_dir = make_registry(root, arguments.items, arguments.users)
        events = read_user_events(read_tables(root / "data"))
        measure_retrieve(Retriever.open(bundle_dir), events, arguments.requests)
        if arguments.seconds:
            measure_service(registry, root, events, arguments.seconds)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=3_000)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load at each number of clients; 0: no service")
    return parser.parse_args()


def make_registry(root: Path, num_items: int, num_users: int) -> tuple[Registry, Path]:
    """A registry whose champion was made by the stages from a synthetic world of this size."""
    world = replace(SyntheticConfig(), num_items=num_items, num_users=num_users)
    generate(root / "data", world)
    write_snapshot(root)
    inputs = {"features_dir": root / "features", "spec_dir": root / "spec"}
    build_features(snapshot_dir=root / "snapshot", **inputs, config=CONFIG)
    train(**inputs, model_dir=root / "model", config=CONFIG)
    build_index(**inputs, model_dir=root / "model", index_dir=root / "index", config=CONFIG)
    with new_artifact(root / "evaluation", kind="evaluation") as working_dir:
        (working_dir / "metrics.json").write_text("[]")
    digests = {kind: read_manifest(root / kind, kind=kind).digest for kind in KINDS}
    state = ChampionState(status="absent")
    decision = Decision(verdict="promote", reason="benchmark", checks=(), champion=state, candidate=digests)
    with new_artifact(root / "decision", kind="decision") as working_dir:
        write_decision(working_dir, decision)
    directories = {f"{kind}_dir": root / kind for kind in KINDS}
    assemble_bundle(root / "bundle", decision_dir=root / "decision", **directories)
    registry = Registry.open(root / "registry")
    registry.promote(root / "bundle", read_decision(root / "decision"))
    return registry, root / "bundle"


def write_snapshot(root: Path) -> None:
    """The synthetic tables in the snapshot's order; they need no cleaning."""
    tables = read_tables(root / "data")
    keys = [(name, "ascending") for name in ("user_id", "event_time", "event_id")]
    with new_artifact(root / "snapshot", kind="snapshot") as working_dir:
        (working_dir / "events").mkdir()
        pq.write_table(tables.events.read().sort_by(keys), working_dir / "events" / "part-00000.parquet")
        pq.write_table(tables.items.read().sort_by("item_id"), working_dir / "items.parquet")
        if tables.users:
            pq.write_table(tables.users.read().sort_by("user_id"), working_dir / "users.parquet")


def measure_retrieve(retriever: Retriever, events: UserEvents, count: int) -> None:
    """One user at a time, top 100 with reasons, on one thread: by the clock, and in processor time.

    The first is what an idle core would take too; on a shared machine only the second says so.
    """
    users = np.random.default_rng(0).choice(len(events.user_ids), count)
    clock, processor = np.empty(count), np.empty(count)
    for number, user in enumerate(users):
        start, busy = time.perf_counter(), time.thread_time()
        user_id = events.user_ids[user]
        request = Request(user_id=user_id, time=4_000_000_000_000_000, surface="search", k=100)
        retriever.retrieve([request], events.of_users([user_id]), np.zeros(1, np.int64))
        clock[number], processor[number] = time.perf_counter() - start, time.thread_time() - busy
    facts = retriever.index.facts
    print(
        f"retrieve: {len(retriever.index):,} items, {facts['parameters']}, index recall {facts['recall']['value']:.4f}"
    )
    for name, seconds in (("clock", clock), ("processor", processor)):
        warm = seconds[count // 10 :] * 1000
        p50, p99 = np.quantile(warm, [0.5, 0.99])
        print(f"retrieve: {name} p50 {p50:.2f} ms, p99 {p99:.2f} ms, n={len(warm)}, load {os.getloadavg()[0]:.1f}")


def measure_service(registry: Registry, root: Path, events: UserEvents, seconds: float) -> None:
    """Start the service and load it with 1, 8 and 64 clients in turn, from another process's point of view."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    call = f"serve({registry.uri!r}, data_uri={str(root / 'data')!r}, port={port})"
    script = f"from conversion_retrieval.serving.server import serve; {call}"
    with (root / "service.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=log, stderr=log)
    try:
        wait_until_ready(port, process)
        for clients in (1, 8, 64):
            measure_load(root, port, events, clients, seconds, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """Poll readiness for at most two minutes."""
    for _ in range(1200):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            if process.poll() is not None:
                break
        time.sleep(0.1)
    raise SystemExit("the service did not become ready")


def measure_load(
    root: Path, port: int, events: UserEvents, clients: int, seconds: float, server: psutil.Process
) -> None:
    """Load the service from another process and print what it took."""
    before = sum(server.cpu_times()[:2])
    load = (
        wrk_load(root, port, events, clients, seconds)
        if shutil.which("wrk")
        else python_load(root, port, events, clients, seconds)
    )
    busy = sum(server.cpu_times()[:2]) - before
    print(
        f"serve: {clients} clients, {load['requests'] / load['seconds']:.0f} queries/s, p50 {load['p50_ms']:.1f} ms, "
        f"p99 {load['p99_ms']:.1f} ms, {load['failed']:.0f} failed; server {busy / load['seconds']:.2f} cores, "
        f"{1000 * busy / max(load['requests'], 1):.2f} ms a request; machine load {os.getloadavg()[0]:.1f}"
    )


WRK_SCRIPT = """
local users = {%s}
local document = '{"inputs": [{"name": "requests", "datatype": "BYTES", "shape": [1], "data": ["{%s}"]}]}'
local headers = {["Content-Type"] = "application/json"}
request = function()
    return wrk.format("POST", "%s", headers, string.format(document, users[math.random(#users)]))
end
done = function(summary, latency, requests)
    local e = summary.errors
    io.write(string.format('{"requests": %%d, "seconds": %%f, "p50_ms": %%f, "p99_ms": %%f, "failed": %%d}\\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def wrk_load(root: Path, port: int, events: UserEvents, clients: int, seconds: float) -> dict[str, float]:
    """Requests of random users from wrk, over kept connections."""
    users = ", ".join(map(json.dumps, events.user_ids))
    escaped = '\\\\"user_id\\\\": \\\\"%s\\\\", \\\\"k\\\\": 100'
    (root / "load.lua").write_text(WRK_SCRIPT % (users, escaped, INFER))
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:.0f}s", "--timeout=60s", "-s", str(root / "load.lua")]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def python_load(root: Path, port: int, events: UserEvents, clients: int, seconds: float) -> dict[str, float]:
    """The same from ``benchmarks.http_load`` in a process of its own, where wrk is not installed."""
    texts = (json.dumps({"user_id": user_id, "k": 100}) for user_id in events.user_ids)
    tensors = ({"name": "requests", "datatype": "BYTES", "shape": [1], "data": [text]} for text in texts)
    (root / "bodies").write_text("\n".join(json.dumps({"inputs": [tensor]}) for tensor in tensors))
    command = [sys.executable, "-m", "benchmarks.http_load", f"--port={port}", f"--clients={clients}"]
    command += [f"--seconds={seconds}", "--bodies", str(root / "bodies")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    main()
