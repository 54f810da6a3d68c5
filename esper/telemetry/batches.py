"""Batches on their way to an exporter that may be slow, refuse, or be absent. Each lost item is counted.

The thread that makes a span or a log record never waits: it puts the item into a queue. Another thread exports.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from esper.errors import text_of
from esper.telemetry.otlp_settings import Otlp

FLUSH_S = 5.0
"""Most seconds that the end of a process waits for the export of what is in the queue."""
_ABORT_S = 1.0
"""Most seconds that it then waits for the end of an export that was aborted."""

Item = TypeVar("Item")


class Ledger:
    """Counts the items between their creation and the answer to their export. Threads may share it.

    An item is lost if the queue is full, if the exporter reports a failure or raises an error, or if the ledger is
    closed before the answer.
    """

    def __init__(self, what: str, queue: int, lost: Callable[[int], None]) -> None:
        self._what, self._queue, self._count = what, queue, lost
        self._lock, self._pending, self._closed, self._told = threading.Lock(), 0, False, False

    def admit(self) -> bool:
        """Return whether there is room for one more item. If not, the item is lost."""
        with self._lock:
            if room := not self._closed and self._pending < self._queue:
                self._pending += 1
        if not room:
            self._lose(1, "the queue is full" if not self._closed else "the telemetry is closed")
        return room

    def settle(self, items: int, failure: str | None) -> None:
        """Note the answer to the export of some items. `failure` None: they have arrived."""
        with self._lock:
            if self._closed:  # these items were counted as lost
                return
            self._pending -= items
        if failure is not None:
            self._lose(items, failure)

    def close(self) -> None:
        """Give up all items without an answer. A second call has no effect."""
        with self._lock:
            self._closed, left, self._pending = True, self._pending, 0
        if left:
            self._lose(left, "the process ended before they were exported")

    def _lose(self, items: int, why: str) -> None:
        self._count(items)
        if not self._told:
            self._told = True
            print(f"esper: {self._what} are being lost: {_in_one_line(why)}", file=sys.stderr, flush=True)


def _in_one_line(text: str) -> str:
    """Return a text of a collector, which may be a stranger, without control characters, in at most 500 characters."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[:500])


class _Counted(Generic[Item]):
    """The calls of an exporter. Each answer is noted in the ledger."""

    def __init__(
        self,
        export: Callable[[Sequence[Item]], object],
        success: object,
        shutdown: Callable[[], object],
        ledger: Ledger,
        reason: Callable[[], str],
        rejected: Callable[[], tuple[int, str]],
    ) -> None:
        self._export, self._success, self._shutdown = export, success, shutdown
        self._ledger, self._reason, self._rejected = ledger, reason, rejected

    def arrived(self, items: Sequence[Item]) -> bool:
        """Export items, and return whether they have arrived. If not, they are counted as lost."""
        failure: str | None = None
        rejected, why = 0, ""
        try:
            if self._export(items) is not self._success:
                failure = self._reason()
            rejected, why = self._rejected()
        except Exception as error:  # telemetry must not stop training; the items are counted and the error is told
            failure = f"{type(error).__name__}: {text_of(error)}"
        if failure is None and rejected:
            refused = min(rejected, len(items))
            self._ledger.settle(len(items) - refused, None)
            self._ledger.settle(refused, why)
        else:
            self._ledger.settle(len(items), failure)
        return failure is None

    def shutdown(self) -> None:
        """Abort an export in progress, and end the connection."""
        self._shutdown()


class CountedSpans(_Counted[ReadableSpan], SpanExporter):
    """An exporter of spans whose losses are counted."""

    def __init__(
        self, exporter: SpanExporter, ledger: Ledger, reason: Callable[[], str], rejected: Callable[[], tuple[int, str]]
    ) -> None:
        super().__init__(exporter.export, SpanExportResult.SUCCESS, exporter.shutdown, ledger, reason, rejected)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `_Counted.arrived`."""
        return SpanExportResult.SUCCESS if self.arrived(spans) else SpanExportResult.FAILURE


class CountedLogs(_Counted[ReadableLogRecord], LogRecordExporter):
    """An exporter of log records whose losses are counted."""

    def __init__(
        self,
        exporter: LogRecordExporter,
        ledger: Ledger,
        reason: Callable[[], str],
        rejected: Callable[[], tuple[int, str]],
    ) -> None:
        super().__init__(exporter.export, LogRecordExportResult.SUCCESS, exporter.shutdown, ledger, reason, rejected)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """See `_Counted.arrived`."""
        return LogRecordExportResult.SUCCESS if self.arrived(batch) else LogRecordExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 10_000) -> bool:
        """Return True: nothing waits here."""
        del timeout_millis
        return True


class SpanBatches(BatchSpanProcessor):
    """OpenTelemetry's processor with a count of lost spans and an end within `FLUSH_S` seconds."""

    def __init__(self, exporter: CountedSpans, settings: Otlp, ledger: Ledger) -> None:
        super().__init__(exporter, settings.queue, settings.delay_ms, settings.batch)
        self._inner, self._ledger = exporter, ledger

    def on_end(self, span: ReadableSpan) -> None:
        """Put a sampled span into the queue."""
        if span.context is not None and span.context.trace_flags.sampled and self._ledger.admit():
            super().on_end(span)

    def shutdown(self) -> None:
        """Export what is in the queue, within a limit of time. A second call has no effect."""
        _stop(super().shutdown, self._inner.shutdown, self._ledger)


class LogBatches(BatchLogRecordProcessor):
    """As `SpanBatches`, for log records."""

    def __init__(self, exporter: CountedLogs, settings: Otlp, ledger: Ledger) -> None:
        super().__init__(exporter, settings.delay_ms, settings.batch, None, settings.queue)
        self._inner, self._ledger = exporter, ledger

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Put a log record into the queue."""
        if self._ledger.admit():
            super().on_emit(log_record)

    def shutdown(self) -> None:
        """Export what is in the queue, within a limit of time. A second call has no effect."""
        _stop(super().shutdown, self._inner.shutdown, self._ledger)


def _stop(flush: Callable[[], None], abort: Callable[[], None], ledger: Ledger) -> None:
    """Flush in another thread. After `FLUSH_S` seconds abort the export in progress, and count what is left as lost."""
    flushing = threading.Thread(target=flush, name="esper telemetry flush", daemon=True)
    flushing.start()
    flushing.join(FLUSH_S)
    if flushing.is_alive():
        abort()
        flushing.join(_ABORT_S)
    ledger.close()
