"""The outcome of drills as JSON, and as JUnit XML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree

from drills.budgets import Budget
from drills.drill import Drill, Finding
from drills.observed import Rollback
from esper.archive.recovery_record import Recovery
from esper.archive.summary import Summary

WHY_NO_PHASE = {
    "detect": "Ray has no record of the time of the death",
    "decide": "the recovery was interrupted",
    "stop": "the actor was replaced alone, or another death interrupted the recovery",
    "restore": "the actor was replaced alone, or another death interrupted the recovery",
    "first_good_step": "the actor was replaced alone, or no step followed before another restore",
}
WHY_NO_WORK = {"rounds_redone": "no run wrote a journal", "peak_memory_bytes": "the memory was not measured"}


COMPARED = ("task", "rounds", "steps", "wall_s", "test_loss", "weights_sha256", "twin_weights_sha256")
"""Values of the undisturbed run in the report."""


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
    """Seconds of each phase of the first recovery. `recoveries` has all."""
    steps_redone: int | None
    signals_lost: int | None
    signals_duplicated: int | None
    same_bits: bool | None
    leaks: tuple[str, ...]
    trace_id: str | None
    wall_s: float
    recoveries: tuple[Recovery, ...] = ()
    peak_memory_bytes: int | None = None
    """Largest private resident memory of this process and all its descendants during the drill."""
    counters: Mapping[str, int] | None = None
    """Counters that are not 0, summed over their labels, all processes, the run and its resumes."""
    budgets: tuple[Budget, ...] = ()
    rollbacks: tuple[Rollback, ...] = ()
    ended: Mapping[str, Any] | None = None
    """The record of the end of the run. None: it did not reach its end."""
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

    @property
    def not_measured(self) -> dict[str, str]:
        """Why a value of the report is None, by the name of the value."""
        if not self.spans:
            none = (
                "phases_s",
                "phases_of",
                "steps_redone",
                "signals_lost",
                "signals_duplicated",
                "same_bits",
                "trace_id",
            )
            more = ("weights_sha256", "peak_memory_bytes", "counters")
            return dict.fromkeys((*none, *more), "the drill did not run")
        no_end = "the run did not reach its end, as the drill expects" if self.passed else "no run reached its end"
        unknown = "a fault broke a round off, and no record names the step"
        reasons = {
            "error": (self.error, "no run failed"),
            "phases_s": (self.recoveries or None, "no process was restarted within a run"),
            "phases_of": (self.recoveries or None, "no process was restarted within a run"),
            "steps_redone": (self.steps_redone, unknown if self.same_bits is not None else no_end),
            "signals_lost": (self.signals_lost, "the drill sent no signal"),
            "signals_duplicated": (self.signals_duplicated, "the drill sent no signal"),
            "same_bits": (self.same_bits, no_end),
            "weights_sha256": (self.ended, "the drill has several runs" if self.same_bits is not None else no_end),
            "trace_id": (self.trace_id, "the drill has no severe event and no failure with a trace"),
        }
        if self.counters is None:
            several = self.ended is None and self.same_bits is not None
            reasons["counters"] = (None, "the drill has several runs" if several else "no run recorded its end")
        told = {name: why for name, (value, why) in reasons.items() if value is None}
        told |= {f"budgets.{one.name}": self._why_not(one, told) for one in self.budgets if one.measured is None}
        return told | {
            f"phases_s.{name}": WHY_NO_PHASE[name]
            for name, value in self.phases_s.items()
            if self.recoveries and value is None
        }

    def _why_not(self, budget: Budget, told: Mapping[str, str]) -> str:
        """Return why a budget was not measured. `told` has the reasons for the values of the report."""
        if budget.name == "steps_redone":
            return told["steps_redone"]
        if budget.name in WHY_NO_WORK:
            return WHY_NO_WORK[budget.name]
        return told["phases_s"] if "phases_s" in told else WHY_NO_PHASE[budget.name.removesuffix("_s")]

    def measured(self) -> dict[str, str]:
        """Return what was measured, in words, by name."""
        facts: dict[str, object] = {
            "fault fired": self.fault_fired,
            "error": self.error,
            "same bits": {True: "yes", False: "no", None: None}[self.same_bits],
            **self._phases(),
            "recoveries": len(self.recoveries) or None,
            **{f"rollback {one.tier} (s)": f"{one.seconds:.3f}" for one in self.rollbacks},
            "steps redone": self.steps_redone,
            "signals lost": self.signals_lost,
            "signals duplicated": self.signals_duplicated,
            "left behind": len(self.leaks),
            "peak memory (MiB)": self.peak_memory_bytes and self.peak_memory_bytes >> 20,
            **{f"budget {one.name}": str(one) for one in self.budgets},
            "counters": ", ".join(f"{name} {number}" for name, number in (self.counters or {}).items()) or None,
            "trace": self.trace_id,
        }
        return {name: str(value) for name, value in facts.items() if value is not None}

    def _phases(self) -> dict[str, str]:
        """Return the seconds of each phase that was timed, of all recoveries in order."""
        each = [phases([one]) for one in self.recoveries]
        return {
            f"{name.replace('_', ' ')} (s)": ", ".join(_rounded(one[name]) or "not timed" for one in each)
            for name in self.phases_s
            if any(one[name] is not None for one in each)
        }

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
            "phases_of": f"recovery 1 of {len(self.recoveries)}" if self.recoveries else None,
            "recoveries": [
                {"actors": one.actors, "alone": one.alone, "from_memory": one.from_memory, "phases_s": phases([one])}
                for one in self.recoveries
            ],
            "rollbacks": [asdict(one) for one in self.rollbacks],
            "steps_redone": self.steps_redone,
            "signals_lost": self.signals_lost,
            "signals_duplicated": self.signals_duplicated,
            "same_bits": self.same_bits,
            "weights_sha256": self.ended["weights_sha256"] if self.ended is not None else None,
            "leaks": list(self.leaks),
            "peak_memory_bytes": self.peak_memory_bytes,
            "counters": dict(self.counters) if self.counters is not None else None,
            "budgets": [{**asdict(one), "met": one.met} for one in self.budgets],
            "trace_id": self.trace_id,
            "wall_s": self.wall_s,
            "not_measured": self.not_measured,
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


def as_json(outcomes: Sequence[Outcome], seed: int, undisturbed: Summary | None = None) -> dict[str, Any]:
    """Return the report as JSON values.

    Args:
        undisturbed: The run without faults with which the drills are compared. None: it was not made.
    """
    passed = sum(outcome.passed for outcome in outcomes)
    return {
        "passed": passed,
        "failed": len(outcomes) - passed,
        "seed": seed,
        "wall_s": sum(outcome.wall_s for outcome in outcomes),
        "undisturbed": {name: getattr(undisturbed, name) for name in COMPARED} if undisturbed is not None else None,
        "drills": [outcome.as_json() for outcome in outcomes],
    }


def as_junit(outcomes: Sequence[Outcome], seed: int, undisturbed: Summary | None = None) -> str:
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
    if undisturbed is not None:
        for name in COMPARED:
            value = str(getattr(undisturbed, name))
            ElementTree.SubElement(properties, "property", name=f"undisturbed.{name}", value=value)
    for outcome in outcomes:
        case = ElementTree.SubElement(
            suite, "testcase", classname="esper.drills", name=outcome.drill.name, time=f"{outcome.wall_s:.3f}"
        )
        own = ElementTree.SubElement(case, "properties")
        for name, measured in outcome.measured().items():
            ElementTree.SubElement(own, "property", name=name, value=_printable(measured))
        if not outcome.passed:
            ElementTree.SubElement(case, "failure", message=_printable(outcome.why)).text = _printable(outcome.why)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def _rounded(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.3f}"


def _printable(text: str) -> str:
    """Return a text without the control characters that XML forbids."""
    return "".join(one if one in "\t\n" or ord(one) >= 0x20 else ascii(one)[1:-1] for one in text)
