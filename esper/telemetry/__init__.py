"""What a run says about itself: spans, counters and severe events. It decides nothing and changes no result."""

from esper.telemetry import first_import  # before all that imports OpenTelemetry
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
