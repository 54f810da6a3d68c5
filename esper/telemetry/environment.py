"""Checks the OTEL_* variables. A variable that esper does not support is refused before a run begins.

An empty variable counts as not set. Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from esper.errors import ConfigError
from esper.ground.suggest import nearest

PREFIX = "OTEL_"
FOR_OTHERS = ("OTEL_PYTHON_", "OTEL_INSTRUMENTATION_")
"""Prefixes of variables for the automatic instrumentation of Python programs. Esper ignores these variables.

The exceptions are a few variables that OpenTelemetry's SDK reads in every program. These have a check in `CHECKS`.
"""
CONTEXT = "OTEL_PYTHON_CONTEXT"
"""Name of the variable that OpenTelemetry reads when it is imported."""

SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
NOT_YET = "esper does not export over the network yet; unset it: spans go to files in RUN/telemetry"


@dataclass(frozen=True)
class TelemetryEnvironment:
    """The values of those variables that esper itself reads. OpenTelemetry's SDK reads the variables of the sampler,
    the limits and the resource.
    """

    disabled: bool
    """True: no spans are written, and the other variables have no effect."""
    traces: bool
    """True: spans are written."""


def read_environment(environment: Mapping[str, str]) -> TelemetryEnvironment:
    """Check and read the OTEL_* variables of `environment`.

    Raises:
        ConfigError: a variable is not supported by esper, or has an unknown value.
    """
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX) and value.strip()}
    given = {name: value for name, value in given.items() if name in CHECKS or not name.startswith(FOR_OTHERS)}
    for name, value in sorted(given.items()):
        if name not in CHECKS:
            raise ConfigError(name, value, _not_obeyed(name))
        CHECKS[name](name, value)
    sampler = given["OTEL_TRACES_SAMPLER"].lower() if "OTEL_TRACES_SAMPLER" in given else "parentbased_always_on"
    if "OTEL_TRACES_SAMPLER_ARG" in given and not sampler.endswith("ratio"):
        mend = "it is the argument of OTEL_TRACES_SAMPLER traceidratio or parentbased_traceidratio; set one of them too"
        raise ConfigError("OTEL_TRACES_SAMPLER_ARG", given["OTEL_TRACES_SAMPLER_ARG"], mend)
    disabled = "OTEL_SDK_DISABLED" in given and given["OTEL_SDK_DISABLED"].lower() == "true"
    return TelemetryEnvironment(disabled, traces=not disabled and "OTEL_TRACES_EXPORTER" not in given)


def _not_obeyed(name: str) -> str:
    if name.startswith("OTEL_EXPORTER_"):
        return NOT_YET
    near = nearest(name, CHECKS)
    return f"esper does not read this variable; {f'did you mean {near}?' if near else 'unset it'}"


def _one_of(*known: str, mend: str = "") -> Callable[[str, str], None]:
    def check(name: str, value: str) -> None:
        if value.lower() not in known:
            raise ConfigError(name, value, mend or f"it may be {', '.join(known)}, or unset")

    return check


def wrong_context(value: str) -> ConfigError:
    """Return the error for a wrong value of OTEL_PYTHON_CONTEXT."""
    return ConfigError(CONTEXT, value, "it may be contextvars_context, or unset")


def _context(_name: str, value: str) -> None:
    if value != "contextvars_context":  # OpenTelemetry looks up the exact text, with case and spaces
        raise wrong_context(value)


def _meter_provider(name: str, value: str) -> None:
    if value not in ("default_meter_provider", "sdk_meter_provider"):
        raise ConfigError(name, value, "it may be default_meter_provider, sdk_meter_provider, or unset")


def _any(_name: str, _value: str) -> None:
    """Accept every value."""


def _count(name: str, value: str) -> None:
    if not (value.isascii() and value.isdigit()):
        raise ConfigError(name, value, "give a whole number from 0 up")


def _share(name: str, value: str) -> None:
    try:
        ratio = float(value)
    except ValueError as error:
        raise ConfigError(name, value, "give a number from 0 to 1") from error
    if not 0.0 <= ratio <= 1.0:
        raise ConfigError(name, value, "give a number from 0 to 1")


def _propagators(name: str, value: str) -> None:
    named = {part.strip() for part in value.split(",")}
    if "tracecontext" not in named or not named <= {"tracecontext", "baggage"}:
        raise ConfigError(name, value, "it may be tracecontext (with baggage or without), or unset")


def _pairs(name: str, value: str) -> None:
    wrong = [pair for pair in value.split(",") if "=" not in pair or not pair.split("=")[0].strip()]
    if wrong:
        raise ConfigError(name, value, f"{wrong[0]!r} is not a pair: give key=value,key=value")


_ONLY_NONE = _one_of("none", mend="it may be none, or unset: esper has no exporter for it yet")

CHECKS: dict[str, Callable[[str, str], None]] = {
    "OTEL_SDK_DISABLED": _one_of("true", "false"),
    "OTEL_TRACES_EXPORTER": _one_of(
        "none", mend="it may be none, or unset: spans go to files in RUN/telemetry, and nowhere else yet"
    ),
    "OTEL_METRICS_EXPORTER": _ONLY_NONE,
    "OTEL_LOGS_EXPORTER": _ONLY_NONE,
    "OTEL_SERVICE_NAME": _any,
    "OTEL_RESOURCE_ATTRIBUTES": _pairs,
    "OTEL_TRACES_SAMPLER": _one_of(*SAMPLERS),
    "OTEL_TRACES_SAMPLER_ARG": _share,
    "OTEL_PROPAGATORS": _propagators,
    CONTEXT: _context,
    "OTEL_PYTHON_METER_PROVIDER": _meter_provider,
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": _one_of("true", "false"),
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
        ),
        _count,
    ),
}
"""Supported variable -> the check of its value."""
