"""Makes the processors of spans and log records that the OTEL_* variables ask for, beside the span file."""

from __future__ import annotations

import sys

from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor
from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from esper.telemetry.environment import TelemetryEnvironment
from esper.telemetry.metrics import Counters
from esper.telemetry.otlp import log_batches, span_batches


def span_processors(asked: TelemetryEnvironment, counters: Counters) -> list[SpanProcessor]:
    """Return the processors of spans except those of the span file."""
    made: list[SpanProcessor] = []
    if "TRACES" in asked.console:
        made.append(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
    if asked.traces_otlp is not None:
        made.append(span_batches(asked.traces_otlp, lambda spans: counters.add("esper.spans.lost", spans)))
    return made


def log_provider(asked: TelemetryEnvironment, resource: Resource, counters: Counters) -> LoggerProvider | None:
    """Return the provider of log records. None: severe events are only written to the file."""
    made: list[LogRecordProcessor] = []
    if "LOGS" in asked.console:
        made.append(SimpleLogRecordProcessor(ConsoleLogRecordExporter(out=sys.stderr)))
    if asked.logs_otlp is not None:
        made.append(log_batches(asked.logs_otlp, lambda records: counters.add("esper.log_records.lost", records)))
    if not made:
        return None
    provider = LoggerProvider(resource, shutdown_on_exit=False)
    for processor in made:
        provider.add_log_record_processor(processor)
    return provider
