"""Every declared event and counter is emitted somewhere in the source, and every emitted one is declared. By `ast`."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from emitting import SOURCES, called, words

from esper.telemetry import events, metric_table, metrics

EVENTS, COUNTERS = {"severe": 0, "reported": 1}, {"count": 0, "add": 0}
HISTOGRAMS, GAUGES = {"observe": 0, "observe_all": 0, "timed": 0}, {"gauge": 0}
"""By function: which of its arguments is the name."""


def emitted(calls: Mapping[str, int]) -> set[str]:
    """The names in all calls of these functions: words, or variables that are given words."""
    found: set[str] = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                if (name := called(call)) in calls and len(call.args) > calls[name]:
                    found |= set(words(call.args[calls[name]], function))
    return found


def test_every_severe_event_that_is_declared_is_emitted_and_the_reverse() -> None:
    assert emitted(EVENTS) == events.NAMES


def test_every_counter_that_is_declared_is_counted_and_the_reverse() -> None:
    assert {name for name in emitted(COUNTERS) if name.startswith("esper.")} == metrics.NAMES


def test_every_histogram_and_gauge_that_is_declared_is_measured_and_the_reverse() -> None:
    assert {name for name in emitted(HISTOGRAMS) if name.startswith("esper.")} == metric_table.HISTOGRAMS.keys()
    assert emitted(GAUGES) == metric_table.GAUGES.keys() - {"esper.actor.up"}
