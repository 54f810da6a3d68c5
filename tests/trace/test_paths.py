"""Paths of spans: the expression, what it finds, and what is told if there is no such path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from span_lines import TRACE, failed, span, write

from esper.errors import ConfigError
from esper.testing import telling
from esper.trace.path_expression import Step, parse
from esper.trace.paths import find

OTHER = "b2" * 16


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two rounds: in the first a gate fails below the conductor's call, the second has two healthy gates."""
    event = {"name": "gate_failure", "timeUnixNano": "1", "attributes": []}
    number = {"key": "fence", "value": {"intValue": "3"}}
    write(
        tmp_path,
        span("r1", role="conductor", name="esper round", attributes=[number]),
        span("step", "r1", name="esper step"),
        span("judge", "r1", role="conductor"),
        span("gate", "judge", role="kasmina", name="gate evaluate") | failed("SeedBuildFailed"),
        span("open", "r1", end=None, role="tamiyo", name="tamiyo decide"),
        span("r2", traceId=OTHER, role="conductor", name="esper round"),
        span("g1", "r2", traceId=OTHER, role="kasmina", name="gate evaluate", events=[event]),
        span("g2", "r2", traceId=OTHER, role="kasmina", name="gate evaluate"),
    )
    log = {"time": "2023-11-14T22:13:20+00:00", "name": "policy_timeout", "severity": "ERROR", "trace_id": TRACE}
    log |= {"span_id": "6f70656e00000000", "role": "tamiyo", "fields": {}}
    (tmp_path / "telemetry" / "severe-events.jsonl").write_text(json.dumps(log) + "\n")
    return tmp_path


def test_an_expression_is_names_with_arrows_and_conditions() -> None:
    assert parse(' esper round >> gate evaluate[role=kasmina][why="a \\" ]"]!@gate_failure>*!Lost') == (
        Step("esper round"),
        Step("gate evaluate", True, (("role", "kasmina"), ("why", 'a " ]')), "", ("gate_failure",)),
        Step("*", error="Lost"),
    )
    for wrong in ("", " ", ">", "a >", "a >>> b", "> a", "a[", "a[b]", "[b=c]", "!", "a]b", "a > [x=y]", 'a[b="c]'):
        with pytest.raises(ConfigError, check=telling("PATH", "docs/traces.md")):
            parse(wrong)


PATHS = {
    "esper round > esper step": [TRACE],
    "esper round >> gate evaluate": [TRACE, OTHER],
    "esper round > gate evaluate": [OTHER],
    "* > gate evaluate[role=kasmina]": [TRACE, OTHER],
    "esper round[fence=3] >> gate evaluate!": [TRACE],
    "gate evaluate!SeedBuildFailed": [TRACE],
    "gate evaluate[status=ok]": [OTHER],
    "gate evaluate@gate_failure": [OTHER],
    "tamiyo decide[ended=false]@policy_timeout": [TRACE],
}


@pytest.mark.parametrize("expression", PATHS)
def test_a_path_is_found_in_the_traces_that_have_it(run_dir: Path, expression: str) -> None:
    found = find(run_dir, expression)
    assert bool(found), found.reason
    assert sorted(found.trace_ids) == PATHS[expression]


MISSING = {
    "esper round > esper stop": "2 spans are at esper round; in them no span has the name esper stop; the nearest is",
    "esper rounds": "no span has the name esper rounds; the nearest is esper round",
    "esper round > esper step!": "in them no span meets esper step!; of this name are: esper step[role=tolaria]",
    "esper step > *": "in them no span has the name *; there is none",
}


@pytest.mark.parametrize("expression", MISSING)
def test_a_missing_path_is_told_with_what_is_there_instead(run_dir: Path, expression: str) -> None:
    found = find(run_dir, expression)
    assert not found
    assert MISSING[expression] in found.reason


def test_several_paths_have_to_be_in_one_trace(run_dir: Path) -> None:
    assert find(run_dir, "esper step", "gate evaluate!").trace_ids == [TRACE]
    assert (
        find(run_dir, "esper step", "gate evaluate@gate_failure").reason
        == "every path exists, but not all in one trace"
    )


def test_further_conditions_are_those_of_the_last_span(run_dir: Path) -> None:
    gate = "esper round >> gate evaluate"
    assert find(run_dir, gate, role="kasmina", event="gate_failure").trace_ids == [OTHER]
    assert find(run_dir, gate, error="SeedBuildFailed").trace_ids == [TRACE]
    assert not find(run_dir, gate, error="SeedBuildFailed", trace_id=OTHER)
    assert find(run_dir, gate, count=2).trace_ids == [OTHER]
    assert "1 spans in 1 traces and 2 spans in 1 traces, and 3 are required" in find(run_dir, gate, count=3).reason
    assert find(run_dir, "gate evaluate!Other", count=0)
    assert find(run_dir, gate, count=0).reason == "3 spans are at the end of such a path"
    with pytest.raises(ConfigError, check=telling("--trace", "no trace on disk")):
        find(run_dir, gate, trace_id="ff")
