"""The run's journal: what was decided, judged, changed and measured, in order, durable before it is acted upon.

One writer, in one process. A record is a kind and a JSON object; `read` needs no lock and works while a run is going.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from esper.archive.run_directory import generation_of, journal_file, journals
from esper.durable.log import FramedLog, LoadError, scan
from esper.errors import StoreCorrupt
from esper.ground.closing import Closing


class Kind(IntEnum):
    """What a record says. Numbers are never reused."""

    RUN_STARTED = 1
    ROUND_ENDED = 2
    DECISION = 3
    HOLD = 4
    COMMAND = 5
    GATE = 6
    TRANSITION = 7
    PLAN_APPLIED = 8
    INCUBATION_BEGUN = 9
    INCUBATION_ENDED = 10
    TWIN_COMPARED = 11
    FIELD_REPORT = 12
    RUN_ENDED = 13
    RUN_FAILED = 14
    SIGNAL = 15
    FAULT_FIRED = 16
    CHECKPOINT_BEGUN = 17
    CHECKPOINT_COMMITTED = 18
    SUPERSEDED = 19
    RUN_RESUMED = 20
    RESTORED = 21
    ACTOR_RESTARTED = 22
    RECOVERED = 23
    DIED_STARTING = 24
    ROLLED_BACK = 25


FIRST_GENERATION = 1
"""A run begins with it; whoever restarts or restores a part of it raises it."""


@dataclass(frozen=True)
class Entry:
    """One record of a journal; `offset` is where it begins in its file, `end` where the next one does, in bytes."""

    kind: Kind
    body: dict[str, Any]
    offset: int
    end: int


class Journal(Closing):
    """The journal of a run, open for appending to the file of its newest generation. Several threads may write.

    A thread of its own appends, one record after the other: Ctrl-C, which reaches the main thread wherever it is, then
    interrupts the wait for a record and not the record.
    """

    def __init__(self, run_dir: Path, generation: int) -> None:
        self.generation, self._run_dir = generation, run_dir
        self._ends: dict[int, int] = {}
        """Where the last good record of each older journal ends, in bytes."""
        self._log = FramedLog.open(journal_file(run_dir, generation), epoch=generation)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def write(self, kind: Kind, message: BaseModel | None = None, /, **fields: object) -> None:
        """Make one record durable.

        Raises:
            StoreWriteFailed: it is not.
        """
        self.write_many([(kind, message if message is not None else fields)])

    def write_many(self, records: list[tuple[Kind, BaseModel | dict[str, object]]]) -> None:
        """Make several records durable with one sync.

        Raises:
            StoreWriteFailed: they are not.
        """
        appended = [(int(kind), _payload(body)) for kind, body in records]
        self._writer.submit(self._append, appended).result()

    def succeed(self, from_fence: int | None) -> None:
        """Go on in a new generation, in a file of its own; see `supersede`."""
        self._writer.submit(self._open_next, from_fence).result()

    def supersede(self, from_fence: int | None) -> None:
        """Take the run over from older generations: what they did after a fence is taken back.

        Args:
            from_fence: The last fence that counts; None: nothing of them does.

        Raises:
            StoreWriteFailed: they still own it.
        """
        self._writer.submit(self._supersede, from_fence).result()

    def _supersede(self, from_fence: int | None) -> None:
        for number, file in journals(self._run_dir).items():
            if number < self.generation and number not in self._ends:
                self._ends[number] = max((frame.end for frame in scan(file).frames), default=0)
        lengths = {str(number): end for number, end in self._ends.items()}
        body: dict[str, object] = {"from_fence": from_fence, "generation": self.generation, "lengths": lengths}
        self._append([(int(Kind.SUPERSEDED), _payload(body))])

    def _append(self, records: list[tuple[int, bytes]]) -> None:
        self._log.append_many(records)

    def _open_next(self, from_fence: int | None) -> None:
        """In one piece: no record of another thread's comes before SUPERSEDED."""
        self._log.close()
        self._ends[self.generation] = self._log.size_bytes
        self.generation += 1
        self._log = FramedLog.open(journal_file(self._run_dir, self.generation), epoch=self.generation)
        self._supersede(from_fence)

    def close(self) -> None:
        """Release the file, when what is being written is."""
        self._writer.shutdown(wait=True)
        self._log.close()


def read(path: Path) -> tuple[list[Entry], list[LoadError]]:
    """All records that can be read, in order, and every place that could not.

    Raises:
        StoreCorrupt: this is no log, or that of another generation under this one's name.
    """
    found = scan(path)
    if found.epoch != generation_of(path):
        raise StoreCorrupt(str(path), f"it is the journal of generation {found.epoch} under another name")
    entries: list[Entry] = []
    errors = [*found.errors, *([found.torn_tail] if found.torn_tail is not None else [])]
    for frame in found.frames:
        try:
            entries.append(Entry(Kind(frame.kind), json.loads(frame.payload), frame.offset, frame.end))
        except (
            ValueError,
            RecursionError,
        ) as error:  # an unknown kind or no JSON: reported with its place, and the rest still read
            errors.append(LoadError(frame.offset, len(frame.payload), f"no journal record: {error}"))
    return entries, errors


def _payload(body: BaseModel | dict[str, object]) -> bytes:
    if isinstance(body, BaseModel):
        return body.model_dump_json().encode()
    return json.dumps(body).encode()
