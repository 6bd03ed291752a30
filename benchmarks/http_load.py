"""Loads an HTTP service over kept connections, as a process of its own: what the service feels is a client's load.

    python -m benchmarks.http_load --port 8080 --clients 8 --bodies FILE [--seconds 10]

``FILE`` holds one inference request a line; each client draws from them. Without ``--seconds`` it goes on until its
standard input ends. Prints one line of JSON: ``requests``, ``failed`` (no answer, or another status than 200),
``seconds``, ``p50_ms``, ``p99_ms``, ``versions`` (answers by the bundle's version), ``failures`` (the first few).
"""

import argparse
import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

INFER = "/v2/models/conversion-retrieval/infer"
TIMEOUT_SECONDS = 60


@dataclass
class Outcomes:
    """What happened to the requests of one client."""

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)


def main() -> None:
    """Load, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--bodies", type=Path, required=True)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    bodies = options.bodies.read_text().splitlines()
    stop = threading.Event()
    outcomes = [Outcomes() for _ in range(options.clients)]
    clients = [
        threading.Thread(target=ask, args=(options.port, bodies, seed, stop, mine))
        for seed, mine in enumerate(outcomes)
    ]
    start = time.perf_counter()
    for client in clients:
        client.start()
    if options.seconds is None:
        sys.stdin.read()
    else:
        stop.wait(options.seconds)
    stop.set()
    for client in clients:
        client.join()
    print(json.dumps(summary(outcomes, time.perf_counter() - start)))


def ask(port: int, bodies: Sequence[str], seed: int, stop: threading.Event, mine: Outcomes) -> None:
    """One client: the next request follows the last answer; a failure is noted and ends it."""
    rng, connection = random.Random(seed), http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    while not stop.is_set():
        start = time.perf_counter()
        try:
            connection.request("POST", INFER, rng.choice(bodies), {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            mine.failures.append(repr(error))
            return
        mine.latencies.append(time.perf_counter() - start)
        if response.status != 200:
            mine.failures.append(f"{response.status} {content[:200]!r}")
            return
        mine.versions[json.loads(content)["parameters"]["version"]] += 1


def summary(outcomes: Sequence[Outcomes], seconds: float) -> dict[str, object]:
    """The figures of all clients together."""
    latencies = sorted(latency for mine in outcomes for latency in mine.latencies) or [float("nan")]
    failures = [failure for mine in outcomes for failure in mine.failures]
    return {
        "requests": sum(len(mine.latencies) for mine in outcomes),
        "failed": len(failures),
        "seconds": seconds,
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[len(latencies) * 99 // 100],
        "versions": sum((mine.versions for mine in outcomes), Counter()),
        "failures": failures[:5],
    }


if __name__ == "__main__":
    main()
