"""A loopback webhook that keeps what it is told."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


@dataclass
class Webhook:
    """Its address, the messages it got, and the statuses of the answers to come, 200 after those; 0 is no answer."""

    url: str = ""
    received: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


@contextmanager
def listening() -> Iterator[Webhook]:
    """A webhook on a free loopback port, under a path that is to be kept secret."""
    webhook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            webhook.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if status := webhook.statuses.pop(0) if webhook.statuses else 200:
                self.send_response(status)
                self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    webhook.url = f"http://127.0.0.1:{server.server_address[1]}/secret-path"
    try:
        yield webhook
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
