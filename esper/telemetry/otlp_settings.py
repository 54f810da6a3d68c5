"""The settings of one signal's export by OTLP, from the OTEL_* variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from esper.errors import ConfigError

EXTRA = "esper-runtime[otlp]"
DEFAULT_PROTOCOL = "http/protobuf"
"""The protocol that the specification of OpenTelemetry recommends as the default."""

_PACKAGE: Final = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http",
}
_PROCESSOR: Final = {"TRACES": "BSP", "LOGS": "BLRP"}
_DEFAULT_DELAY_MS: Final = {"TRACES": 5000, "LOGS": 1000}


@dataclass(frozen=True)
class Otlp:
    """How one signal is exported."""

    signal: str
    """TRACES or LOGS."""
    protocol: str
    """grpc or http/protobuf."""
    gzip: bool
    timeout_s: float
    """Largest time for the export of one batch with its repeated attempts, in seconds."""
    queue: int
    """Most items that wait for their export. Further items are lost."""
    batch: int
    """Most items in one export."""
    delay_ms: int
    """Time between two exports, in milliseconds."""


def otlp_settings(given: Mapping[str, str], signal: str) -> Otlp:
    """Return the settings of a signal. `given` has variables that are checked and not empty.

    Raises:
        ConfigError: the exporter's package is not installed, or a batch is larger than the queue.
    """

    def chosen(end: str, default: str) -> str:
        names = (f"OTEL_EXPORTER_OTLP_{signal}_{end}", f"OTEL_EXPORTER_OTLP_{end}")
        return next((given[name] for name in names if name in given), default)

    def number(end: str, default: int) -> int:
        name = f"OTEL_{_PROCESSOR[signal]}_{end}"
        return int(given[name]) if name in given else default

    protocol = chosen("PROTOCOL", DEFAULT_PROTOCOL).lower()
    if not _installed(_PACKAGE[protocol]):
        mend = f"export by OTLP needs an extra: pip install '{EXTRA}', or unset the variables that ask for OTLP"
        raise ConfigError(f"OTEL_{signal}_EXPORTER", "otlp", mend)
    queue = number("MAX_QUEUE_SIZE", 2048)
    batch = number("MAX_EXPORT_BATCH_SIZE", min(512, queue))
    if batch > queue:
        name = f"OTEL_{_PROCESSOR[signal]}_MAX_EXPORT_BATCH_SIZE"
        raise ConfigError(name, batch, f"it may be at most the size of the queue, {queue}")
    timeout_ms = min(int(chosen("TIMEOUT", "10000")), number("EXPORT_TIMEOUT", 30000))
    return Otlp(
        signal=signal,
        protocol=protocol,
        gzip=chosen("COMPRESSION", "none").lower() == "gzip",
        timeout_s=timeout_ms / 1000,
        queue=queue,
        batch=batch,
        delay_ms=number("SCHEDULE_DELAY", _DEFAULT_DELAY_MS[signal]),
    )


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # a package that should contain it is missing
        return False
