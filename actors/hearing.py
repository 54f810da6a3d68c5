"""How a run hears of emergencies: the word that every process reads, and the queue that says why."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors import rooms
from actors.typed import EmergencyHandle
from esper.emergency.word import EmergencyWord
from esper.errors import ActorError, EmergencyStop
from esper.leyline.signals import EmergencySignal, Level

SHARED_MEMORY = Path("/dev/shm")


class Hearing:
    """What the conductor has heard from the emergency queue. A HALT explains the stop that follows it."""

    def __init__(self, desk: EmergencyHandle) -> None:
        self._desk = desk
        self._halt: EmergencySignal | None = None

    def take(self) -> tuple[EmergencySignal, ...]:
        """Signals since the last call, acknowledged."""
        signals = self._desk.pending(rooms.CONDUCTOR)
        for signal in signals:
            self._desk.acknowledge(rooms.CONDUCTOR, signal.signal_id)
            if signal.level is Level.HALT and self._halt is None:
                self._halt = signal
        return signals

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Put the signal into an `EmergencyStop`: the trainer saw only the word."""
        try:
            yield
        except EmergencyStop as stop:
            self._ask_why(stop)
            if self._halt is None:
                raise
            raise EmergencyStop(self._halt.reason, self._halt.signal_id, stop.step) from stop

    def _ask_why(self, stop: EmergencyStop) -> None:
        """Hear what came since the last fence; a stop stays one if nobody can say why any more."""
        try:
            self.take()
        except ActorError as gone:
            stop.add_note(f"the emergency queue could not be asked why: {gone}")


@contextmanager
def emergency_word() -> Iterator[EmergencyWord]:
    """The word of one run, in memory where the system has files there; gone afterwards."""
    place = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix=f"esper-word-{os.getpid()}-", dir=place))
    path = folder / "word"
    try:
        with EmergencyWord.create(path) as word:
            yield word
    finally:
        path.unlink(missing_ok=True)
        folder.rmdir()
