"""Journals the deaths of processes that were restarted, counts them, and journals the seconds of each restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from esper.archive.journal import Journal, RecordKind
from esper.archive.recovery_record import Lost, Recovery
from esper.errors import all_notes
from esper.flow.crew import Crew
from esper.telemetry.events import Severity, severe
from esper.telemetry.metric_table import PHASES
from esper.telemetry.metrics import count, observe


@dataclass
class DeathLog:
    """Deaths and restarts since this process began or resumed the run."""

    crew: Crew
    journal: Journal
    recoveries: list[Recovery] = field(default_factory=list)
    restarts: int = 0
    """Number of processes that were restarted."""
    _noted: tuple[Lost, Recovery] | None = None
    """Most recent recovery of the whole run that is not journaled yet."""
    _stepless: tuple[int, float] | None = None
    """A recovery of the whole run after which no step has ended yet: its index in `recoveries`, and the Unix time at
    which it ended. None: every recovery was followed by a step."""

    def note(self, lost: Lost, recovery: Recovery) -> None:
        """Store a recovery of the whole run, which may have been interrupted. The next `tell` journals it."""
        self._noted = lost, recovery

    def tell(self) -> None:
        """Journal the deaths and restarts since the last call."""
        for death in self.crew.died_starting():
            self.restarts += 1
            told = {"actor": death.actor, "error": type(death).__name__, "detail": str(death)}
            self.journal.write(RecordKind.DIED_STARTING, **told, notes=all_notes(death))
            severe("actor_died_starting", Severity.ERROR, **told)
            count("esper.actor.restarts", role=death.role)
        noted, self._noted = self._noted, None
        for lost, recovery in (*self.crew.replaced(), *([noted] if noted is not None else [])):
            self.recoveries.append(recovery)
            self.restarts += len(lost.roles)
            self.journal.write(RecordKind.ACTOR_RESTARTED, recovery)
            for phase in PHASES:
                if (seconds := getattr(recovery, f"{phase}_s")) is not None:
                    observe("esper.recovery.duration", seconds, phase=phase)
            for name, role in lost.roles.items():
                severe("actor_restarted", Severity.ERROR, actor=name, error=recovery.error, fence=recovery.fence)
                count("esper.actor.restarts", role=role)

    def await_first_step(self, over_at: float) -> None:
        """Record that no step has ended yet since the last journaled recovery. The recovery ended at `over_at` (Unix
        time).
        """
        self._stepless = len(self.recoveries) - 1, over_at

    def time_first_step(self, first_step_at: Callable[[], float | None]) -> None:
        """If the first step after the last recovery has ended, journal the recovery again, with the seconds until the
        end of that step.

        Args:
            first_step_at: Returns the Unix time at which the trainer's first step ended. It returns None as long as no
                step has ended, and is called only until the time is known.
        """
        if self._stepless is not None and (at := first_step_at()) is not None:
            place, over_at = self._stepless
            done = self.recoveries[place].model_copy(update={"first_step_s": max(0.0, at - over_at)})
            self.recoveries[place], self._stepless = done, None
            self.journal.write(RecordKind.RECOVERED, done)
            observe("esper.recovery.duration", max(0.0, at - over_at), phase="first_step")
