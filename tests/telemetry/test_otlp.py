"""Export by OTLP to a receiver that is healthy, failing, refusing, slow, silent, absent, or goes away half-way."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector import closed, collecting, saying, silent
from span_files import ended

from esper.telemetry import Severity, Telemetry, batches, severe, span, use
from esper.telemetry.events import LOG

PROTOCOLS = ["grpc", "http/protobuf"]
SECRET = "sesame-17"
N = 20


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "400")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setattr(batches, "FLUSH_S", 1.0)
    return request.param


@pytest.fixture
def drawn() -> Iterator[None]:
    """The exporters draw nothing from the random stream of the run."""
    random.seed(7)
    before = random.getstate()
    yield
    assert random.getstate() == before


def send(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch, spans: int = N) -> tuple[Telemetry, float]:
    """Make spans that are exported to `address`, and close. Return the longest time for one span, in seconds, too."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    longest = 0.0
    with Telemetry.start(folder, "conductor", "r1") as telemetry, use(telemetry):
        for step in range(spans):
            began = time.monotonic()
            with span("esper step", step=step):
                pass
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.002)
    return telemetry, longest


def lost(telemetry: Telemetry) -> int:
    return telemetry.counters.total("esper.spans.lost")


@pytest.mark.usefixtures("drawn")
def test_a_healthy_collector_gets_every_span_and_severe_event_and_the_files_have_them_too(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{SECRET}")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "")  # an empty variable counts as not set
    with collecting(protocol) as kept:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", kept.address)
        with Telemetry.start(tmp_path, "conductor", "r1") as telemetry, use(telemetry), span("esper round", role="a"):
            for step in range(N):
                with span("esper step", step=step):
                    pass
            severe("guard_tripped", Severity.ERROR, loss=float("nan"), step=3)
    assert {(one["spanId"], one["name"]) for one in ended(tmp_path)} == {
        (one.span_id.hex(), one.name) for one in kept.spans
    }
    assert len(kept.spans) == N + 1
    (log,), event = kept.logs, json.loads((tmp_path / LOG).read_text())
    assert (log.trace_id.hex(), log.span_id.hex()) == (event["trace_id"], event["span_id"])
    assert (log.event_name, log.body.string_value, log.severity_text) == ("guard_tripped", "guard_tripped", "ERROR")
    told = {pair.key: pair.value for pair in log.attributes}
    assert (told["loss"].string_value, told["step"].int_value, told["esper.role"].string_value) == ("NaN", 3, "a")
    resource = {pair.key: pair.value.string_value for pair in kept.resources[0].attributes}
    assert (resource["service.name"], resource["esper.role"], resource["esper.run_id"]) == ("esper", "conductor", "r1")
    assert kept.headers["authorization"] == f"Bearer {SECRET}"
    assert (lost(telemetry), telemetry.counters.total("esper.log_records.lost")) == (0, 0)
    assert capfd.readouterr().err == ""
    assert SECRET not in "".join(file.read_text() for file in tmp_path.iterdir())


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("fault", ["failing", "refusing", "slow", "silent", "closed", "half-way"])
def test_each_lost_span_is_counted_once_and_none_is_waited_for(
    protocol: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    began, arrived = time.monotonic(), 0
    if fault == "silent":
        with silent() as address:
            telemetry, longest = send(tmp_path, address, monkeypatch)
    elif fault == "closed":
        telemetry, longest = send(tmp_path, closed(), monkeypatch)
    else:
        behaviour = {
            "failing": {"failing": True},
            "refusing": {"refusing": True},
            "slow": {"slow_s": 0.6},
            "half-way": {"confirms": 2},
        }
        with collecting(protocol, **behaviour[fault]) as kept:
            telemetry, longest = send(tmp_path, kept.address, monkeypatch)
        arrived = len({one.span_id for one in kept.spans}) if fault == "half-way" else 0
        assert fault != "half-way" or 0 < arrived <= 10
    assert lost(telemetry) == N - arrived
    assert len(ended(tmp_path)) == N
    assert longest < 0.2
    assert time.monotonic() - began < 6
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("esper: spans to the OTLP collector are being lost: ")


def http(content_type: str, body: bytes, status: str = "200 OK", length: int | None = None) -> bytes:
    told = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {told}\r\n\r\n".encode() + body


PROTOBUF = "application/x-protobuf"
GARBAGE: dict[str, tuple[bytes, ...]] = {
    "a page of a web server": (http("text/html", b"<html>Welcome"), b""),
    "a redirection": (b"HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n", b""),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", b""),
    "nothing": (b"",),
    "wrong protobuf": (http(PROTOBUF, b"\xff\xff\xff\xff\x0f"), b""),
    "wrong JSON": (http("application/json", b'{"partialSuccess": 7}'), b""),
    "a body that is cut": (http(PROTOBUF, b"\x0a", length=100), b""),
    "a body without an end": (http(PROTOBUF, b"", length=10**12), b"\x00" * 65536),
    "a status of a stranger": (http("text/plain", b"", "400 \x1b[2J\x07"), b""),
}


@pytest.mark.usefixtures("protocol")
@pytest.mark.parametrize("garbage", GARBAGE)
def test_an_answer_that_is_none_of_a_collector_is_a_loss_of_every_span(
    garbage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with saying(*GARBAGE[garbage]) as address:
        telemetry, longest = send(tmp_path, address, monkeypatch)
    assert (lost(telemetry), len(ended(tmp_path))) == (N, N)
    assert longest < 0.2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("esper: spans to the OTLP collector are being lost: ")
    assert said.strip().isprintable()


def test_the_spans_that_a_collector_rejects_are_lost_and_the_others_are_not(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with collecting(protocol, rejects=1) as kept:
        telemetry, _ = send(tmp_path, kept.address, monkeypatch)
    assert 4 <= lost(telemetry) == N - len(kept.spans) < N
    assert "the collector rejected them: too \\x1b[2Jmany" in capfd.readouterr().err


def test_a_full_queue_loses_the_newest_spans_and_counts_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with collecting("http/protobuf", slow_s=0.3) as kept:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", kept.address)
        with Telemetry.start(tmp_path, "conductor") as telemetry, use(telemetry):

            def work() -> None:
                for _ in range(100):
                    with span("esper step"):
                        pass

            threads = [threading.Thread(target=lambda: telemetry_of(telemetry, work)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert 0 < len(kept.spans) < 400
    assert lost(telemetry) == 400 - len(kept.spans)
    assert "the queue is full" in capfd.readouterr().err


def telemetry_of(telemetry: Telemetry, work: Any) -> None:
    with use(telemetry):
        work()


def test_a_span_that_ends_after_the_close_is_lost_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting("http/protobuf") as kept:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", kept.address)
        with Telemetry.start(tmp_path, "conductor") as telemetry, use(telemetry), span("esper round"):
            telemetry.close()
    assert (kept.spans, lost(telemetry)) == ([], 2)  # for the file and for the collector


def test_traces_exporter_none_writes_no_span_anywhere_and_logs_still_go_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp,console")
    with collecting("http/protobuf") as kept:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", kept.address)
        with Telemetry.start(tmp_path, "conductor") as telemetry, use(telemetry), span("esper round"):
            severe("guard_tripped", Severity.ERROR)
    assert (kept.spans, len(kept.logs), ended(tmp_path)) == ([], 1, [])
    assert (tmp_path / LOG).exists()


def test_the_console_is_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    with Telemetry.start(tmp_path, "conductor") as telemetry, use(telemetry), span("esper round"):
        pass
    said = capsys.readouterr()
    assert (said.out, json.loads(said.err)["name"]) == ("", "esper round")
