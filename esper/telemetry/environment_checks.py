"""The check of the value of each OTEL_* variable that esper supports.

No error shows the value of a variable that may hold a secret.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from urllib.parse import urlsplit

from esper.errors import ConfigError
from esper.telemetry.otlp_headers import header_fault

Check = Callable[[str, str], None]
"""A function of a variable's name and value. Raises: ConfigError: the value is unknown or cannot be used."""

CONTEXT = "OTEL_PYTHON_CONTEXT"
"""Name of the variable that OpenTelemetry reads when it is imported."""
HIDDEN = "(not shown)"
"""Stands for a value in an error if the value may hold a secret."""

SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
SIGNALS = ("TRACES", "LOGS")
"""The signals that esper exports by OTLP."""
PROTOCOLS = ("grpc", "http/protobuf")
LEAST_TIMEOUT_MS = 100
MOST = 2**31 - 1
"""Largest whole number that is accepted. OpenTelemetry fails at larger queues and times, after the run has begun."""


def hides(name: str) -> bool:
    """Return whether the value of a variable may hold a secret: the headers, and an address with a password. This
    includes names that esper does not know, because they may be misspelled.
    """
    return name.startswith("OTEL_EXPORTER_") and not name.endswith(("_PROTOCOL", "_TIMEOUT", "_COMPRESSION", "_PORT"))


def shown(name: str, value: str) -> str:
    """Return the value as an error may show it."""
    return HIDDEN if hides(name) else value


def wrong(name: str, value: str, mend: str) -> ConfigError:
    """Return the error for a wrong value."""
    return ConfigError(name, shown(name, value), mend)


def wrong_context(value: str) -> ConfigError:
    """Return the error for a wrong value of OTEL_PYTHON_CONTEXT."""
    return ConfigError(CONTEXT, value, "it may be contextvars_context, or unset")


