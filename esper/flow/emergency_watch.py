"""Reads emergency signals for the line: journals each signal first, then acknowledges it to the queue."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from esper.archive.journal import Journal, RecordKind
from esper.errors import ActorError, EmergencyStop
from esper.flow.position import Position
from esper.flow.progress import Progress
from esper.leyline.ports import Inbox
from esper.leyline.signals import EmergencySignal, Level
from esper.telemetry.events import Severity, severe

SIGNALS_AT_A_FENCE = 4096
"""Largest number of signals that are read at one fence, so that a queue that fills faster than it is read cannot stop
the run.
"""


@dataclass
class SignalWatch:
    """Reads the queue of one run, and sets the run's emergency level at each fence."""

    inbox: Inbox
    journal: Journal
    at: Position
    progress: Progress

    def hear(self, fence: int, step: int) -> None:
        """Read the signals that wait at a fence, and set the emergency level of that fence.

        Args:
            step: The optimizer step of the fence.

        Raises:
            EmergencyStop: one of the signals is a HALT.
        """
        halt = self._take(fence, SIGNALS_AT_A_FENCE)
        if halt is not None:
            raise EmergencyStop(halt.reason, halt.signal_id, step)
        self._set_level(fence)

    def hear_out(self) -> None:
        """Close the queue and journal every signal that it holds. Call it last, before the run ends.

        A HALT among them comes too late to stop anything; the journal has it.
        """
        self.inbox.close()
        self._take(self._next_fence, math.inf)

    @contextmanager
    def explaining_halts(self) -> Iterator[None]:
        """Raise a trainer's `EmergencyStop` again, with the id and the reason of the signal: the trainer reads only the
        level.
        """
        try:
            yield
        except EmergencyStop as stop:
            halt = self._why(stop) if not stop.signal_id else None
            if halt is None:
                raise
            raise EmergencyStop(halt.reason, halt.signal_id, stop.step) from stop

    def _why(self, stop: EmergencyStop) -> EmergencySignal | None:
        try:
            return self._take(self._next_fence, SIGNALS_AT_A_FENCE)
        except ActorError as gone:  # the run stops anyway; only the reason is missing
            stop.add_note(f"the reason could not be read from the emergency queue: {gone}")
            return None

    @property
    def _next_fence(self) -> int:
        """The fence that is held next. A signal that is read between two fences has its effect there."""
        return self.at.fence + 1 if self.at.fence is not None else 0

    def _take(self, fence: int, most: float) -> EmergencySignal | None:
        """Journal the signals that wait, batch by batch; acknowledge each batch when its records are durable.

        Args:
            fence: The fence at which the signals have their effect.
            most: Number of signals after which the rest waits for the next call.

        Returns:
            The first HALT among them, or None.
        """
        heard, halts = 0, list[EmergencySignal]()
        while heard < most and (signals := self.inbox.pending()):
            records = [(RecordKind.SIGNAL, {**signal.model_dump(mode="json"), "fence": fence}) for signal in signals]
            self.journal.write_many([*records])
            self.inbox.acknowledge([signal.signal_id for signal in signals])
            for signal in signals:
                self.at.levels.add(fence, signal.level)
            halts += [signal for signal in signals if signal.level is Level.HALT]
            heard += len(signals)
        return halts[0] if halts else None

    def _set_level(self, fence: int) -> None:
        """Set the emergency level of a fence. Journal and report a change."""
        before, after = self.at.level, self.at.levels.at(fence)
        if before is after:
            return
        self.at.level = after
        names = {"before": _name(before), "after": _name(after), "fence": fence}
        self.journal.write(RecordKind.LEVEL_CHANGED, **names)
        severe("emergency_level_changed", Severity.WARNING, **names)
        self.progress.found(f"fence {fence}: the emergency level changes from {_name(before)} to {_name(after)}")


def _name(level: Level | None) -> str:
    return level.name if level is not None else "none"
