"""A real HTTP server on this machine, in threads of its own: the webhooks of a run post to it. It tests nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HUNG = "/hung-path"
"""A request to this path gets no answer before the server ends."""


class Hook(ThreadingHTTPServer):
    """Refuses each signal once, then accepts it, and notes path, token and signal of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        self.got: list[tuple[str, str, str]] = []
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = self.path, self.headers["Authorization"], body["signal_id"]
        again = request in self.server.got
        self.server.got.append(request)
        if self.path == HUNG:
            self.server.over.wait()
            return
        self.send_response(204 if again else 500)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
