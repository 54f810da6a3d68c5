"""Makes the OTLP exporters. Their packages are an extra, so they are imported only if OTLP is asked for.

The exporters read the addresses, headers and certificates from the OTEL_EXPORTER_OTLP_* variables.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Final, NamedTuple

from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.trace.export import SpanExporter

from esper.telemetry.batches import CountedLogs, CountedSpans, Ledger, LogBatches, SpanBatches
from esper.telemetry.otlp_settings import Otlp

_PACKAGE: Final = "opentelemetry.exporter.otlp"
"""Name of the package, and of its logger."""
_CREDENTIALS = re.compile(r"[^\s/@]+@")


def span_batches(settings: Otlp, lost: Callable[[int], None]) -> SpanBatches:
    """Return the processor that exports spans. `lost` is called with the number of spans at each loss."""
    ledger = Ledger("spans to the OTLP collector", settings.queue, lost)
    exporter, rejected = _exporter(settings)
    assert isinstance(exporter, SpanExporter), "the table names an exporter of spans"
    return SpanBatches(CountedSpans(exporter, ledger, _said, rejected), settings, ledger)


def log_batches(settings: Otlp, lost: Callable[[int], None]) -> LogBatches:
    """Return the processor that exports log records. `lost` is called with the number of records at each loss."""
    ledger = Ledger("log records to the OTLP collector", settings.queue, lost)
    exporter, rejected = _exporter(settings)
    assert isinstance(exporter, LogRecordExporter), "the table names an exporter of log records"
    return LogBatches(CountedLogs(exporter, ledger, _said, rejected), settings, ledger)


class _Kit(NamedTuple):
    """What a protocol needs to export."""

    exporters: Mapping[str, Any]
    """Signal -> class of its exporter."""
    compression: Any
    draws: ModuleType
    """The module of the exporters that draws random numbers."""


def _grpc() -> _Kit:
    from grpc import Compression
    from opentelemetry.exporter.otlp.proto.grpc import exporter
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return _Kit({"TRACES": OTLPSpanExporter, "LOGS": OTLPLogExporter}, Compression, exporter)


def _http() -> _Kit:
    from opentelemetry.exporter.otlp.common import http
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return _Kit({"TRACES": OTLPSpanExporter, "LOGS": OTLPLogExporter}, Compression, http)


_KITS: Final = {"grpc": _grpc, "http/protobuf": _http}


def _exporter(settings: Otlp) -> tuple[object, Callable[[], tuple[int, str]]]:
    """Return an exporter, and a function that returns how many items of its last export were rejected, and why."""
    from esper.telemetry.otlp_answers import Answers

    _prepare()
    kit, answers = _KITS[settings.protocol](), Answers(settings.signal)
    _own_random(kit.draws)
    compression = kit.compression.Gzip if settings.gzip else kit.compression.NoCompression
    make = partial(kit.exporters[settings.signal], timeout=settings.timeout_s, compression=compression)
    if settings.protocol != "grpc":
        return make(session=answers.session()), answers.take
    exporter: Any = make()
    exporter._stub = answers.watched(exporter._stub)  # used at each new connection
    exporter._client = exporter._stub(exporter._channel)
    return exporter, answers.take


def _prepare() -> None:
    """Unset empty variables, and take over the messages of the exporters.

    By the specification an empty variable counts as not set, but the exporters fail at some of them.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("OTEL_EXPORTER_") and not value.strip()]:
        del os.environ[name]
    logger = logging.getLogger(_PACKAGE)
    if _last not in logger.handlers:
        logger.addHandler(_last)
        logger.propagate = False


def _own_random(module: ModuleType) -> None:
    """Give an exporter a separate random generator.

    The exporters draw from `random` at each export. This is the generator of the user's code, so an export would change
    the bits of a run.
    """
    assert isinstance(vars(module)["random"], ModuleType | random.Random), f"{module.__name__} no longer draws"
    vars(module)["random"] = random.SystemRandom()


class _Last(logging.Handler):
    """Keeps the last message of the exporters. Otherwise they would write a line at each attempt."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = "the export failed"

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message, without the credentials of an address."""
        self.text = _CREDENTIALS.sub("", record.getMessage())


_last = _Last()


def _said() -> str:
    """Return why the last export failed."""
    return _last.text