def listed(value: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated list, in lower case."""
    return tuple(part.strip().lower() for part in value.split(","))


def _one_of(*known: str, mend: str = "") -> Check:
    def check(name: str, value: str) -> None:
        if value.lower() not in known:
            raise wrong(name, value, mend or f"it may be {', '.join(known)}, or unset")

    return check


def _exporters(*known: str) -> Check:
    def check(name: str, value: str) -> None:
        asked = listed(value)
        if not set(asked) <= set(known):
            raise wrong(name, value, f"it may be {', '.join(known)}, or unset; several are separated by commas")
        if "none" in asked and set(asked) != {"none"}:
            raise wrong(name, value, "none stands alone")

    return check


def _context(_name: str, value: str) -> None:
    if value != "contextvars_context":  # OpenTelemetry looks up the exact text, with case and spaces
        raise wrong_context(value)


def _meter_provider(name: str, value: str) -> None:
    if value not in ("default_meter_provider", "sdk_meter_provider"):
        raise wrong(name, value, "it may be default_meter_provider, sdk_meter_provider, or unset")


def _any(_name: str, _value: str) -> None:
    """Accept every value."""


def _whole(least: int, unit: str = "") -> Check:
    def check(name: str, value: str) -> None:
        number = _number(value)
        if number is None or not least <= number <= MOST:
            raise wrong(name, value, f"give a whole number from {least} to {MOST}{unit}")

    return check


def _number(value: str) -> int | None:
    """Return a whole number of at most ten digits. None: the text is none."""
    return int(value) if value.isascii() and value.isdigit() and len(value) <= len(str(MOST)) else None


def _share(name: str, value: str) -> None:
    try:
        ratio = float(value)
    except ValueError as error:
        raise wrong(name, value, "give a number from 0 to 1") from error
    if not 0.0 <= ratio <= 1.0:
        raise wrong(name, value, "give a number from 0 to 1")


def _propagators(name: str, value: str) -> None:
    named = {part.strip() for part in value.split(",")}
    if "tracecontext" not in named or not named <= {"tracecontext", "baggage"}:
        raise wrong(name, value, "it may be tracecontext (with baggage or without), or unset")


def _pairs(name: str, value: str) -> None:
    for pair in value.split(","):
        if "=" not in pair or not pair.split("=")[0].strip():
            raise wrong(name, value, f"{pair!r} is not a pair: give key=value,key=value")


def _headers(name: str, value: str) -> None:
    for number, pair in enumerate(value.split(","), 1):
        if fault := header_fault(pair):
            raise wrong(name, value, f"pair {number} {fault}")


def _address(name: str, value: str) -> None:
    mend = "give an address such as http://localhost:4317"
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without a pair, or a port that is no number from 0 to 65535
        raise wrong(name, value, mend) from None  # the cause may show a part of a password
    if not usable or any(one.isspace() for one in value):
        raise wrong(name, value, mend)


def _file(name: str, value: str) -> None:
    if not os.path.isfile(value):
        raise wrong(name, value, "no such file: give the path of a PEM file")


def _port(name: str, value: str) -> None:
    number = _number(value)
    if number is None or number > 65535:
        raise wrong(name, value, "give a port from 0 to 65535; 0: a free port")


_milliseconds = _whole(1, " of milliseconds")
_timeout = _whole(LEAST_TIMEOUT_MS, " of milliseconds")  # a smaller number is probably meant as seconds

_OTLP: dict[str, Check] = {
    "ENDPOINT": _address,
    "PROTOCOL": _one_of(*PROTOCOLS),
    "HEADERS": _headers,
    "TIMEOUT": _timeout,
    "COMPRESSION": _one_of("none", "gzip"),
    "INSECURE": _one_of("true", "false"),
    "CERTIFICATE": _file,
    "CLIENT_CERTIFICATE": _file,
    "CLIENT_KEY": _file,
}
"""End of an OTEL_EXPORTER_OTLP_* variable -> its check. Each variable exists for all signals and for each signal."""

CHECKS: dict[str, Check] = {
    "OTEL_SDK_DISABLED": _one_of("true", "false"),
    "OTEL_TRACES_EXPORTER": _exporters("otlp", "console", "none"),
    "OTEL_METRICS_EXPORTER": _exporters("prometheus", "none"),
    "OTEL_LOGS_EXPORTER": _exporters("otlp", "console", "none"),
    "OTEL_EXPORTER_PROMETHEUS_HOST": _any,
    "OTEL_EXPORTER_PROMETHEUS_PORT": _port,
    "OTEL_SERVICE_NAME": _any,
    "OTEL_RESOURCE_ATTRIBUTES": _pairs,
    "OTEL_TRACES_SAMPLER": _one_of(*SAMPLERS),
    "OTEL_TRACES_SAMPLER_ARG": _share,
    "OTEL_PROPAGATORS": _propagators,
    CONTEXT: _context,
    "OTEL_PYTHON_METER_PROVIDER": _meter_provider,
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": _one_of("true", "false"),
    **{f"OTEL_EXPORTER_OTLP_{end}": check for end, check in _OTLP.items()},
    **{f"OTEL_EXPORTER_OTLP_{signal}_{end}": check for signal in SIGNALS for end, check in _OTLP.items()},
    **{
        f"OTEL_{processor}_{end}": check
        for processor in ("BSP", "BLRP")
        for end, check in {
            "SCHEDULE_DELAY": _milliseconds,
            "EXPORT_TIMEOUT": _timeout,
            "MAX_QUEUE_SIZE": _whole(1),
            "MAX_EXPORT_BATCH_SIZE": _whole(1),
        }.items()
    },
    **dict.fromkeys(
        (
            "OTEL_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            "OTEL_SPAN_EVENT_COUNT_LIMIT",
            "OTEL_SPAN_LINK_COUNT_LIMIT",
            "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        ),
        _whole(0),
    ),
}
"""Supported variable -> the check of its value."""
