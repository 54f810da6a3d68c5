"""Checks the answers of a collector.

The exporters of OpenTelemetry take every answer with a status from 200 to 399 as a confirmation: also the page of a web
server, or the redirection of a proxy. They do not read how many items a collector has rejected.

The packages of the exporters are an extra, so this file is imported only if OTLP is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import requests
from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

MOST_BYTES: Final = 8 * 1024
"""Largest answer that is read."""
MOST_S: Final = 10.0
"""Longest time for the body of an answer."""
_KINDS: Final = {"TRACES": ExportTraceServiceResponse, "LOGS": ExportLogsServiceResponse}


@dataclass
class Answers:
    """What the collector answered to the last export of one signal."""

    signal: str
    """TRACES or LOGS."""
    rejected: int = 0
    """Number of items that the collector did not accept, though it answered that the export succeeded."""
    why: str = ""

    def take(self) -> tuple[int, str]:
        """Return the number of rejected items and the collector's reason, and forget them."""
        found = self.rejected, self.why
        self.rejected, self.why = 0, ""
        return found

    def hear(self, answer: Any) -> None:  # Any: one of `_KINDS`
        """Note an answer."""
        told = answer.partial_success
        rejected = told.rejected_spans if self.signal == "TRACES" else told.rejected_log_records
        self.rejected, self.why = max(0, rejected), f"the collector rejected them: {told.error_message}"

    def session(self) -> requests.Session:
        """Return a session that raises `requests.RequestException` if the answer to an export over HTTP is none of
        OTLP."""
        made = requests.Session()
        made.stream = True  # the body is read by the hook, which limits its size
        made.hooks["response"].append(self._check)
        return made

    def _check(self, response: requests.Response, **_settings: object) -> None:
        if response.status_code >= 400:  # the exporter tries again, or reports the status
            response.close()
        elif not 200 <= response.status_code < 300:
            response.close()
            raise requests.RequestException(
                f"status {response.status_code} is no answer of a collector: check the address"
            )
        elif body := _body(response):
            typed = "content-type" in response.headers
            self.hear(self._read(response.headers["content-type"] if typed else "", body))

    def _read(self, content_type: str, body: bytes) -> Any:
        kind: Any = _KINDS[self.signal]
        try:
            if content_type.startswith("application/json"):
                return Parse(body, kind(), ignore_unknown_fields=True)
            if content_type.startswith("application/x-protobuf") or not content_type:
                return kind.FromString(body)
        except (DecodeError, ParseError, ValueError) as error:
            raise requests.RequestException("the answer cannot be read as one of OTLP: check the address") from error
        raise requests.RequestException(
            f"an answer of type {content_type!r} is no answer of a collector: check the address"
        )

    def watched(self, stub: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a constructor of gRPC stubs whose answers are noted."""

        def made(channel: Any) -> Any:
            inner = stub(channel)
            export = inner.Export

            def heard(*given: Any, **named: Any) -> Any:
                self.hear(answer := export(*given, **named))
                return answer

            inner.Export = heard
            return inner

        return made


def _body(response: requests.Response) -> bytes:
    """Return the body. Raises: requests.RequestException: it is too large or too slow."""
    until_s, body = time.monotonic() + MOST_S, bytearray()
    for part in response.iter_content(1):  # a larger part would wait for a receiver that sends one byte at a time
        body += part
        if len(body) > MOST_BYTES or time.monotonic() > until_s:
            response.close()
            raise requests.RequestException("the answer does not end: check the address")
    return bytes(body)
