"""What is read of a telemetry folder: of a run in progress, of a killed run, and of a stranger."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from span_lines import TRACE, failed, line, span, write

from esper.errors import ConfigError, RunDirectoryError
from esper.telemetry import Telemetry, use
from esper.telemetry import span as open_span
from esper.testing import telling
from esper.trace.event_log import severe_events
from esper.trace.otlp_json import parsed
from esper.trace.span_files import LIMITS, TOO_LONG, TORN, Skipped
from esper.trace.span_store import TOO_MANY, one_trace, spans_with, summaries
from esper.trace.span_tree import trees, walk

FILE = "spans-conductor-1.jsonl"


def refuse() -> None:
    with open_span("outer", role="tamiyo", count=3, ratio=float("nan"), names=["ä"]):
        with open_span("inner") as inner:
            inner.add_event("told", {"why": "because"})
        raise ConfigError("field", "value", "mend")


def test_spans_that_telemetry_wrote_are_read_with_all_their_fields(tmp_path: Path) -> None:
    telemetry = Telemetry.start(tmp_path / "telemetry", "conductor", "run-1")
    with telemetry, use(telemetry), pytest.raises(ConfigError):
        refuse()
    spans, skipped = one_trace(tmp_path, "")
    outer, inner = spans
    assert not skipped.counts
    assert (outer.name, outer.role, outer.failed, inner.parent_id) == ("outer", "tamiyo", True, outer.span_id)
    assert outer.attributes["count"] == 3
    assert outer.attributes["ratio"] == "NaN"
    assert outer.attributes["names"] == ["ä"]
    assert outer.attributes["error.type"] == "ConfigError"
    assert outer.events[0].attributes["mend"] == "mend"
    assert inner.events[0].attributes == {"why": "because"}
    assert outer.resource["esper.run_id"] == "run-1"


def test_an_ended_span_replaces_its_start_line_and_a_span_without_end_never_ended(tmp_path: Path) -> None:
    write(tmp_path, span("root", end=None), span("open", "root", 2, None), span("root", end=9))
    spans, _ = one_trace(tmp_path, TRACE[:5])
    assert [(one.name, one.end_ns is None) for one in spans] == [("root", False), ("open", True)]
    (found,) = summaries(tmp_path).traces
    assert (found.root, len(found.spans), found.never_ended, found.duration_ns) == ("root", 2, 1, 9 * 10**6)


def test_an_incomplete_last_line_is_skipped_and_counted(tmp_path: Path) -> None:
    whole = line(span("second"))
    for cut in range(1, len(whole) - 2, 7):
        write(tmp_path, span("first"), tail=whole[:cut])
        found = summaries(tmp_path)
        assert [next(iter(one.spans.values())).name for one in found.traces] == ["first"]
        assert found.skipped.as_json() == [{"file": FILE, "reason": TORN, "count": 1}]
    write(tmp_path, span("first"), tail=whole.rstrip())  # only the line feed is missing
    assert len(summaries(tmp_path).traces[0].spans) == 2


def test_an_id_is_found_by_its_first_digits_if_no_other_id_has_them(tmp_path: Path) -> None:
    write(tmp_path, span("one"), span("two", traceId="A2" * 16))
    assert [one.name for one in one_trace(tmp_path, "a2")[0]] == ["two"]
    assert [one.name for one in one_trace(tmp_path, "A1")[0]] == ["one"]
    for wrong, mend in (("a", "2 traces begin so"), ("ff", "no trace on disk"), ("x", "32 hexadecimal digits")):
        with pytest.raises(ConfigError, check=telling("ID", wrong, mend)):
            one_trace(tmp_path, wrong)


def test_a_folder_without_telemetry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, check=telling("no telemetry is here")):
        summaries(tmp_path)
    (tmp_path / "telemetry").write_text("")
    with pytest.raises(RunDirectoryError, check=telling("has to be a folder")):
        summaries(tmp_path)


# -- folders of strangers --------------------------------------------------------------------------------------------


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket may be short only
        listening.bind(path.name)
        os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


HOSTILE_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "named pipe": (os.mkfifo, "it is no regular file"),
    "link to a device": (_device, "it is a symbolic link"),
    "folder": (Path.mkdir, "it is no regular file"),
    "socket": (_socket, "cannot be opened"),
    "a TiB of zeros": (_sparse, "beyond the limit of one reading"),
}


@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_a_file_that_is_no_span_file_is_counted_and_the_others_are_read(tmp_path: Path, kind: str) -> None:
    make, reason = HOSTILE_FILES[kind]
    write(tmp_path, span("good"))
    make(tmp_path / "telemetry" / "spans-stranger-1.jsonl")
    make(tmp_path / "telemetry" / "severe-events.jsonl")
    found, skipped = summaries(tmp_path, replace(LIMITS, bytes=1 << 24)), Skipped()
    assert [len(one.spans) for one in found.traces] == [1]
    assert any(reason in why for _, why in found.skipped.counts)
    assert severe_events(tmp_path, skipped, replace(LIMITS, bytes=1 << 24)) == []
    assert skipped.counts


DEEP = 200_000
WRONG_LINES = {
    "no JSON": "spans",
    "not UTF-8": b"\xff\xfe{}",
    "deep lists": "[" * DEEP,
    "deep objects": '{"resourceSpans":' * DEEP,
    "deep value": line(span("x", attributes=[{"key": "k", "value": "V"}])).replace(
        '"V"', '{"arrayValue":{"values":[' * 400 + "{}" + "]}}" * 400
    ),
    "long number": line(span("x")).replace('"kind":1', f'"kind":{"9" * 6000}'),
    "a list": "[]",
    "no ids": line(span("x", traceId="")),
    "zero id": line(span("x", spanId="0" * 16)),
    "id of another type": line(span("x", spanId=5)),
    "parent of another type": line(span("x", parentSpanId=["a"])),
    "negative time": line(span("x", startTimeUnixNano="-5")),
    "time of another type": line(span("x", startTimeUnixNano=True)),
    "time beyond 64 bits": line(span("x", endTimeUnixNano=2**64)),
    "name of another type": line(span("x", name={})),
    "attributes of another type": line(span("x", attributes={"a": 1})),
    "attribute of another type": line(span("x", attributes=[5])),
    "value of another type": line(span("x", attributes=[{"key": "k", "value": {"intValue": "x"}}])),
    "unknown value": line(span("x", attributes=[{"key": "k", "value": {"newValue": 1}}])),
    "events of another type": line(span("x", events="none")),
    "event of another type": line(span("x", events=[None])),
    "links of another type": line(span("x", links=[{}])),
    "status of another type": line(span("x", status=7)),
    "span of another type": line(span("x")).replace('"spans":[{', '"spans":[7,{'),
    "groups of another type": '{"resourceSpans":{}}',
}


@pytest.mark.parametrize("kind", WRONG_LINES)
def test_a_wrong_line_is_counted_and_the_lines_around_it_are_read(tmp_path: Path, kind: str) -> None:
    wrong = WRONG_LINES[kind]
    file = write(tmp_path, span("before")) / "telemetry" / FILE
    with file.open("ab") as out:
        out.write((wrong if isinstance(wrong, bytes) else wrong.rstrip("\n").encode()) + b"\n")
        out.write(line(span("after")).encode())
    found = summaries(tmp_path)
    assert [[one.name for one in trace.spans.values()] for trace in found.traces] == [["before", "after"]]
    assert sum(found.skipped.counts.values()) == 1


def test_every_limit_holds_and_is_told(tmp_path: Path) -> None:
    write(tmp_path, *(span(f"s{number}") for number in range(50)))
    size = (tmp_path / "telemetry" / FILE).stat().st_size
    for limits, reason in (
        (replace(LIMITS, spans=20), TOO_MANY),
        (replace(LIMITS, line_bytes=100), TOO_LONG),
        (replace(LIMITS, bytes=size // 2), "beyond the limit of one reading"),
        (replace(LIMITS, files=0), "files after the first 0"),
    ):
        found = summaries(tmp_path, limits)
        assert any(reason in why for _, why in found.skipped.counts)
        assert sum(len(trace.spans) for trace in found.traces) <= 25
    half = summaries(tmp_path, replace(LIMITS, bytes=size // 2))
    assert "s49" in [one.name for one in half.traces[0].spans.values()]  # the newest part is read
    assert len(spans_with(tmp_path, "", replace(LIMITS, detailed_spans=20)).spans) == 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.sampled_from(sorted(span("x"))), JSON, max_size=3)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.binary(max_size=200) | FIELDS, max_size=6))
def test_no_bytes_can_crash_the_reader(tmp_path: Path, parts: list[bytes | dict[str, object]]) -> None:
    lines = [one if isinstance(one, bytes) else line(span("x", **one)).encode() for one in parts]
    write(tmp_path, span("good", traceId="c" * 32))
    (tmp_path / "telemetry" / "spans-x-1.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "telemetry" / "severe-events.jsonl").write_bytes(b"\n".join(lines))
    assert "c" * 32 in [trace.trace_id for trace in summaries(tmp_path).traces]
    severe_events(tmp_path, Skipped())
    for spans in spans_with(tmp_path).by_trace().values():
        assert len(list(walk(trees(spans)))) == len(spans)


@given(value=JSON)
@example(value=["\ud800", {"\udcff": 2**70}, float("inf"), 5e-324])
def test_a_line_is_parsed_as_by_json(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, separators=(",", ":"), ensure_ascii=False)):
        encoded = text.encode("utf-8", "replace")
        assert repr(parsed(encoded)) == repr(json.loads(encoded.decode("utf-8")))


def test_a_severe_event_is_read_with_its_trace(tmp_path: Path) -> None:
    write(tmp_path)
    told = {"time": "2026-11-29T08:00:00+00:00", "name": "gate_failure", "severity": "ERROR", "trace_id": TRACE}
    told |= {"span_id": "b" * 16, "role": "kasmina", "fields": {"gate": "G2"}}
    earlier = told | {"time": "2026-11-29T07:00:00+00:00", "name": "other_cpu"}
    log = tmp_path / "telemetry" / "severe-events.jsonl"
    deep, zone = (
        json.dumps(told).replace('{"gate": "G2"}', '{"a":' * 900 + "1" + "}" * 900),
        "2026-11-29T12:00:00+05:00",
    )
    early = told | {"time": "0001-01-01T00:00:00+14:00"}
    earlier |= {"time": zone}
    log.write_text("\n".join([json.dumps(told), json.dumps(earlier), "{}", deep, json.dumps(early), '{"time": "20']))
    skipped = Skipped()
    assert [event.name for event in severe_events(tmp_path, skipped)] == ["other_cpu", "gate_failure"]
    assert severe_events(tmp_path, Skipped())[0].as_json()["time"] == "2026-11-29T07:00:00+00:00"
    assert severe_events(tmp_path, Skipped())[1].as_json() == told
    assert skipped.total(TORN) == 1
    assert sum(skipped.counts.values()) == 4


def test_a_failed_span_has_its_error(tmp_path: Path) -> None:
    write(tmp_path, span("root", **failed("ActorLost", fence="3")))
    assert summaries(tmp_path).traces[0].errors == 1
