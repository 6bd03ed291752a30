"""Prometheus metrics of the service, on ``/metrics`` beside those of the model server."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import nan
from time import perf_counter
from typing import Final

from kserve.errors import InvalidInput, ServerNotReady
from prometheus_client import Counter, Gauge, Histogram

from conversion_retrieval.serving.coverage import Coverage

BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
REQUESTS: Final = Counter("conversion_retrieval_requests", "inference requests by outcome", ["outcome"])
for _outcome in ("answered", "invalid", "overloaded", "failed"):
    REQUESTS.labels(_outcome)  # at 0 from the start: a rate does not see a counter that begins at 1
REFUSALS: Final = Counter("conversion_retrieval_refusals", "requests refused before inference", ["status"])
SECONDS: Final = Histogram("conversion_retrieval_request_seconds", "time of answered requests", buckets=BUCKETS)
SWITCHES: Final = Counter("conversion_retrieval_champion_switches", "champions taken over while serving")
POLL_FAILURES: Final = Counter("conversion_retrieval_poll_failures", "failed looks for a new champion")
SERVED: Final = Gauge("conversion_retrieval_champion", "1 for the served version", ["version"])
MISSING: Final = Gauge(
    "conversion_retrieval_feature_missing_share",
    "share of rows without a usable value of a feature: what training saw, what is served since the champion took over",
    ["feature", "rows"],
)


@contextmanager
def measured() -> Iterator[None]:
    """Count how a request ended, and time it if it was answered: refusals take no time, and would hide an overload."""
    outcome, start = "failed", perf_counter()
    try:
        yield
        SECONDS.observe(perf_counter() - start)
        outcome = "answered"
    except InvalidInput:
        outcome = "invalid"
        raise
    except ServerNotReady:
        outcome = "overloaded"
        raise
    finally:
        REQUESTS.labels(outcome).inc()


def serving(version: str, coverage: Coverage) -> None:
    """Publish which version is served, and how much of its features there is, counted anew at every scrape."""
    SERVED.clear()
    SERVED.labels(version).set(1)
    MISSING.clear()
    for shares in coverage.shares():
        MISSING.labels(shares.feature, "training").set(_or_nan(shares.training))
        MISSING.labels(shares.feature, "serving").set_function(partial(_served_share, coverage, shares.feature))


def _served_share(coverage: Coverage, feature: str) -> float:
    return next(_or_nan(shares.serving) for shares in coverage.shares() if shares.feature == feature)


def _or_nan(share: float | None) -> float:
    return nan if share is None else share


def refused(status: int) -> None:
    """Count a request that the guard refused."""
    REFUSALS.labels(str(int(status))).inc()
