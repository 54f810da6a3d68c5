"""The journal of a run. It records every decision, judgement, change and measurement, in order.

A record is durable before the run acts on it. One process writes the journal. A record is a kind and a JSON object.
`read` needs no lock, so the run may be in progress.
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
from esper.durable.log import FramedLog, scan
from esper.durable.log_format import LoadError
from esper.errors import StoreCorrupt
from esper.ground.closing import Closing


class RecordKind(IntEnum):
    """The kind of a record. Numbers are never reused."""

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
    LEVEL_CHANGED = 26
    ADOPTED = 27
    FINISHED = 28


FIRST_GENERATION = 1
"""The generation of a new run. Each resume, each restart of the whole run and each rollback adds 1 to the
generation."""


@dataclass(frozen=True)
class Entry:
    """One record of a journal, from byte `offset` of its file up to byte `end`, where the next record begins."""

    kind: RecordKind
    body: dict[str, Any]
    offset: int
    end: int


class Journal(Closing):
    """The journal of a run, open for appending to the file of its newest generation. Several threads may write.

    A separate thread appends the records, one by one. Ctrl-C interrupts only the main thread, so it never interrupts an
    append.
    """

    def __init__(self, run_dir: Path, generation: int) -> None:
        self.generation, self._run_dir = generation, run_dir
        self._ends: dict[int, int] = {}
        """End of the last readable record of each older journal, in bytes."""
        self._log = FramedLog.open(journal_file(run_dir, generation), epoch=generation)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def write(self, kind: RecordKind, message: BaseModel | None = None, /, **fields: object) -> None:
        """Make one record durable.

        Raises:
            StoreWriteFailed: the record is not durable.
        """
        self.write_many([(kind, message if message is not None else fields)])

    def write_many(self, records: list[tuple[RecordKind, BaseModel | dict[str, object]]]) -> None:
        """Make several records durable with one sync.

        Raises:
            StoreWriteFailed: the records are not durable.
        """
        appended = [(int(kind), _payload(body)) for kind, body in records]
        self._writer.submit(self._append, appended).result()

    def begin_generation(self, from_fence: int | None) -> None:
        """Begin the next generation. Open the file of the next generation, and write SUPERSEDED into it, which ends the
        present generation.
        """
        self._writer.submit(self._open_next, from_fence).result()

    def supersede(self, from_fence: int | None) -> None:
        """Write the record SUPERSEDED in this generation: records of older generations after the fence are not valid
        any more.

        Args:
            from_fence: The last valid fence. None: no record of older generations is valid.

        Raises:
            StoreWriteFailed: the record could not be written. The older generation still owns the run.
        """
        self._writer.submit(self._supersede, from_fence).result()

    def _supersede(self, from_fence: int | None) -> None:
        for number, file in journals(self._run_dir).items():
            if number < self.generation and number not in self._ends:
                self._ends[number] = max((frame.end for frame in scan(file).frames), default=0)
        lengths = {str(number): end for number, end in self._ends.items()}
        body: dict[str, object] = {"from_fence": from_fence, "generation": self.generation, "lengths": lengths}
        self._append([(int(RecordKind.SUPERSEDED), _payload(body))])

    def _append(self, records: list[tuple[int, bytes]]) -> None:
        self._log.append_many(records)

    def _open_next(self, from_fence: int | None) -> None:
        """Open the file and append SUPERSEDED in one job of the writing thread, so that no other record comes first."""
        self._log.close()
        self._ends[self.generation] = self._log.size_bytes
        self.generation += 1
        self._log = FramedLog.open(journal_file(self._run_dir, self.generation), epoch=self.generation)
        self._supersede(from_fence)

    def close(self) -> None:
        """Write the pending records, then close the file."""
        self._writer.shutdown(wait=True)
        self._log.close()


def read(path: Path) -> tuple[list[Entry], list[LoadError]]:
    """Return all readable records, in order, and every unreadable part of the file.

    Raises:
        StoreCorrupt: the file is not a log, or is the journal of another generation under this name.
    """
    found = scan(path)
    if found.epoch != generation_of(path):
        raise StoreCorrupt(str(path), f"it is the journal of generation {found.epoch} under another name")
    entries: list[Entry] = []
    errors = [*found.errors, *([found.torn_tail] if found.torn_tail is not None else [])]
    for frame in found.frames:
        try:
            entries.append(Entry(RecordKind(frame.kind), json.loads(frame.payload), frame.offset, frame.end))
        except (ValueError, RecursionError) as error:  # not JSON, or a kind that this version does not know
            errors.append(LoadError(frame.offset, len(frame.payload), f"no journal record: {error}"))
    return entries, errors


def _payload(body: BaseModel | dict[str, object]) -> bytes:
    if isinstance(body, BaseModel):
        return body.model_dump_json().encode()
    return json.dumps(body).encode()
