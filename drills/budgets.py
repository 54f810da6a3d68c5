"""Budgets of a drill: the most that a recovery, the work done again, or the memory may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from drills.drill import Finding
from drills.observed import Observed
from esper.archive.recovery_record import Recovery

MIB = 2**20


@dataclass(frozen=True)
class Budget:
    """One budget beside what was measured."""

    name: str
    """A field of `Within`."""
    limit: float
    measured: float | None
    """The largest measured value. None: nothing was measured, so the budget is not met."""

    @property
    def met(self) -> bool:
        """Whether the value was measured, and is within the limit."""
        return self.measured is not None and self.measured <= self.limit

    def __str__(self) -> str:
        found = "not measured" if self.measured is None else f"{round(self.measured, 3):.12g}"
        return f"{found} of {self.limit:.12g}"


@dataclass(frozen=True)
class Within:
    """An expectation: each budget that is given was measured and not exceeded. None: there is no such budget.

    The seconds are of phases of recoveries from deaths. The slowest of all recoveries counts. Seconds also grow on a
    busy machine, so give minutes, or rather give a budget of work: `steps_redone` or `rounds_redone`.
    """

    detect_s: float | None = None
    """From the death until the run noticed it."""
    decide_s: float | None = None
    """Until a restart was allowed."""
    stop_s: float | None = None
    """Until the new generation was in the journal."""
    restore_s: float | None = None
    """Until all new actors were up and every part of the run was restored."""
    first_good_step_s: float | None = None
    """Until the end of the first step after the restore."""
    steps_redone: int | None = None
    """Optimizer steps that were done more than once."""
    rounds_redone: int | None = None
    """Rounds that had ended and were done again."""
    peak_memory_bytes: int | None = None
    """Largest private resident memory of this process and all its descendants."""

    def budgets(self, found: Observed) -> tuple[Budget, ...]:
        """Return each given budget with what was measured."""
        limits = {one.name: getattr(self, one.name) for one in fields(self)}
        return tuple(Budget(name, limit, MEASURED[name](found)) for name, limit in limits.items() if limit is not None)

    def __call__(self, found: Observed) -> Finding:
        """Compare each budget with what was measured."""
        budgets = self.budgets(found)
        limits = ", ".join(f"{one.name} {one.limit:.12g}" for one in budgets)
        told = ", ".join(f"{one.name} {one}" for one in budgets)
        return Finding(f"at most {limits or 'nothing'}", told or "none", all(one.met for one in budgets))


EACH_PHASE = Within(detect_s=300.0, decide_s=300.0, stop_s=300.0, restore_s=600.0, first_good_step_s=300.0)
"""Minutes for each phase of a recovery. A machine that is merely busy takes seconds."""


def _slowest(phase: Callable[[Recovery], float | None]) -> Callable[[Observed], float | None]:
    """Return a function that finds the longest time of a phase among all recoveries. None: no recovery has it."""

    def measure(found: Observed) -> float | None:
        return max((seconds for one in found.recoveries if (seconds := phase(one)) is not None), default=None)

    return measure


def _restore_s(one: Recovery) -> float | None:
    """Return the seconds until actors were up and all was restored. None: another death interrupted the recovery, or
    the actor was replaced alone.
    """
    return one.start_s + one.restore_s if one.start_s is not None and one.restore_s is not None else None


MEASURED: dict[str, Callable[[Observed], float | None]] = {
    "detect_s": _slowest(lambda one: one.detect_s),
    "decide_s": _slowest(lambda one: one.decide_s),
    "stop_s": _slowest(lambda one: one.stop_s),
    "restore_s": _slowest(_restore_s),
    "first_good_step_s": _slowest(lambda one: one.first_step_s),
    "steps_redone": lambda found: found.steps_redone,
    "rounds_redone": lambda found: found.rounds_redone,
    "peak_memory_bytes": lambda found: found.peak_memory_bytes,
}
"""How each budget is measured."""


def budgets_of(follows: Sequence[object], found: Observed) -> tuple[Budget, ...]:
    """Return the budgets of a drill's expectations, each with what was measured."""
    return tuple(budget for one in follows if isinstance(one, Within) for budget in one.budgets(found))
