"""The span file: real OTLP/JSON, whole lines, spans that outlive their process, losses that are counted and said."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status as ProtoStatus
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.trace import Status, StatusCode, Tracer
from span_files import written

from esper.telemetry import continue_from, span, traceparent
from esper.telemetry.file_exporter import FileSpanExporter, append_line, open_for_append
from esper.telemetry.metrics import Counters


def tracer_to(path: Path) -> Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(path, Counters())))
    return provider.get_tracer("test")


def ended_span(name: str = "esper step") -> ReadableSpan:
    span = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span(name)
    span.end()
    assert isinstance(span, ReadableSpan)
    return span


def parse(line: str) -> TracesData:
    """As an OTLP receiver would, but for the ids: OTLP/JSON has them in hex, protobuf's own JSON in base64."""
    data = json.loads(line)
    span = data["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    for owner in (span, *span["links"]):
        for field in ("traceId", "spanId", "parentSpanId"):
            if field in owner:
                owner[field] = base64.b64encode(bytes.fromhex(owner[field])).decode()
    return json_format.ParseDict(data, TracesData(), ignore_unknown_fields=False)


def only_span(line: str) -> ProtoSpan:
    return parse(line).resource_spans[0].scope_spans[0].spans[0]


def test_every_kind_of_attribute_survives_the_protocol(tmp_path):
    values = {
        "text": 'ж "quoted"\nline',
        "yes": True,
        "count": -(2**63),
        "ratio": 0.1,
        "nan": float("nan"),
        "raw": b"\x00\xff",
        "nothing": None,
        "steps": [1, 2, 3],
        "mesh": {"layer": "conv1"},
        "too_big": 2**63,
    }
    with tracer_to(tmp_path / "spans").start_as_current_span("esper step", attributes=values):
        pass

    got = {pair.key: pair.value for pair in only_span((tmp_path / "spans").read_text()).attributes}

    assert got["text"].string_value == values["text"]
    assert got["yes"].WhichOneof("value") == "bool_value"
    assert got["yes"].bool_value
    assert got["count"].int_value == -(2**63)
    assert got["ratio"].double_value == 0.1
    assert got["nan"].double_value != got["nan"].double_value
    assert got["raw"].bytes_value == b"\x00\xff"
    assert got["nothing"].WhichOneof("value") is None
    assert [item.int_value for item in got["steps"].array_value.values] == [1, 2, 3]
    assert got["mesh"].kvlist_value.values[0].value.string_value == "conv1"
    assert got["too_big"].string_value == str(2**63)


def test_ids_times_parent_events_links_and_status_survive_the_protocol(tmp_path):
    tracer = tracer_to(tmp_path / "spans")
    with tracer.start_as_current_span("esper round") as root, tracer.start_as_current_span("esper step") as step:
        step.add_event("severe", {"gate": "G2"}, timestamp=1_700_000_000_000_000_001)
        step.add_link(root.get_span_context(), {"why": "stored"})
        step.set_status(Status(StatusCode.ERROR, "loss is nan"))

    first, second = (tmp_path / "spans").read_text().splitlines()
    got, parent = only_span(first), only_span(second)
    assert isinstance(step, ReadableSpan)

    assert got.trace_id.hex() == f"{step.get_span_context().trace_id:032x}" == parent.trace_id.hex()
    assert got.parent_span_id == parent.span_id
    assert parent.parent_span_id == b""
    assert got.name == "esper step"
    assert got.kind == ProtoSpan.SPAN_KIND_INTERNAL
    assert (got.start_time_unix_nano, got.end_time_unix_nano) == (step.start_time, step.end_time)
    assert got.events[0].time_unix_nano == 1_700_000_000_000_000_001
    assert got.events[0].attributes[0].value.string_value == "G2"
    assert got.links[0].span_id == parent.span_id
    assert got.links[0].trace_id == parent.trace_id
    assert got.status.code == ProtoStatus.STATUS_CODE_ERROR
    assert got.status.message == "loss is nan"
    assert json.loads(first)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["startTimeUnixNano"] == str(
        step.start_time
    )


def test_every_span_that_ended_is_in_the_file_after_sigkill(tmp_path):
    program = f"""
import os, pathlib, signal
from esper.telemetry import Telemetry, span, use
with use(Telemetry.start(pathlib.Path({str(tmp_path)!r}), "tolaria")), span("esper round"):
    for step in range(100):
        with span("esper step", step=step):
            pass
    os.kill(os.getpid(), signal.SIGKILL)
"""
    died = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False)

    (file,) = tmp_path.iterdir()
    first, *steps = [only_span(line) for line in file.read_text().splitlines()]
    assert died.returncode == -signal.SIGKILL
    assert [step.attributes[1].value.int_value for step in steps] == list(range(100))
    assert (first.name, first.end_time_unix_nano) == ("esper round", 0)
    assert 0 not in [step.end_time_unix_nano for step in steps]


