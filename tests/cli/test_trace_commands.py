"""`esper trace` and `esper events` on written folders: what a person and what a program reads."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from rich.cells import cell_len
from span_lines import TRACE, failed, span, write

from esper.cli.main import exit_code
from esper.telemetry import Severity, Telemetry, severe, trace_id, use
from esper.telemetry import span as in_span

OTHER = "b2" * 16
TRACEBACK = """OSError: [Errno 5] the disk is broken

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/home/me/run.py", line 3, in <module>
    restore()
  File "/home/me/store.py", line 7, in restore
    read(file)
  File "/opt/elsewhere/esper/tolaria/trainer.py", line 5, in read
    torch.load(file)
  File "/opt/python/site-packages/torch/a_very_long_name_of_a_module/serialization.py", line 776, in __init__
    raise CheckpointCorrupt(file)
esper.errors.CheckpointCorrupt: the checksum is wrong
raised by task.train: a sample of the data set
"""
INSIDE = "/opt/python/site-packages/torch/a_very_long_name_of_a_module/serialization.py"
FENCE = {"key": "fence", "value": {"intValue": "4"}}
Esper = Callable[..., tuple[int, str]]


@pytest.fixture
def esper(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Esper:
    """Run a command line at 80 columns; the exit code and all that was printed."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: object) -> tuple[int, str]:
        code = exit_code([str(word) for word in words])
        told = capsys.readouterr()
        return code, told.out + told.err

    return call


def as_json(found: tuple[int, str]) -> Any:
    assert found[0] == 0, found[1]
    return json.loads(found[1].strip().splitlines()[-1])


@pytest.fixture
def incident(tmp_path: Path) -> Path:
    """A run with a round whose checkpoint is damaged, and a quick healthy round after it."""
    error = failed("CheckpointCorrupt", "the checksum is wrong", file="fence-3.ckpt")
    trace = {"key": "exception.stacktrace", "value": {"stringValue": TRACEBACK}}
    error["events"][0]["attributes"].append(trace)
    steps = [span(f"s{number}", "round", 10 + number, 11 + number, name="esper step") for number in range(12)]
    write(
        tmp_path,
        span("round", end=2000, role="conductor", name="esper round", **error),
        *steps,
        span("restore", "round", 100, 1900, name="checkpoint restore", **error),
        span("policy", "round", 40, None, role="tamiyo", name="tamiyo decide"),
        span("next", traceId=OTHER, start=3000, end=3100, role="conductor", name="esper round", attributes=[FENCE]),
    )
    log = {"time": "2023-11-14T22:13:20+00:00", "name": "policy_timeout", "severity": "ERROR", "trace_id": TRACE}
    log |= {"span_id": "706f6c6963790000", "role": "tamiyo", "fields": {"elapsed_s": 5.5}}
    (tmp_path / "telemetry" / "severe-events.jsonl").write_text(json.dumps(log) + "\n")
    return tmp_path


def test_a_list_has_a_row_for_each_trace_and_takes_filters(esper: Esper, incident: Path) -> None:
    first, second = as_json(esper("trace", "list", incident, "--json"))["traces"]
    assert first == {
        "trace_id": TRACE,
        "root": "esper round",
        "fence": None,
        "start": "2023-11-14T22:13:20+00:00",
        "duration_s": 2.0,
        "spans": 15,
        "errors": 2,
        "never_ended": 1,
        "severe_events": 1,
    }
    for filtered, expected in (
        (["--errors"], [TRACE]),
        (["--severe"], [TRACE]),
        (["--slow", "0.05"], [TRACE, OTHER]),
        (["--slow", "2.5"], []),
        (["--since", "2023-11-14T22:13:22"], [OTHER]),
        (["--since", "5m"], []),
    ):
        found = as_json(esper("trace", "list", incident, *filtered, "--json"))["traces"]
        assert [trace["trace_id"] for trace in found] == expected, filtered
    assert (second["errors"], second["severe_events"]) == (0, 0)
    log = incident / "telemetry" / "severe-events.jsonl"
    log.write_text(log.read_text() * 2 + log.read_text().replace(TRACE, ""))
    told = esper("trace", "list", incident)[1]
    assert re.search(r"a1a1a1a1 +esper round +11-14 22:13:20 +2.00 s +15 +2 \+1 open +2 *\n", told)
    assert re.search(r"b2b2b2b2 +esper round 4 ", told)
    assert "1 severe events are in no trace on disk: esper events" in told
    assert max(map(len, told.splitlines()[:-1])) <= 80
    assert as_json(esper("trace", "list", incident, "--json"))["severe_events_without_trace"] == 1
    code, wrong = esper("trace", "list", incident, "--since", "yesterday")
    assert code == 2
    assert "--since" in wrong


