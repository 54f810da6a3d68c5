"""Counts and reports a signal that is refused without the queue, which has been closed or is in another process."""

from __future__ import annotations

from esper.errors import EmergencyUnavailable
from esper.telemetry.events import Severity, reported
from esper.telemetry.metrics import count


def counted_refusal(error: EmergencyUnavailable) -> EmergencyUnavailable:
    """Count and report the refusal of a signal: `raise counted_refusal(EmergencyUnavailable(...))`.

    Returns:
        The error. If the report failed, the error has a note about the failure.
    """
    count("esper.signal.rejected")
    told = {"signal_id": error.signal_id, "why": error.why}
    return reported(error, "emergency_signal_rejected", Severity.CRITICAL, **told)
