"""Telemetry of a run: spans, counters and severe events. Decisions and results of a run do not depend on telemetry."""

from esper.telemetry import first_import  # before any other import of OpenTelemetry
from esper.telemetry.context import continue_from, span, trace_id, traceparent, use
from esper.telemetry.events import Severity, severe
from esper.telemetry.metrics import Counters, count
from esper.telemetry.setup import Telemetry

__all__ = [
    "Counters",
    "Severity",
    "Telemetry",
    "continue_from",
    "count",
    "first_import",
    "severe",
    "span",
    "trace_id",
    "traceparent",
    "use",
]