def test_a_trace_is_a_tree_of_80_columns_whose_lines_begin_with_their_roles(esper: Esper, incident: Path) -> None:
    code, told = esper("trace", "show", incident, TRACE[:4])
    lines = told.splitlines()
    assert code == 0
    assert max(len(line) for line in lines if INSIDE not in line) <= 80
    assert all(line.split()[0] in ("conductor", "tolaria", "tamiyo") for line in lines[3:])
    assert re.search(r"tolaria +├ esper step +x12 \* +12.0 ms", told)
    assert re.search(r"tolaria +CheckpointCorrupt: the checksum is wrong +file=fence-3.ckpt", told)
    assert re.search(r"tolaria +caused by OSError: \[Errno 5\] the disk is broken\n", told)
    at = [" ".join(line.split()[1:]) for line in lines].index("at /home/me/store.py, line 7, in restore")
    below = " ".join(" ".join(line.split()[1:]) for line in lines[at + 1 :])
    note = "raised by task.train: a sample of the data set"
    assert below.startswith(f"raised in {INSIDE}, line 776, in __init__ {note}")
    assert re.search(r"conductor +CheckpointCorrupt, from below", told)
    assert re.search(r"tamiyo +. tamiyo decide +never ended", told)
    assert re.search(r"tamiyo +at 0 ns: policy_timeout ERROR +elapsed_s=5.5", told)


def test_a_line_has_its_fence_or_step_and_no_field_that_is_empty_or_said_before(esper: Esper, tmp_path: Path) -> None:
    why = "the battery of the site is empty"
    error = failed("EmergencyStop", f"halted: ups: {why}", reason="", what="loss", origin="ups", detail=why)
    event = {"timeUnixNano": "1700000000000000000", "name": "emergency_halt"}
    error["events"].insert(0, event | {"attributes": [{"key": "what", "value": {"stringValue": "loss"}}]})
    step = {"attributes": [{"key": "step", "value": {"intValue": "87"}}]}
    restore = span("b", "round", name="checkpoint restore", attributes=[FENCE])
    write(tmp_path, span("round"), span("a", "round", name="esper step", **step, **error), restore)
    told = esper("trace", "show", tmp_path, TRACE)[1]
    assert "esper step 87" in told
    assert "checkpoint restore, fence 4" in told
    assert "a child outlives it" not in told
    assert [told.count(text) for text in ("what=loss", "origin=ups", "reason=", "detail=")] == [1, 1, 0, 0]
    slow = [span(f"w{number}", "b", 0, 90 if number == 3 else 10, name="await actor") for number in range(4)]
    write(tmp_path, span("round"), restore, *slow)
    told = esper("trace", "show", tmp_path, TRACE)[1]
    assert "await actor  x4, longest 90.0 ms" in told
    assert "round *  (a child outlives it)" in told


def test_the_critical_path_and_the_json_of_a_trace(esper: Esper, incident: Path) -> None:
    _, told = esper("trace", "show", incident, TRACE, "--critical")
    assert "checkpoint restore" in told
    assert "tamiyo decide" not in told
    found = as_json(esper("trace", "show", incident, TRACE, "--json"))
    assert [span["name"] for span in found["spans"] if span["critical"]].count("checkpoint restore") == 1
    restore = next(span for span in found["spans"] if span["name"] == "checkpoint restore")
    assert restore["error"] == {
        "class": "CheckpointCorrupt",
        "message": "the checksum is wrong",
        "place": f"{INSIDE}, line 776, in __init__",
        "users_place": "/home/me/store.py, line 7, in restore",
        "notes": ["raised by task.train: a sample of the data set"],
        "cause": ["OSError: [Errno 5] the disk is broken"],
        "began_here": True,
    }
    assert [event["name"] for event in found["severe_events_without_span"]] == ["policy_timeout"]


def test_no_line_is_wider_than_the_terminal_whatever_a_stranger_writes(esper: Esper, tmp_path: Path) -> None:
    wide = "\u6f22\u5b57 \U0001f525e\u0301" * 40
    write(tmp_path, span("x", name=wide, **failed("E", wide, f="q" * 300)), span("y", "x", role=wide, name="z" * 300))
    told = esper("trace", "show", tmp_path, TRACE, "--attrs")[1]
    assert max(map(cell_len, told.splitlines())) <= 80
    assert (told.count("z"), told.count("q")) == (300, 300), "a part was left out"
    assert told.count("\u6f22") == 40 + 40 + told.count("..")  # the name, the message, and the shortened roles


