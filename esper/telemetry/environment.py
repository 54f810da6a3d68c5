"""Checks and reads the OTEL_* variables. A variable that esper does not support is refused before a run begins.

An empty variable counts as not set. Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

from esper.errors import ConfigError
from esper.ground.suggest import nearest
from esper.telemetry.environment_checks import CHECKS, listed, wrong
from esper.telemetry.otlp_settings import Otlp, otlp_settings

PREFIX = "OTEL_"
FOR_OTHERS = ("OTEL_PYTHON_", "OTEL_INSTRUMENTATION_")
"""Prefixes of variables for the automatic instrumentation of Python programs. Esper ignores these variables.

The exceptions are a few variables that OpenTelemetry's SDK reads in every program. These have a check in `CHECKS`.
"""


@dataclass(frozen=True)
class TelemetryEnvironment:
    """The values of those variables that esper itself reads. OpenTelemetry's SDK reads the variables of the sampler,
    the limits and the resource, and the headers and certificates for OTLP.
    """

    disabled: bool
    """True: no spans are written, and the other variables have no effect."""
    traces: bool
    """True: spans are written."""
    traces_otlp: Otlp | None = None
    """The export of spans by OTLP. None: spans are not exported by OTLP."""
    logs_otlp: Otlp | None = None
    """The export of severe events by OTLP. None: they are not exported by OTLP."""
    prometheus: tuple[str, int] | None = None
    """Host and port of the endpoint for Prometheus. None: the variables ask for no endpoint."""
    console: frozenset[str] = frozenset()
    """Signals (TRACES, LOGS) that are also written to standard error."""

    @property
    def exports(self) -> bool:
        """True if spans or severe events are exported by OTLP."""
        return self.traces_otlp is not None or self.logs_otlp is not None


@dataclass(frozen=True)
class TelemetryVariables:
    """The OTEL_* variables of the process that begins or resumes a run.

    They are sent to the processes of the run, because these may have an older environment. The values may hold secrets,
    so they are in no file, and `repr` does not show them.
    """

    values: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> TelemetryVariables:
        """Read the variables."""
        return cls({name: value for name, value in environment.items() if name.startswith(PREFIX)})

    def put_into(self, environment: MutableMapping[str, str]) -> None:
        """Replace the OTEL_* variables of an environment."""
        for name in [name for name in environment if name.startswith(PREFIX) and name not in self.values]:
            del environment[name]
        environment.update(self.values)


def read_environment(environment: Mapping[str, str]) -> TelemetryEnvironment:
    """Check and read the OTEL_* variables of `environment`.

    Raises:
        ConfigError: a variable is not supported by esper, or has an unknown value, or needs a package that is not
            installed.
    """
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX) and value.strip()}
    given = {name: value for name, value in given.items() if name in CHECKS or not name.startswith(FOR_OTHERS)}
    for name, value in sorted(given.items()):
        if name not in CHECKS:
            raise wrong(name, value, _not_obeyed(name))
        CHECKS[name](name, value)
    sampler = given["OTEL_TRACES_SAMPLER"].lower() if "OTEL_TRACES_SAMPLER" in given else "parentbased_always_on"
    if "OTEL_TRACES_SAMPLER_ARG" in given and not sampler.endswith("ratio"):
        mend = "it is the argument of OTEL_TRACES_SAMPLER traceidratio or parentbased_traceidratio; set one of them too"
        raise ConfigError("OTEL_TRACES_SAMPLER_ARG", given["OTEL_TRACES_SAMPLER_ARG"], mend)
    if "OTEL_SDK_DISABLED" in given and given["OTEL_SDK_DISABLED"].lower() == "true":
        return TelemetryEnvironment(disabled=True, traces=False)
    traces, logs = _exporters(given, "TRACES"), _exporters(given, "LOGS")
    return TelemetryEnvironment(
        disabled=False,
        traces="none" not in traces,
        traces_otlp=otlp_settings(given, "TRACES") if "otlp" in traces else None,
        logs_otlp=otlp_settings(given, "LOGS") if "otlp" in logs else None,
        prometheus=_prometheus(given) if "prometheus" in _exporters(given, "METRICS") else None,
        console=frozenset(signal for signal, asked in (("TRACES", traces), ("LOGS", logs)) if "console" in asked),
    )


def _exporters(given: Mapping[str, str], signal: str) -> tuple[str, ...]:
    """Return the exporters of a signal. An endpoint without a list of exporters asks for OTLP: the general endpoint for
    traces, and the signal's own endpoint for every signal.
    """
    if (name := f"OTEL_{signal}_EXPORTER") in given:
        return listed(given[name])
    general = signal == "TRACES" and "OTEL_EXPORTER_OTLP_ENDPOINT" in given
    return ("otlp",) if general or f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT" in given else ()


def _prometheus(given: Mapping[str, str]) -> tuple[str, int]:
    """Return host and port of the endpoint. The defaults are those of the specification."""
    host, port = "OTEL_EXPORTER_PROMETHEUS_HOST", "OTEL_EXPORTER_PROMETHEUS_PORT"
    values = {host: "127.0.0.1", port: "9464", **given}
    return values[host], int(values[port])


def _not_obeyed(name: str) -> str:
    near = nearest(name, CHECKS)
    return f"esper does not read this variable; {f'did you mean {near}?' if near else 'unset it'}"
