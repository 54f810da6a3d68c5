"""The HTTP endpoint from which Prometheus reads the metrics of a run.

A client that is slow, sends garbage, or opens many connections costs the run next to nothing: connections are taken at
a limited rate, few are open at a time, each has a time limit, and a new one ends the oldest one if there are too many.
"""

from __future__ import annotations

import errno
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from esper.errors import ConfigError
from esper.ground.closing import Closing
from esper.telemetry.exposition import registry_of
from esper.telemetry.metric_snapshot import MetricSnapshot

PATH = "/metrics"
MOST_CONNECTIONS = 8
"""Largest number of connections that are open at a time."""
PACE_S = 0.02
"""Shortest time in seconds between two connections. A client that opens connections in a loop gets 50 in a second."""
CLIENT_S = 5.0
"""Longest time in seconds for which a connection waits for its client."""
FRESH_S = 0.1
"""Seconds for which a rendered text is sent again."""
POLL_S = 0.2
"""Longest time in seconds until the endpoint notices that it has to end."""


class MetricsEndpoint(Closing):
    """Serves `/metrics` on one port, from the moment at which it is made until `close`."""

    def __init__(self, host: str, port: int, source: Callable[[], MetricSnapshot]) -> None:
        """Bind the port and begin to serve.

        Args:
            port: 0: a free port, see `url`.
            source: Function that returns the present metrics. It is called in other threads.

        Raises:
            ConfigError: the port cannot be bound, for example because it is in use. Nothing was started.
        """
        try:
            self._server = _Server(host, port, registry_of(source))
        except OSError as error:
            raise _unusable(host, port, error) from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}{PATH}"
        """The address for Prometheus."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="prometheus endpoint", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the endpoint and its connections. A second call has no effect."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.end_clients()


def _unusable(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        mend = f"another process listens on port {port} of {host}: give another port, or 0 for a free one"
        return ConfigError("telemetry.prometheus_port", port, mend)
    if error.errno == errno.EACCES:
        return ConfigError(
            "telemetry.prometheus_port", port, "the system allows it to root only: give a port above 1023"
        )
    mend = f"no address of this machine ({error.strerror}): give 127.0.0.1, or the address that Prometheus can reach"
    return ConfigError("telemetry.prometheus_host", host, mend)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._registry, self._guard = registry, threading.Lock()
        self._rendering, self._rendered = threading.Lock(), dict[str, tuple[float, bytes]]()
        self._clients: list[socket.socket] = []
        self._told = False
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without the look-up of the host's name, which may take seconds."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:  # Any: typed loosely by socketserver
        """Serve a connection in a thread. If too many are open, end the oldest."""
        with self._guard:
            if len(self._clients) >= MOST_CONNECTIONS:
                _end(self._clients.pop(0))
            self._clients.append(request)
        time.sleep(PACE_S)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # Any: typed loosely by socketserver
        """Close a connection."""
        with self._guard:
            if request in self._clients:
                self._clients.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # Any: typed loosely by socketserver
        """Print the first error that is not the client's. A client that goes away or is too slow is no error."""
        del request, client_address
        error = sys.exception()
        if not isinstance(error, OSError) and not self._told:
            self._told = True
            print(f"esper: metrics cannot be served: {error!r}", file=sys.stderr, flush=True)
            traceback.print_exception(error)

    def rendered(self, accept: str) -> tuple[str, bytes]:
        """Return the content type and the text of the metrics, at most `FRESH_S` old."""
        encode, content_type = choose_encoder(accept)
        with self._rendering:
            at, text = self._rendered.get(content_type, (0.0, b""))
            if not text or time.monotonic() - at > FRESH_S:
                text = encode(self._registry)
                self._rendered[content_type] = time.monotonic(), text
        return content_type, text

    def end_clients(self) -> None:
        """End every connection."""
        with self._guard:
            while self._clients:
                _end(self._clients.pop())


def _end(client: socket.socket) -> None:
    try:
        client.shutdown(socket.SHUT_RDWR)
    except OSError:  # the client has ended the connection
        return


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_S
    server_version, sys_version = "esper", ""

    def do_GET(self) -> None:
        """Answer with the metrics."""
        if self.path.partition("?")[0] != PATH:
            self.send_error(404, f"only {PATH} is here")
            return
        content_type, text = self.server.rendered(self.headers.get("Accept") or "")
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
