"""OTEL_* variables: each that can be set is obeyed or refused by its name, before anything is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from opentelemetry.sdk import environment_variables
from opentelemetry.util.re import parse_env_headers

from esper import run
from esper.errors import ConfigError
from esper.telemetry import Telemetry, otlp_settings, span, use
from esper.telemetry.environment import TelemetryEnvironment, read_environment
from esper.telemetry.environment_checks import CHECKS
from esper.telemetry.otlp_headers import header_fault
from esper.telemetry.otlp_settings import Otlp
from esper.testing import telling, tiny_config, tiny_task


def otlp(signal: str, delay_ms: int) -> Otlp:
    """The settings of a signal by default."""
    return Otlp(signal, "http/protobuf", gzip=False, timeout_s=10.0, queue=2048, batch=512, delay_ms=delay_ms)


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("OTEL_TRACES_EXPORTER", "foo", "it may be otlp, console, none, or unset"),
        ("OTEL_TRACES_EXPORTER", "otlp,none", "none stands alone"),
        ("OTEL_METRICS_EXPORTER", "otlp", "it may be prometheus, none, or unset"),
        ("OTEL_LOGS_EXPORTER", "syslog", "it may be otlp, console, none, or unset"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "it may be grpc, http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "10", "from 100 to 2147483647 of milliseconds"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "it may be none, gzip"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon", "a whole number from 1 to 2147483647 of milliseconds"),
        ("OTEL_BLRP_MAX_QUEUE_SIZE", "0", "a whole number from 1 to"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "2147483648", "a whole number from 1 to 2147483647"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "9" * 5000, "a whole number from 0 to 2147483647"),
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "0" * 5000, "a port from 0 to 65535"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "always_on, always_off, traceidratio"),
        ("OTEL_TRACES_SAMPLER", " always_on", "always_on, always_off"),  # the SDK would not know it either
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "from 0 to 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan", "from 0 to 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "half", "from 0 to 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.5", "set one of them too"),
        ("OTEL_PROPAGATORS", "b3", "tracecontext"),
        ("OTEL_PROPAGATORS", "none", "tracecontext"),
        ("OTEL_SDK_DISABLED", "1", "it may be true, false"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team", "'team' is not a pair"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "-1", "a whole number"),
        ("OTEL_LOG_LEVEL", "debug", "does not read this variable"),
        ("OTEL_TRACE_EXPORTER", "none", "did you mean OTEL_TRACES_EXPORTER?"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_with_its_name_value_and_mend(name: str, value: str, mend: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_environment({"HOME": "/root", name: value})
    assert (refused.value.field, refused.value.value) == (name, value)
    assert mend in refused.value.mend


def test_every_variable_of_the_sdk_is_obeyed_refused_or_meant_for_others() -> None:
    names = {value for name, value in vars(environment_variables).items() if name.startswith("OTEL_")}
    for name in names - CHECKS.keys():
        if name.startswith("OTEL_PYTHON_"):
            assert read_environment({name: "x"}) == TelemetryEnvironment(disabled=False, traces=True)
        else:
            with pytest.raises(ConfigError, match=name):
                read_environment({name: "x"})


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,sesame", "pair 2 is not a pair"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,k=sesame\u00e9", "pair 2 has a value with a character outside ASCII"),
        (
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "k=sesame%C3%A9",
            "pair 1 has a value with a character that no header can",
        ),
        ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "k=sesame%0d%0ax:y", "pair 1 has a value"),
        ("OTEL_EXPORTER_OTLP_HEADERS", 'k="sesame"', "pair 1 has a value"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "k%0a=sesame", "pair 1 has a name that no header can have"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-bin=sesame", "pair 1 has a name for binary values"),
        ("OTEL_EXPORTER_OTLP_HEADER", "key=sesame", "did you mean OTEL_EXPORTER_OTLP_HEADERS?"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "me:sesame@localhost:4317", "an address such as http://localhost:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[sesame", "an address such as http://localhost:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:sesame", "an address such as http://localhost:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:sesame99999", "an address such as http://localhost:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://ses ame", "an address such as http://localhost:4317"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/sesame.pem", "no such file"),
        ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", "http://sesame@localhost:9411", "does not read this variable"),
    ],
)
def test_no_error_shows_a_value_that_may_be_a_secret(name: str, value: str, mend: str) -> None:
    with pytest.raises(ConfigError, check=telling(mend, field=name)) as refused:
        read_environment({name: value})
    assert "sesame" not in f"{refused.value}{vars(refused.value)}"


@given(st.text(st.sampled_from('aZ=%2C é0A;\\"\t\n\x7f,-./:[]~\u2028'), max_size=12))
def test_every_header_that_is_accepted_is_one_that_the_sdk_reads_and_a_transport_sends(text: str) -> None:
    text = f"a={text}"
    assume(not any(map(header_fault, text.split(","))))
    read = parse_env_headers(text, liberal=True)
    names = {pair.partition("=")[0].strip().lower() for pair in text.split(",") if pair.strip()}
    assert read.keys() == names
    assert all(value.isascii() and value.isprintable() for value in read.values())


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize(
    "asking", [{"OTEL_TRACES_EXPORTER": "otlp"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"}]
)
def test_otlp_without_its_extra_is_refused_with_the_name_of_the_extra(
    asking: dict[str, str], protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp_settings, "find_spec", lambda _package: None)
    with pytest.raises(ConfigError, check=telling("pip install 'esper-runtime[otlp]'")):
        read_environment({**asking, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol})


@pytest.mark.parametrize(
    ("given", "traces", "logs"),
    [
        ({"OTEL_TRACES_EXPORTER": "otlp"}, otlp("TRACES", delay_ms=5000), None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1"}, otlp("TRACES", delay_ms=5000), None),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://a:1/v1/logs"}, None, otlp("LOGS", delay_ms=1000)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_TRACES_EXPORTER": "console"}, None, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_SDK_DISABLED": "true"}, None, None),
        (
            {
                "OTEL_TRACES_EXPORTER": "console, OTLP",
                "OTEL_LOGS_EXPORTER": "otlp",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TIMEOUT": "1500",
                "OTEL_BLRP_EXPORT_TIMEOUT": "700",
                "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip",
                "OTEL_BSP_MAX_QUEUE_SIZE": "100",
                "OTEL_BSP_SCHEDULE_DELAY": "250",
                "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "7",
            },
            Otlp("TRACES", "grpc", gzip=True, timeout_s=1.5, queue=100, batch=100, delay_ms=250),
            Otlp("LOGS", "http/protobuf", gzip=False, timeout_s=0.7, queue=2048, batch=7, delay_ms=1000),
        ),
    ],
)
def test_the_settings_of_otlp_are_read(given: dict[str, str], traces: Otlp | None, logs: Otlp | None) -> None:
    read = read_environment(given)
    assert (read.traces_otlp, read.logs_otlp) == (traces, logs)


def test_a_batch_that_does_not_fit_into_the_queue_is_refused() -> None:
    given = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_BSP_MAX_QUEUE_SIZE": "9", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10"}
    with pytest.raises(ConfigError, check=telling("at most the size of the queue, 9")):
        read_environment(given)


@pytest.mark.parametrize(
    ("given", "disabled", "traces"),
    [
        ({}, False, True),
        ({"OTEL_SDK_DISABLED": "TRUE"}, True, False),
        ({"OTEL_SDK_DISABLED": "false", "OTEL_TRACES_EXPORTER": "none"}, False, False),
        ({"OTEL_TRACES_EXPORTER": "", "OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False, True),
        (
            {
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_LOGS_EXPORTER": "none",
                "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "0.25",
                "OTEL_PROPAGATORS": "tracecontext,baggage",
                "OTEL_RESOURCE_ATTRIBUTES": "team=vision,floor=2",
                "OTEL_SERVICE_NAME": "nightly",
                "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "64",
            },
            False,
            True,
        ),
    ],
)
def test_what_is_asked_for_is_read(given: dict[str, str], disabled: bool, traces: bool) -> None:
    assert read_environment(given) == TelemetryEnvironment(disabled, traces)


@pytest.mark.parametrize(("sampler", "written"), [("always_off", False), ("always_on", True)])
def test_a_sampler_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, written: bool) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    with Telemetry.start(tmp_path, "conductor") as telemetry, use(telemetry), span("esper round"):
        pass
    (file,) = tmp_path.glob("spans-*.jsonl")
    assert bool(file.read_text()) is written


def test_a_run_that_could_not_obey_is_refused_before_its_directory_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "foo")
    config = tiny_config(run__dir=str(tmp_path / "run"), telemetry__enabled=False)
    with pytest.raises(ConfigError, check=telling(field="OTEL_TRACES_EXPORTER", value="foo")):
        run(tiny_task(), config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("OTEL_PYTHON_CONTEXT", "contextvars_context"),
        ("OTEL_PYTHON_METER_PROVIDER", "default_meter_provider, sdk_meter_provider"),
        ("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true, false"),
    ],
)
def test_the_python_variables_that_the_sdk_itself_reads_are_checked(name: str, known: str) -> None:
    with pytest.raises(ConfigError, check=telling(known, field=name, value="nonsense")):
        read_environment({name: "nonsense"})
    if name != "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED":
        with pytest.raises(ConfigError):  # OpenTelemetry finds these by their exact names
            read_environment({name: known.partition(", ")[0].upper()})
    read_environment({name: known.partition(", ")[0], "OTEL_PYTHON_LOG_LEVEL": "debug"})


def test_a_context_that_is_not_there_is_told_in_one_line_by_every_import_and_refuses_no_import() -> None:
    environment = {**os.environ, "OTEL_PYTHON_CONTEXT": "nonsense"}
    command = [sys.executable, "-c", "import esper.telemetry"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert said.stderr == "OTEL_PYTHON_CONTEXT = 'nonsense': it may be contextvars_context, or unset\n"
