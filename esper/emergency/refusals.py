"""Counts and reports a refused signal if the log of the queue cannot record the refusal. The queue is closed, is in
another process, or cannot be written.
"""

from __future__ import annotations

from typing import TypeVar

from esper.errors import EsperError
from esper.telemetry.events import Severity, reported
from esper.telemetry.metrics import count

E = TypeVar("E", bound=EsperError)


def counted_refusal(error: E, signal_id: str) -> E:
    """Count and report the refusal of a signal: `raise counted_refusal(EmergencyUnavailable(...), signal_id)`.

    Returns:
        The error. If the report failed, the error has a note about the failure.
    """
    count("esper.signal.rejected")
    return reported(error, "emergency_signal_rejected", Severity.CRITICAL, signal_id=signal_id, why=str(error))
