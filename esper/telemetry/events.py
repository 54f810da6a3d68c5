"""Reports severe events on the span, in the log and in the counter. The caller decides which events are severe."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import get_current
from opentelemetry.util.types import AnyValue

from esper.ground.closing import noted_on
from esper.telemetry.context import current, current_role, plain, span_id, trace_id
from esper.telemetry.file_exporter import append_line, open_for_append

E = TypeVar("E", bound=BaseException)

LOG = "severe-events.jsonl"
"""Name of the log in the telemetry's directory. All processes of a run write to it."""

NAMES = frozenset(
    {
        "gate_failure",
        "mesh_coverage_missing",
        "fallback_status_rejected",
        "tamiyo_fallback_requested",
        "command_rejected",
        "command_validation_failed",
        "policy_no_candidates",
        "policy_failed",
        "policy_timeout",
        "dependency_violation",
        "field_report_invalid",
        "field_reports_damaged",
        "loss_device_mismatch",
        "emergency_signal_rejected",
        "emergency_signal_retried",
        "emergency_signal_dead_lettered",
        "emergency_signal_dropped",
        "emergency_signal_unconfirmed",
        "emergency_queue_damaged",
        "emergency_queue_disk_full",
        "emergency_requests_unread",
        "emergency_reserve_hollow",
        "emergency_answer_lost",
        "emergency_inbox_crowded",
        "emergency_inbox_stuck",
        "emergency_inbox_unreadable",
        "emergency_level_changed",
        "emergency_halt",
        "emergency_halt_cleared",
        "emergency_signals_undelivered",
        "rollback_fast",
        "rollback_full",
        "checkpoint_rejected",
        "journal_damaged",
        "actor_died_starting",
        "actor_restarted",
        "trainer_rank_lost",
        "isolation_violated",
        "adoption_mismatch",
        "guard_tripped",
        "fault_fired",
        "other_cpu",
        "other_hash_seed",
    }
)


class Severity(StrEnum):
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"


_NUMBERS = {
    Severity.WARNING: SeverityNumber.WARN,
    Severity.ERROR: SeverityNumber.ERROR,
    Severity.CRITICAL: SeverityNumber.FATAL,
}


def severe(name: str, /, severity: Severity, **fields: object) -> None:
    """Report a severe event. On return it is counted, added to the current span, and written to the log.

    A caller reports an event before it acts on the event. Without telemetry, only the name is checked. If the telemetry
    writes no files, the event is not logged. If the log cannot be written, the event is printed on standard error and
    counted in `esper.severe_events.lost`, because telemetry must not stop training.

    Args:
        name: One of `NAMES`.
        severity: Severity of the event.
        fields: Details for a reader. Values that JSON does not support are written as text.

    Raises:
        ValueError: `name` is not in `NAMES`, because of a bug in the caller. Nothing was reported.
    """
    if name not in NAMES:
        raise ValueError(f"no severe event is named {name!r}: add it to esper/telemetry/events.py or mend the name")
    if (telemetry := current()) is None:
        return
    told = {key: plain(value) for key, value in fields.items()}
    telemetry.counters.add("esper.severe_events", event=name)
    if (here := trace.get_current_span()).is_recording():  # a thread may outlive its span; the log has the event
        here.add_event(name, {**told, "esper.severity": severity.value})
    if telemetry.logs is not None:
        telemetry.logs.get_logger("esper").emit(_record(name, severity, told))
    if telemetry.directory is not None:
        record = {
            "time": datetime.now(UTC).isoformat(),
            "name": name,
            "severity": severity.value,
            "trace_id": trace_id(),
            "span_id": span_id(),
            "role": current_role(),
            "fields": told,
        }
        line = json.dumps(record, allow_nan=False)
        try:
            _log(telemetry.directory / LOG, line)
        except OSError as error:
            telemetry.counters.add("esper.severe_events.lost")
            why = f"{LOG} cannot be written ({error.strerror})"
            print(f"esper: a severe event is only here, because {why}: {line}", file=sys.stderr, flush=True)


def reported(error: E, name: str, /, severity: Severity, **fields: object) -> E:
    """Report the severe event of an error that is about to be raised: `raise reported(Error(...), "name", ...)`.

    Returns:
        The error. If the report failed, the error has a note about the failure.
    """
    with noted_on(error, f"saying {name}"):
        severe(name, severity, **fields)
    return error


def _record(name: str, severity: Severity, told: dict[str, AnyValue]) -> LogRecord:
    """Return an event as a log record of OpenTelemetry, with the ids of the current trace and span."""
    return LogRecord(
        timestamp=time.time_ns(),
        context=get_current(),
        severity_text=severity.value,
        severity_number=_NUMBERS[severity],
        body=name,
        attributes={**told, "esper.role": current_role()},
        event_name=name,
    )


def _log(path: Path, line: str) -> None:
    """Raises: OSError: the line was not written, or only a part of it."""
    descriptor = open_for_append(path)
    try:
        append_line(descriptor, line)
    finally:
        os.close(descriptor)
