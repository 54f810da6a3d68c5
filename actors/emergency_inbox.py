"""The conductor's access to emergencies: the word, which every process reads, and the queue of signals behind it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from actors.desk import CONDUCTOR, EmergencyPort
from actors.temporary_folders import SHARED_MEMORY, TEMPORARY, make_place
from esper.emergency.word import EmergencyWord
from esper.ground.closing import at_the_end
from esper.leyline.signals import EmergencySignal


class ConductorInbox:
    """`Inbox` across processes: the conductor as a subscriber of the emergency queue."""

    def __init__(self, desk: EmergencyPort) -> None:
        self._desk = desk

    def pending(self) -> tuple[EmergencySignal, ...]:
        """See `Inbox`."""
        return self._desk.pending(CONDUCTOR)

    def acknowledge(self, signal_ids: Sequence[str]) -> None:
        """See `Inbox`."""
        self._desk.acknowledge(CONDUCTOR, signal_ids)

    def close(self) -> None:
        """See `Inbox`."""
        self._desk.close()


@contextmanager
def emergency_word() -> Iterator[EmergencyWord]:
    """Create the emergency word of one run, in shared memory if the system has it; it is removed afterwards."""
    folder = make_place("word", SHARED_MEMORY if SHARED_MEMORY.is_dir() else TEMPORARY)
    path = folder / "word"
    with at_the_end(lambda: shutil.rmtree(folder), "removing the emergency word"), EmergencyWord.create(path) as word:
        yield word
