"""Reads emergency signals for the line. Each signal is journaled first and then acknowledged to the queue."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from esper.archive.journal import Journal, RecordKind
from esper.errors import ActorError, EmergencyStop
from esper.flow.position import Position
from esper.leyline.ports import Inbox
from esper.leyline.signals import EmergencySignal, Level

SIGNALS_AT_A_FENCE = 4096
"""Largest number of signals that are read at one fence. Without this limit, a queue that fills faster than it is read
would stop the run.
"""


@dataclass
class SignalWatch:
    """Reads the queue of one run and raises the run's emergency level."""

    inbox: Inbox
    journal: Journal
    at: Position

    def hear(self, step: int) -> None:
        """Read the signals in the queue at a fence. `step`: the optimizer step of the fence.

        Raises:
            EmergencyStop: one of them is a HALT.
        """
        if (halt := self._take(SIGNALS_AT_A_FENCE)) is not None:
            raise EmergencyStop(halt.reason, halt.signal_id, step)

    def hear_out(self) -> None:
        """Close the queue and journal every signal in it. Call it last, before the run ends.

        A HALT in the queue is journaled, too; it comes too late to stop the run.
        """
        self.inbox.close()
        self._take(math.inf)

    @contextmanager
    def explaining_halts(self) -> Iterator[None]:
        """Raise a trainer's `EmergencyStop` again, with the id and the reason of the signal. The trainer does not know
        them, because it reads only the level.
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
            return self._take(SIGNALS_AT_A_FENCE)
        except ActorError as gone:  # the run stops anyway, without the reason
            stop.add_note(f"the reason could not be read from the emergency queue: {gone}")
            return None

    def _take(self, most: float) -> EmergencySignal | None:
        """Journal the signals in the queue, batch by batch. Acknowledge each batch when its records are durable.

        Args:
            most: Largest number of signals to read. The next call reads the rest.

        Returns:
            The first HALT among them, or None.
        """
        heard, halts = 0, list[EmergencySignal]()
        while heard < most and (signals := self.inbox.pending()):
            self.journal.write_many([(RecordKind.SIGNAL, signal) for signal in signals])
            self.inbox.acknowledge([signal.signal_id for signal in signals])
            self.at.level = max(self.at.level or Level.NOTICE, *(signal.level for signal in signals))
            halts += [signal for signal in signals if signal.level is Level.HALT]
            heard += len(signals)
        return halts[0] if halts else None
