"""Drills of messages, files and collectors fail where the code that must answer was broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from drills.choosing import chosen
from drills.drill_runner import DrillRunner
from drills.task_under_drill import TaskUnderDrill
from esper.archive.journal import Journal
from esper.errors import StoreWriteFailed
from esper.leyline.evidence import Marks, PerformanceStatus
from esper.telemetry.metrics import Counters


@pytest.fixture(scope="module")
def runner() -> Iterator[DrillRunner]:
    with DrillRunner(TaskUnderDrill.tiny(seed=0)) as runner:
        yield runner


def nothing(*_: object) -> None:
    """A check that checks nothing."""


def unmarked(command: object, fallbacks: tuple[str, ...] | None) -> Marks:
    del command
    return Marks(command_fallbacks=(), evidence_fallbacks=fallbacks)


def swallowing(write: Callable[..., Any]) -> Callable[..., Any]:
    def careless(self: Journal, *records: Any, **fields: Any) -> Any:
        try:
            return write(self, *records, **fields)
        except StoreWriteFailed:
            return None

    return careless


def less_one(add: Callable[..., None]) -> Callable[..., None]:
    """At most one span of each loss is not counted."""

    def careless(self: Counters, name: str, amount: int = 1, **labels: Any) -> None:
        add(self, name, amount - (name == "esper.spans.lost" and amount > 1), **labels)

    return careless


def without(name: str) -> Callable[..., None]:
    """One counter is never counted."""
    add = Counters.add

    def careless(self: Counters, one: str, amount: int = 1, **labels: Any) -> None:
        add(self, one, amount * (one != name), **labels)

    return careless


ADMISSION, EVIDENCE = "esper.kasmina.registry.admission", "esper.kasmina.registry.gate_evidence"
PLANTED = {
    "command-replayed": ("esper.flow.growth.check_answered", nothing),
    "command-forged": (f"{ADMISSION}._authentic", nothing),
    "command-altered": (f"{ADMISSION}._authentic", nothing),
    "no-command-id": (f"{ADMISSION}.check_rule", nothing),
    "no-mesh": (f"{ADMISSION}.check_rule", nothing),
    "mesh-incomplete": ("esper.kasmina.judging.gates.missing_layers", lambda _: ()),
    "fallback-marked": (f"{EVIDENCE}._marks", unmarked),
    "fallback-status": (f"{EVIDENCE}.performance_status", lambda *_: PerformanceStatus.NOMINAL),
    "disk-full-journal": ("esper.archive.journal.Journal.write_many", swallowing(Journal.write_many)),
    "checkpoint-flipped": ("esper.durable.streams._verify", nothing),
    "queue-cut": ("esper.emergency.queue.EmergencyQueue._tell_damage", nothing),
    "disk-refuses": ("esper.emergency.queue.counted_refusal", nothing),
    "reports-damaged": ("esper.telemetry.metrics.Counters.add", without("esper.load.errors")),
    "collector-refuses": ("esper.telemetry.metrics.Counters.add", less_one(Counters.add)),
}
"""Drill -> the function that is replaced, and what replaces it."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "command-replayed" else pytest.mark.torture)
        for name in PLANTED
    ],
)
def test_a_drill_finds_the_bug_that_was_planted(
    runner: DrillRunner, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    runner.undisturbed()
    (drill,) = chosen([name], every=False, file=None)
    place, instead = PLANTED[name]
    monkeypatch.setattr(place, instead)
    outcome = runner.run_one(drill)
    assert not outcome.passed
    assert "a drill that can be made" not in outcome.why
    assert "faults fired" not in outcome.why
