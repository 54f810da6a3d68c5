"""A receiver of OTLP over gRPC and HTTP, built on the services of opentelemetry-proto."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass
class Collector:
    """What has arrived and was confirmed, and how the receiver behaves."""

    address: str = ""
    failing: bool = False
    """Answer UNAVAILABLE or 503, at which exporters try again."""
    refusing: bool = False
    """Answer PERMISSION_DENIED or 403."""
    slow_s: float = 0.0
    confirms: int = 10**9
    """Number of requests that are confirmed. At each later request the connection is closed without an answer."""
    spans: list[Any] = field(default_factory=list)
    logs: list[Any] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    resources: list[Any] = field(default_factory=list)
    rejects: int = 0
    """Number of items of each request that are not kept, as the answer says."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, request: Any, headers: dict[str, str]) -> str:
        """Return "", failing, refusing or closing. If "", the content was kept."""
        time.sleep(self.slow_s)
        with self._lock:
            if self.failing or self.refusing:
                return "failing" if self.failing else "refusing"
            if self.confirms <= 0:
                return "closing"
            self.confirms -= 1
            self.headers |= headers
            for kind, groups in request.ListFields():
                for group in groups:
                    self.resources.append(group.resource)
                    if kind.name == "resource_spans":
                        self.spans += [span for scope in group.scope_spans for span in scope.spans][self.rejects :]
                    else:
                        self.logs += [record for scope in group.scope_logs for record in scope.log_records]
            return ""

    def answer(self) -> Any:
        """The answer to an export of spans."""
        told = trace_service_pb2.ExportTraceServiceResponse()
        if self.rejects:
            told.partial_success.rejected_spans = self.rejects
            told.partial_success.error_message = "too \x1b[2Jmany"
        return told


@contextmanager
def collecting(protocol: str, **behaviour: Any) -> Iterator[Collector]:
    """Run a receiver on a free port of this machine until the block ends."""
    kept = Collector(**behaviour)
    with _grpc(kept) if protocol == "grpc" else _http(kept):
        yield kept


@contextmanager
def saying(*parts: bytes) -> Iterator[str]:
    """The address of a receiver that answers each request with the same bytes. The last part is repeated for ever."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):  # the exporter goes away
                self.request.recv(65536)
                for part in parts[:-1]:
                    self.wfile.write(part)
                while parts[-1]:
                    self.wfile.write(parts[-1])

    server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent() -> Iterator[str]:
    """The address of a port whose connections are made but never answered."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def closed() -> str:
    """The address of a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def _grpc(kept: Collector) -> Iterator[None]:
    codes = {
        "failing": grpc.StatusCode.UNAVAILABLE,
        "refusing": grpc.StatusCode.PERMISSION_DENIED,
        "closing": grpc.StatusCode.UNAVAILABLE,
    }

    def service(answer: Any) -> Any:
        def export(_self: Any, request: Any, context: Any) -> Any:
            if outcome := kept.take(request, dict(context.invocation_metadata())):
                context.abort(codes[outcome], outcome)
            return answer()

        return type("Service", (), {"Export": export})()

    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(service(kept.answer), server)
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(service(logs_service_pb2.ExportLogsServiceResponse), server)
    kept.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait()


@contextmanager
def _http(kept: Collector) -> Iterator[None]:
    kinds = {
        "/v1/traces": trace_service_pb2.ExportTraceServiceRequest,
        "/v1/logs": logs_service_pb2.ExportLogsServiceRequest,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = kinds[self.path].FromString(self.rfile.read(int(self.headers["content-length"])))
            outcome = kept.take(request, {name.lower(): value for name, value in self.headers.items()})
            if outcome == "closing":
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            try:
                self.send_response({"": 200, "failing": 503, "refusing": 403}[outcome])
                answer = kept.answer().SerializeToString() if not outcome else b""
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
            except OSError:  # the exporter did not wait for the answer
                self.close_connection = True

        def log_message(self, *_words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    kept.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