def test_more_severe_events_than_a_span_can_hold_are_read_from_the_log(esper: Esper, tmp_path: Path) -> None:
    """OpenTelemetry keeps the newest 128 events of a span."""
    with Telemetry.start(tmp_path / "telemetry", "conductor") as telemetry, use(telemetry), in_span("esper round"):
        trace = trace_id()
        for number in range(300):
            severe("guard_tripped", Severity.CRITICAL, step=number, what="loss", value=2**70)
    told = esper("trace", "show", tmp_path, trace)[1]
    assert [int(number) for number in re.findall(r"step=(\d+)", told)] == [*range(300)]
    assert "not on disk" not in told
    found = as_json(esper("trace", "show", tmp_path, trace, "--json"))
    assert [event["fields"]["step"] for event in found["severe_events_without_span"]] == [*range(172)]
    assert found["spans"][0]["dropped"] == {"attributes": 0, "events": 172, "links": 0}
    steps = [
        match["text"] for match in as_json(esper("trace", "grep", tmp_path, "guard_tripped.step=", "--json"))["matches"]
    ]
    assert sorted(map(int, steps)) == [*range(300)]
    read = json_format.Parse(esper("trace", "export", tmp_path, trace, "--format", "otlp")[1], TracesData())
    (exported,) = read.resource_spans[0].scope_spans[0].spans
    assert (len(exported.events), exported.dropped_events_count) == (300, 0)
    (tmp_path / "telemetry" / "severe-events.jsonl").unlink()
    assert "172 more events are not on disk" in " ".join(esper("trace", "show", tmp_path, trace)[1].split())


def test_text_of_a_stranger_cannot_control_the_terminal(esper: Esper, tmp_path: Path) -> None:
    write(tmp_path, span("x", name="\x1b[2J[red]a\nb\ud800", **failed("E", "\x1b]0;title\x07", f="\x9b1m")))
    for words in (["list", tmp_path], ["show", tmp_path, TRACE, "--attrs"]):
        code, told = esper("trace", *words)
        assert code == 0
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", told)
        assert "[red" in told.replace(" ", "")
    code, told = esper("trace", "assert", tmp_path, "nothing")
    assert (code, len(told.splitlines())) == (1, 1), "a name of a span made a line of its own"


def test_a_chain_of_ten_thousand_spans_is_shown_at_once(esper: Esper, tmp_path: Path) -> None:
    write(tmp_path, *(span("s", spanId=f"{n + 1:016x}", parentSpanId=f"{n:016x}" * (n > 0)) for n in range(10_000)))
    began = time.process_time()
    code, told = esper("trace", "show", tmp_path, TRACE)
    assert (code, len(told.splitlines())) == (0, 10_003)
    assert time.process_time() - began < 10, "each line took a time that grows with its depth"


def test_grep_finds_a_word_in_every_part_of_a_span(esper: Esper, incident: Path, tmp_path: Path) -> None:
    for word, where in (("CHECKSUM", "exception.exception.message"), ("fence-3", "exception.file"), ("decide", "name")):
        found = as_json(esper("trace", "grep", incident, word, "--json"))["matches"]
        assert where in [match["where"] for match in found], word
        assert {match["trace_id"] for match in found} == {TRACE}
    code, told = esper("trace", "grep", incident, "fence-3")
    assert code == 0
    assert f"{TRACE}  tolaria  checkpoint restore  exception.file=fence-3.ckpt" in told
    places = [match["where"] for match in as_json(esper("trace", "grep", incident, "checksum", "--json"))["matches"]]
    assert places == ["exception.exception.message"], "the span above, the status or the stacktrace repeats it"
    write(tmp_path, span("long", **failed("E", "x" * 2000 + "needle" + "y" * 2000)))
    assert re.search(r"=\.\.\.x{100,400}needley{100,400}\.\.\.\n$", esper("trace", "grep", tmp_path, "Needle")[1])
    assert esper("trace", "grep", incident, "nowhere") == (0, "no span has 'nowhere'\n")


