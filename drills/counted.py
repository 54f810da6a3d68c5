"""Expectations about the counters of a run, which its journal has at each end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drills.drill import Expectation, Finding
from drills.observed import Observed
from esper.telemetry.metrics import known


@dataclass(frozen=True)
class AtLeast:
    """A number that a counter may exceed."""

    number: int

    def __str__(self) -> str:
        return f"at least {self.number}"


def counters(wanted: Mapping[str, int | AtLeast]) -> Expectation:
    """Expect these counters, summed over their labels, over all processes, and over the run and its resumes.

    Counters that are not named may have any value. A run that is killed with its driver leaves no counters. If no run
    left counters, the expectation is not met, also for the number 0.

    Args:
        wanted: Name in `esper.telemetry.metric_table.COUNTERS` -> the exact number, or `AtLeast`.

    Raises:
        ValueError: a name is not in the table.
    """
    for name in wanted:
        known(name)

    def judge(found: Observed) -> Finding:
        if found.counters is None:
            return Finding(f"counters {_listed(wanted)}", "counters not measured", False)
        told = {name: found.counters[name] for name in wanted}
        met = all(_meets(told[name], number) for name, number in wanted.items())
        return Finding(f"counters {_listed(wanted)}", f"counters {_listed(told)}", met)

    return judge


def _meets(counted: int, wanted: int | AtLeast) -> bool:
    return counted >= wanted.number if isinstance(wanted, AtLeast) else counted == wanted


def _listed(numbers: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(numbers.items())) or "none"