def test_a_root_and_a_span_whose_parent_is_elsewhere_have_a_line_from_their_start_and_no_other_has(telemetry):
    with span("esper round", fence=7):
        sender = traceparent()
        with span("tamiyo decide"), continue_from(sender), span("trainer apply"):
            pass

    lines = [(one["name"], one["endTimeUnixNano"] != "0") for one in written(telemetry.directory)]
    assert lines == [
        ("esper round", False),
        ("trainer apply", False),
        ("trainer apply", True),
        ("tamiyo decide", True),
        ("esper round", True),
    ]
    start, *_, end = written(telemetry.directory)
    same = ("traceId", "spanId", "parentSpanId", "flags", "startTimeUnixNano", "attributes")
    assert [start[field] for field in same] == [end[field] for field in same]


def test_a_start_that_is_not_written_is_said_and_costs_no_span(capfd):
    counters = Counters()
    FileSpanExporter(Path("/dev/full"), counters).write_start(ended_span())

    assert counters.total("esper.spans.lost") == 0
    assert "spans are being lost: /dev/full" in capfd.readouterr().err


def test_a_full_disk_costs_the_spans_and_says_so_once(capfd):
    counters = Counters()
    exporter = FileSpanExporter(Path("/dev/full"), counters)

    assert exporter.export([ended_span(), ended_span()]) is SpanExportResult.FAILURE
    assert exporter.export([ended_span()]) is SpanExportResult.FAILURE

    assert counters.total("esper.spans.lost") == 3
    assert capfd.readouterr().err.count("spans are being lost: /dev/full: OSError(28") == 1


def test_a_span_that_comes_after_shutdown_is_counted_and_goes_to_no_other_file(tmp_path):
    counters = Counters()
    exporter = FileSpanExporter(tmp_path / "spans", counters)
    exporter.shutdown()
    exporter.shutdown()
    with (tmp_path / "checkpoint").open("w"):  # takes the descriptor's number
        assert exporter.export([ended_span()]) is SpanExportResult.FAILURE

    assert (tmp_path / "checkpoint").read_text() == ""
    assert counters.total("esper.spans.lost") == 1


def test_spans_after_the_file_was_deleted_are_lost_and_counted(tmp_path, capfd):
    counters = Counters()
    exporter = FileSpanExporter(tmp_path / "spans-conductor-1.jsonl", counters)
    assert exporter.export([ended_span()]) is SpanExportResult.SUCCESS
    (tmp_path / "spans-conductor-1.jsonl").unlink()
    assert exporter.export([ended_span()]) is SpanExportResult.FAILURE
    assert counters.total("esper.spans.lost") == 1
    assert "the file was deleted" in capfd.readouterr().err
    exporter.shutdown()


def test_a_write_cut_short_is_a_lost_span_and_not_a_half_one_called_written(tmp_path):
    program = f"""
import pathlib, resource
from opentelemetry.sdk.trace import TracerProvider
from esper.telemetry import continue_from, span, traceparent
from esper.telemetry.file_exporter import FileSpanExporter
from esper.telemetry.metrics import Counters
counters = Counters()
exporter = FileSpanExporter(pathlib.Path({str(tmp_path / "spans")!r}), counters)
span = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("esper step")
span.end()
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # the first write takes 100 bytes, the next fails
cut = exporter.export([span])
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
whole = exporter.export([span])
print(cut.name, whole.name, counters.total("esper.spans.lost"))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )

    torn, whole = (tmp_path / "spans").read_text().splitlines()
    assert ran.stdout.split() == ["FAILURE", "SUCCESS", "1"]
    assert len(torn) == 100
    assert only_span(whole).name == "esper step"


@pytest.mark.parametrize(
    ("before", "after"), [("", "new\n"), ("whole\n", "whole\nnew\n"), ("torn", "torn\nnew\n")], ids=str.strip
)
def test_a_line_stands_apart_from_what_an_earlier_process_left(tmp_path, before, after):
    path = tmp_path / "lines"
    path.write_text(before)

    append_line(open_for_append(path), "new")

    assert path.read_text() == after