def test_an_export_is_valid_otlp_and_has_every_span(esper: Esper, incident: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    assert esper("trace", "export", incident, TRACE, "--format", "otlp", "--out", out)[0] == 0
    read = json_format.Parse(out.read_text(), TracesData())  # an unknown field or a wrong type raises
    spans = [span for group in read.resource_spans for scope in group.scope_spans for span in scope.spans]
    assert len(spans) == 15
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano for span in spans)
    (open_span,) = (span for span in spans if any(one.key == "esper.never_ended" for one in span.attributes))
    assert open_span.name == "tamiyo decide"
    code, told = esper("trace", "export", incident, TRACE, "--format", "otlp")
    assert code == 0
    assert json.loads(told) == json.loads(out.read_text())
    code, told = esper("trace", "export", incident, TRACE, "--format", "otlp", "--out", tmp_path / "no" / "x")
    assert code == 2
    assert "--out" in told


def test_an_export_is_valid_otlp_whatever_the_log_of_severe_events_has(esper: Esper, incident: Path) -> None:
    log = incident / "telemetry" / "severe-events.jsonl"
    told = json.loads(log.read_text()) | {"time": "9999-12-31T23:59:59", "fields": {"\ud800": ["\ud800x", 10**30]}}
    log.write_text(json.dumps(told) + "\n" + json.dumps(told | {"time": "0001-01-01T00:00:00"}) + "\n")
    read = json_format.Parse(esper("trace", "export", incident, TRACE, "--format", "otlp")[1], TracesData())
    spans = [span for group in read.resource_spans for scope in group.scope_spans for span in scope.spans]
    assert [len(span.events) for span in spans if span.name == "tamiyo decide"] == [2]


def test_a_perfetto_export_has_nested_slices_and_flows_between_roles(esper: Esper, incident: Path) -> None:
    found = as_json(esper("trace", "export", incident, TRACE, "--format", "perfetto"))["traceEvents"]
    roles = {event["args"]["name"]: event["pid"] for event in found if event["ph"] == "M"}
    slices = [event for event in found if event["ph"] in "XB"]
    assert set(roles) == {"conductor", "tolaria", "tamiyo"}
    assert len(slices) == 15
    assert [event["name"] for event in slices if event["ph"] == "B"] == ["tamiyo decide"]
    for one in slices:
        for other in slices:
            same = (one["pid"], one["tid"]) == (other["pid"], other["tid"]) and one is not other
            if same and one["ts"] <= other["ts"] < one["ts"] + one["dur"]:
                assert other["ts"] + other["dur"] <= one["ts"] + one["dur"]
    starts, ends = ([event for event in found if event["ph"] == phase] for phase in "sf")
    assert [event["id"] for event in starts] == [event["id"] for event in ends]
    assert len(starts) == 14
    assert {event["pid"] for event in starts} == {roles["conductor"]}


def test_assert_ends_with_1_unless_a_trace_has_every_path(esper: Esper, incident: Path) -> None:
    restore = "esper round > checkpoint restore"
    code, told = esper("trace", "assert", incident, restore, "--error", "CheckpointCorrupt", "--role", "tolaria")
    assert (code, told) == (0, f"found in 1 trace: {TRACE}\n")
    code, told = esper("trace", "assert", incident, restore, "--error", "StoreCorrupt")
    assert code == 1
    assert "not found: 2 spans are at esper round; in them no span meets checkpoint restore!StoreCorrupt" in told
    assert esper("trace", "assert", incident, "esper round >> esper step", "--count", 12)[0] == 0
    assert esper("trace", "assert", incident, "esper round >> esper step", "--count", 11)[0] == 1
    assert esper("trace", "assert", incident, "tamiyo decide[ended=false]", "--event", "policy_timeout")[0] == 0
    assert as_json(esper("trace", "assert", incident, restore, "--json"))["trace_ids"] == [TRACE]
    code, told = esper("trace", "assert", incident, "esper round >")
    assert code == 2
    assert "a name is expected at the end" in told


def test_events_are_shown_with_their_trace_ids_and_take_filters(esper: Esper, incident: Path) -> None:
    code, told = esper("events", incident)
    assert (code, told) == (0, "2023-11-14 22:13:20 ERROR    policy_timeout  tamiyo  trace a1a1a1a1  elapsed_s=5.5\n")
    for words, number in (
        (["--level", "critical"], 0),
        (["--level", "warning"], 1),
        (["--name", "policy_timeout"], 1),
        (["--name", "other_cpu"], 0),
        (["--since", "1h"], 0),
    ):
        assert len(as_json(esper("events", incident, *words, "--json"))["events"]) == number, words
    assert as_json(esper("events", incident, "--json"))["events"][0]["trace_id"] == TRACE
    assert esper("events", incident, "--level", "critical")[1] == "0 of 1 severe events are CRITICAL or higher\n"
    code, told = esper("events", incident, "--level", "fatal")
    assert code == 2
    assert "WARNING, ERROR and CRITICAL" in told
