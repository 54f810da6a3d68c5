"""`esper trace` and `esper events` on written folders: what a person and what a program reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from span_lines import TRACE, failed, span, write

from esper.cli.main import exit_code

OTHER = "b2" * 16
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
    steps = [span(f"s{number}", "round", 10 + number, 11 + number, name="esper step") for number in range(12)]
    write(
        tmp_path,
        span("round", end=2000, role="conductor", name="esper round", **error),
        *steps,
        span("restore", "round", 100, 1900, name="checkpoint restore", **error),
        span("policy", "round", 40, None, role="tamiyo", name="tamiyo decide"),
        span("next", traceId=OTHER, start=3000, end=3100, role="conductor", name="esper round"),
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
        "start": "2023-11-14T22:13:20+00:00",
        "duration_s": 2.0,
        "spans": 15,
        "errors": 2,
        "never_ended": 1,
    }
    for filtered, expected in (
        (["--errors"], [TRACE]),
        (["--slow", "0.05"], [TRACE, OTHER]),
        (["--slow", "2.5"], []),
        (["--since", "2023-11-14T22:13:22"], [OTHER]),
        (["--since", "5m"], []),
    ):
        found = as_json(esper("trace", "list", incident, *filtered, "--json"))["traces"]
        assert [trace["trace_id"] for trace in found] == expected, filtered
    assert second["errors"] == 0
    code, wrong = esper("trace", "list", incident, "--since", "yesterday")
    assert code == 2
    assert "--since" in wrong


def test_a_trace_is_a_tree_of_80_columns_whose_lines_begin_with_their_roles(esper: Esper, incident: Path) -> None:
    code, told = esper("trace", "show", incident, TRACE[:4])
    lines = told.splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 80
    assert all(line.split()[0] in ("conductor", "tolaria", "tamiyo") for line in lines[3:])
    assert re.search(r"tolaria +├ esper step +x12 \* +12.0 ms", told)
    assert re.search(r"tolaria +CheckpointCorrupt: the checksum is wrong +file=fence-3.ckpt", told)
    assert re.search(r"conductor +CheckpointCorrupt, from below", told)
    assert re.search(r"tamiyo +. tamiyo decide +never ended", told)
    assert re.search(r"tamiyo +22:13:20 policy_timeout ERROR +elapsed_s=5.5", told)


def test_the_critical_path_and_the_json_of_a_trace(esper: Esper, incident: Path) -> None:
    _, told = esper("trace", "show", incident, TRACE, "--critical")
    assert "checkpoint restore" in told
    assert "tamiyo decide" not in told
    found = as_json(esper("trace", "show", incident, TRACE, "--json"))
    assert [span["name"] for span in found["spans"] if span["critical"]].count("checkpoint restore") == 1
    restore = next(span for span in found["spans"] if span["name"] == "checkpoint restore")
    assert restore["error"] == {"class": "CheckpointCorrupt", "message": "the checksum is wrong", "began_here": True}
    assert [event["name"] for event in found["severe_events_without_span"]] == ["policy_timeout"]


def test_text_of_a_stranger_cannot_control_the_terminal(esper: Esper, tmp_path: Path) -> None:
    write(tmp_path, span("x", name="\x1b[2J[red]a\nb\ud800", **failed("E", "\x1b]0;title\x07", f="\x9b1m")))
    for words in (["list", tmp_path], ["show", tmp_path, TRACE, "--attrs"]):
        code, told = esper("trace", *words)
        assert code == 0
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", told)
        assert "[red" in told.replace(" ", "")
