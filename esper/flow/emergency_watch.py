"""Reads emergency signals from the queue. Each signal is first journaled, then acknowledged to the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from esper.archive.journal import Journal, RecordKind
from esper.errors import ActorError, EmergencyStop
from esper.flow.position import Position
from esper.flow.progress import Progress
from esper.leyline.ports import Inbox
from esper.leyline.signals import EmergencySignal, Level
from esper.telemetry.context import continue_from, span
from esper.telemetry.events import Severity, reported, severe

SIGNALS_AT_A_FENCE = 4096
"""Largest number of signals that are read at one fence. Without this limit, a publisher that never stops would keep
the run at the fence.
"""


@dataclass
class SignalWatch:
    """Reads the signals of one run, and sets the emergency level of each fence."""

    inbox: Inbox
    journal: Journal
    at: Position
    progress: Progress
    halt: EmergencySignal | None = None
    """The first HALT that was read."""

    def hear(self, fence: int, step: int) -> None:
        """Read the signals in the queue, and set the emergency level of this fence.

        Args:
            step: The optimizer step of the fence.

        Raises:
            EmergencyStop: one of the signals is a HALT.
        """
        halt = self._read(fence)
        if halt is not None:
            raise EmergencyStop(halt.reason, halt.signal_id, step)
        self._set_level(fence)

    def hear_out(self) -> None:
        """Close the queue and journal the signals that are in it. Call it last, before the run ends.

        A HALT is not removed from the queue here, because the run ends anyway. It stays in the queue and stops the next
        resume. The signals after it stay, too.
        """
        self.inbox.close()
        while (signals := self.inbox.pending()) and all(signal.level < Level.HALT for signal in signals):
            self._take(self._next_fence, signals)

    @contextmanager
    def reporting_halts(self, above: Callable[[], str]) -> Iterator[None]:
        """Report each `EmergencyStop` of the block as a severe event in the trace of `above()`, and raise it.

        An `EmergencyStop` of a trainer, which knows only the level, is replaced by one with the id and the reason of
        the signal. The new error has no cause: the stop is orderly, so the place in the trainer's code explains
        nothing.

        Args:
            above: Function that returns the traceparent of the work that was stopped. "": there is no trace.
        """
        try:
            yield
        except EmergencyStop as stop:
            with continue_from(above()), span("emergency halt", role="conductor", step=stop.step):
                told = stop if stop.signal_id else self._explained(stop.step)
                names: dict[str, object] = {"signal_id": told.signal_id, "reason": told.reason, "step": told.step}
                if self.halt is not None and self.halt.signal_id == told.signal_id:
                    names |= {"origin": self.halt.origin, "issued_at": self.halt.issued_at.isoformat()}
                    names |= {"attributes": dict(self.halt.attributes)} if self.halt.attributes else {}
                reported(told, "emergency_halt", Severity.CRITICAL, **names)
            if told is stop:
                raise
            raise told from None

    def _explained(self, step: int) -> EmergencyStop:
        try:
            halt = self._read(self._next_fence)
        except ActorError as gone:  # the run stops anyway; only the reason is missing
            stop = EmergencyStop("", "", step)
            stop.add_note(f"the reason could not be read from the emergency queue: {gone}")
            return stop
        return EmergencyStop(halt.reason, halt.signal_id, step) if halt is not None else EmergencyStop("", "", step)

    @property
    def _next_fence(self) -> int:
        """The next fence. A signal that is read between two fences is recorded with this fence."""
        return self.at.fence + 1 if self.at.fence is not None else 0

    def _read(self, fence: int) -> EmergencySignal | None:
        """Read the waiting signals, and stop after the batch in which `SIGNALS_AT_A_FENCE` is reached. Return the first
        HALT, or None.

        `fence`: the first fence for which the level of the signals counts.
        """
        read, halts = 0, list[EmergencySignal]()
        while read < SIGNALS_AT_A_FENCE and (signals := self.inbox.pending()):
            self._take(fence, signals)
            halts += [signal for signal in signals if signal.level is Level.HALT]
            read += len(signals)
        self.halt = self.halt or (halts[0] if halts else None)
        return halts[0] if halts else None

    def _take(self, fence: int, signals: Sequence[EmergencySignal]) -> None:
        """Journal signals. Acknowledge them when their records are durable."""
        records = [(RecordKind.SIGNAL, {**signal.model_dump(mode="json"), "fence": fence}) for signal in signals]
        ids, level = [signal.signal_id for signal in signals], max(signal.level for signal in signals).name
        senders = [signal.traceparent for signal in signals]
        with span(
            "process esper.emergency", role="conductor", links_to=senders, fence=fence, signal_ids=ids, level=level
        ):
            self.journal.write_many([*records])
            self.inbox.acknowledge(ids)
            for signal in signals:
                self.at.levels.add(fence, signal.level)

    def _set_level(self, fence: int) -> None:
        """Set the emergency level of a fence. If it changed, journal and report that."""
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
