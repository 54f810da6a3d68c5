"""Starts and closes the telemetry of one run in one process.

Each run has a separate tracer provider. OpenTelemetry's global provider is not used, because a process may have several
runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NoOpTracer, Tracer
from opentelemetry.util.types import AnyValue

from esper.errors import StoreWriteFailed
from esper.ground.closing import Closing
from esper.telemetry.environment import TelemetryEnvironment, read_environment
from esper.telemetry.file_exporter import FileSpanExporter, FileSpans
from esper.telemetry.metrics import Counters, Metrics
from esper.telemetry.processors import log_provider, span_processors


def check_environment() -> TelemetryEnvironment:
    """Check and read this process's OTEL_* variables. Raises: ConfigError: a variable is not supported."""
    return read_environment(os.environ)


@dataclass(frozen=True)
class Telemetry(Closing):
    """The telemetry of one run in one process. `start` makes it. `close`, or the end of a `with` block, ends it."""

    directory: Path | None
    """Folder of the span file and the severe-event log. None: no files are written, and only the metrics are
    available."""
    role: str
    run_id: str
    metrics: Metrics
    tracer: Tracer
    _provider: TracerProvider | None
    logs: LoggerProvider | None = None
    """Gets a log record for each severe event. None: severe events are only written to the file."""

    @property
    def counters(self) -> Counters:
        """The counters among the metrics."""
        return self.metrics.counters

    @property
    def enabled(self) -> bool:
        """True if spans are recorded."""
        return self._provider is not None

    @classmethod
    def start(cls, directory: Path | None, role: str, run_id: str = "") -> Telemetry:
        """Open `directory/spans-<role>-<pid>.jsonl`. Make the directory if it does not exist.

        A span is written when it ends, and some spans also when they start (see `file_exporter`). A later SIGKILL does
        not lose what was written. The OTEL_* variables apply (see `environment`), but severe events are always logged,
        because they are the record of failures.

        Args:
            directory: Folder for the files. None: the telemetry writes no files.
            role: Name of the component in this process: conductor, tolaria, tamiyo, kasmina or emergency.
            run_id: Resource attribute `esper.run_id`. "": the attribute is left out.

        Raises:
            ConfigError: an OTEL_* variable is not supported. Nothing was started.
            StoreWriteFailed: the directory or the file cannot be made. Nothing was started.
        """
        metrics, asked = Metrics(), check_environment()
        resource = _resource(role, run_id)
        if directory is None:
            return cls(None, role, run_id, metrics, NoOpTracer(), None)
        path = directory / f"spans-{role}-{os.getpid()}.jsonl"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if not asked.traces:
                logs = log_provider(asked, resource, metrics.counters)
                return cls(directory, role, run_id, metrics, NoOpTracer(), None, logs)
            exporter = FileSpanExporter(path, metrics.counters)
        except OSError as error:
            raise StoreWriteFailed(str(path), "opening the span file") from error
        # `close` flushes the spans for a collector; those in the file are not buffered
        provider = TracerProvider(resource=resource, id_generator=_OsIds(), shutdown_on_exit=False)
        provider.add_span_processor(FileSpans(exporter))
        for processor in span_processors(asked, metrics.counters):
            provider.add_span_processor(processor)
        logs = log_provider(asked, resource, metrics.counters)
        return cls(directory, role, run_id, metrics, provider.get_tracer("esper"), provider, logs)

    def close(self) -> None:
        """Export what waits for a collector, within `batches.FLUSH_S` seconds for spans and again for logs, and close
        the span file. A span that ends later is not written. A second call has no effect.
        """
        if self._provider is not None:
            self._provider.shutdown()
        if self.logs is not None:
            self.logs.shutdown()


class _OsIds(IdGenerator):
    """Ids from the operating system.

    The SDK's generator uses `random`, so with this generator tracing would change the bits of a run.
    """

    def generate_span_id(self) -> int:
        return int.from_bytes(os.urandom(8)) or self.generate_span_id()  # 0 is not a valid id

    def generate_trace_id(self) -> int:
        return int.from_bytes(os.urandom(16)) or self.generate_trace_id()

    def is_trace_id_random(self) -> bool:
        return True


def _resource(role: str, run_id: str) -> Resource:
    """Return the resource attributes. The environment may override the service name, but not the role or the run id."""
    ours: dict[str, AnyValue] = {"process.pid": os.getpid(), "esper.role": role}
    if run_id:
        ours["esper.run_id"] = run_id
    return Resource.create({"service.name": "esper", **OTELResourceDetector().detect().attributes, **ours})
