"""The outcome of drills as JSON, and as JUnit XML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree

from drills.drill import Drill, Finding
from esper.archive.recovery_record import Recovery


@dataclass(frozen=True)
class Mark:
    """A moment on the time line of a drill."""

    at_s: float
    what: str


@dataclass(frozen=True)
class Span:
    """A stretch on the time line of a drill."""

    begin_s: float
    end_s: float
    what: str
    good: bool


@dataclass(frozen=True)
class Outcome:
    """The outcome of one drill. A value that was not measured is None."""

    drill: Drill
    findings: tuple[Finding, ...]
    error: str | None
    fault_fired: int
    phases_s: dict[str, float | None]
    steps_redone: int | None
    signals_lost: int | None
    signals_duplicated: int | None
    same_bits: bool | None
    leaks: tuple[str, ...]
    trace_id: str | None
    wall_s: float
    spans: tuple[Span, ...] = ()
    marks: tuple[Mark, ...] = ()
    notes: tuple[str, ...] = ()
    """Lines about the drill, such as its schedule."""

    @property
    def passed(self) -> bool:
        """Whether every expectation was met."""
        return all(finding.met for finding in self.findings)

    @property
    def why(self) -> str:
        """Each expectation that was not met, with what was found. "": the drill passed."""
        return "; ".join(f"expected {one.expected}; found {one.found}" for one in self.findings if not one.met)

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.drill.name,
            "number": self.drill.number,
            "what": self.drill.what,
            "place": self.drill.place,
            "passed": self.passed,
            "why": self.why,
            "fault_fired": self.fault_fired,
            "error": self.error,
            "phases_s": self.phases_s,
            "steps_redone": self.steps_redone,
            "signals_lost": self.signals_lost,
            "signals_duplicated": self.signals_duplicated,
            "same_bits": self.same_bits,
            "leaks": list(self.leaks),
            "trace_id": self.trace_id,
            "wall_s": self.wall_s,
            "notes": list(self.notes),
            "findings": [asdict(finding) for finding in self.findings],
        }


def phases(recoveries: Sequence[Recovery]) -> dict[str, float | None]:
    """Return the seconds of each phase of the first recovery. None: no recovery, or the phase was not timed."""
    if not recoveries:
        return dict.fromkeys(("detect", "decide", "stop", "restore", "first_good_step"))
    first = recoveries[0]
    parts = [part for part in (first.start_s, first.restore_s) if part is not None]
    return {
        "detect": first.detect_s,
        "decide": first.decide_s,
        "stop": first.stop_s,
        "restore": sum(parts) if parts else None,
        "first_good_step": first.first_step_s,
    }


def as_json(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """Return the report as JSON values."""
    passed = sum(outcome.passed for outcome in outcomes)
    return {
        "passed": passed,
        "failed": len(outcomes) - passed,
        "seed": seed,
        "wall_s": sum(outcome.wall_s for outcome in outcomes),
        "drills": [outcome.as_json() for outcome in outcomes],
    }


def as_junit(outcomes: Sequence[Outcome], seed: int) -> str:
    """Return the report as JUnit XML: a test case for each drill."""
    suite = ElementTree.Element(
        "testsuite",
        name="esper drills",
        tests=str(len(outcomes)),
        failures=str(sum(not outcome.passed for outcome in outcomes)),
        errors="0",
        skipped="0",
        time=f"{sum(outcome.wall_s for outcome in outcomes):.3f}",
    )
    properties = ElementTree.SubElement(suite, "properties")
    ElementTree.SubElement(properties, "property", name="seed", value=str(seed))
    for outcome in outcomes:
        case = ElementTree.SubElement(
            suite, "testcase", classname="esper.drills", name=outcome.drill.name, time=f"{outcome.wall_s:.3f}"
        )
        if not outcome.passed:
            ElementTree.SubElement(case, "failure", message=_printable(outcome.why)).text = _printable(outcome.why)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def _printable(text: str) -> str:
    """Return a text without the control characters that XML forbids."""
    return "".join(one if one in "\t\n" or ord(one) >= 0x20 else ascii(one)[1:-1] for one in text)
