"""What a drill left behind: how its runs ended, their journal, severe events, fired faults and damage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from drills.drill_context import Attempt, DrillContext
from drills.redone import every_entry, rounds_redone, steps_redone
from drills.severe_log import severe_events
from drills.signalling import delivered, refused
from esper.archive.history import Remains, look_at
from esper.archive.journal import FIRST_GENERATION, Entry, RecordKind, read
from esper.archive.recovery_record import Recovery
from esper.archive.run_directory import emergency_folder, journal_file, run_file
from esper.emergency.sinks import DEFAULT_FILE
from esper.faults import Firing
from esper.trace.span_store import spans_with

SENDS = "send esper.emergency"
"""Name of the span of a delivery to a sink."""


@dataclass(frozen=True)
class Rollback:
    """One time that a run went back by a command."""

    tier: str
    """`fast`: from memory. `full`: from the disk."""
    fence: int
    """Fence to which it went back."""
    seconds: float


@dataclass(frozen=True)
class Observed:
    """The end of one drill. Everything but the attempts is read from the run directory, as a user would read it."""

    context: DrillContext
    leaks: tuple[str, ...]
    """Processes, actors and folders that were not there before the drill."""
    peak_memory_bytes: int | None = None
    """Largest private resident memory of this process and all its descendants. None: it was not measured."""

    @property
    def attempts(self) -> Sequence[Attempt]:
        """The runs and resumes, in order."""
        return self.context.attempts

    @property
    def run_dir(self) -> Path:
        """Directory of the run."""
        return self.context.run_dir

    @cached_property
    def past(self) -> Remains | None:
        """The history of the run. None: the run wrote nothing."""
        return look_at(self.run_dir) if run_file(self.run_dir).exists() else None

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The lines of the log of severe events, in order."""
        return severe_events(self.run_dir)

    @cached_property
    def event_counts(self) -> Counter[str]:
        """Number of severe events by name."""
        return Counter(event["name"] for event in self.events)

    @property
    def firings(self) -> list[Firing]:
        """The faults that fired, in all runs and resumes."""
        return [firing for attempt in self.attempts for firing in attempt.fired]

    @cached_property
    def first_generation(self) -> Sequence[Entry]:
        """The records of the first generation of the run, also those that a resume has made invalid."""
        return read(journal_file(self.run_dir, FIRST_GENERATION))[0]

    def entries(self, kind: RecordKind) -> list[Entry]:
        """Return the valid records of a kind, in order."""
        return [entry for entry in self.past.entries if entry.kind is kind] if self.past is not None else []

    @cached_property
    def counters(self) -> Counter[str] | None:
        """Counters of the run and its resumes, summed. A run that was killed with its driver left none. None: there is
        no record of the end of a run, or the drill has several runs."""
        if self.context.parts:
            return None
        ends = [one.body for one in self.every_entry if one.kind in (RecordKind.RUN_ENDED, RecordKind.RUN_FAILED)]
        return sum((Counter(one["counters"]) for one in ends), Counter[str]()) if ends else None

    @cached_property
    def recoveries(self) -> list[Recovery]:
        """Every recovery from the death of an actor that the journals tell of, in order.

        One that a later recovery took back counts, too.

        A recovery is journaled when the actors are up, and again when the first step after it has ended.
        """
        if self.context.parts:
            return [one for part in self.context.parts for one in part.recoveries]
        kinds = (RecordKind.ACTOR_RESTARTED, RecordKind.RECOVERED)
        entries = [entry for entry in self.every_entry if entry.kind in kinds] if self.past is not None else []
        told = [(one.kind, Recovery.model_validate_json(json.dumps(one.body))) for one in entries]
        found: dict[tuple[int, tuple[str, ...], bool, float], Recovery] = {}
        for _, one in told:  # the second record of a recovery replaces the first
            found[one.generation, one.actors, one.alone, one.decide_s] = one
        return list(found.values())

    @cached_property
    def delivered(self) -> Counter[str]:
        """How often the file sink got each emergency signal, by id."""
        return delivered(emergency_folder(self.run_dir) / DEFAULT_FILE, self.context.signals_file)

    @cached_property
    def sent_at(self) -> list[float]:
        """Unix times at which deliveries to sinks began, by the spans of the run, in order."""
        spans = spans_with(self.run_dir).spans.values()
        return sorted(one.start_ns / 1e9 for one in spans if one.name == SENDS)

    @cached_property
    def spans_ended(self) -> int:
        """Number of spans that ended, by the files of spans of the run."""
        return sum(one.end_ns is not None for one in spans_with(self.run_dir).spans.values())

    @cached_property
    def refused(self) -> set[str]:
        """Ids of the signals that a full queue refused to their sender, by the severe events."""
        return refused(self.run_dir)

    @property
    def signals_lost(self) -> int | None:
        """Number of sent signals that the sink did not get, and that were not refused. None: the drill sent none."""
        if self.context.parts:
            return _sum(part.signals_lost for part in self.context.parts)
        came = self.delivered.keys() | self.refused
        return sum(one not in came for one in self.context.sent) if self.context.sent else None

    @property
    def signals_duplicated(self) -> int | None:
        """Number of deliveries beyond the first of each signal. None: the drill sent none."""
        if self.context.parts:
            return _sum(part.signals_duplicated for part in self.context.parts)
        return sum(number - 1 for number in self.delivered.values()) if self.context.sent else None

    @property
    def failure(self) -> Mapping[str, Any] | None:
        """The first failure in the journal: error, message, cause, trace id. None: no run failed."""
        return next((attempt.failure for attempt in self.attempts if attempt.failure is not None), None)

    @property
    def trace_id(self) -> str | None:
        """Trace of the incident: of the failure, else of the first recovery's or fired fault's severe event."""
        if self.failure is not None:
            return str(self.failure["trace_id"])
        told = [event["trace_id"] for event in self.events if event["trace_id"]]
        return told[0] if told else None

    @cached_property
    def same_bits(self) -> bool | None:
        """Whether the run ended with the weights of the undisturbed run. None: it did not reach its end."""
        if self.context.parts:
            return all(part.same_bits for part in self.context.parts)
        if self.ended is None:
            return None
        here, there = self.ended, self.context.undisturbed.summary
        pairs = [(here[name], getattr(there, name)) for name in ("weights_sha256", "twin_weights_sha256", "steps")]
        return all(one == other for one, other in pairs)

    @property
    def ended(self) -> Mapping[str, Any] | None:
        """The journal's record of the end of the run. None: it did not reach its end."""
        told = self.entries(RecordKind.RUN_ENDED)
        return told[-1].body if told else None

    @cached_property
    def rollbacks(self) -> list[Rollback]:
        """Every time that the run went back by a command, in order."""
        told = (one.body for one in self.every_entry if one.kind is RecordKind.ROLLED_BACK)
        return [Rollback(one["tier"], one["fence"], one["seconds"]) for one in told]

    @cached_property
    def every_entry(self) -> Sequence[Entry]:
        """The records of all generations in order, also those that were taken back. Empty: the run wrote nothing."""
        return every_entry(self.run_dir) if self.past is not None else ()

    @cached_property
    def rounds_redone(self) -> int | None:
        """Number of rounds that had ended and were done again. None: the run wrote nothing."""
        return rounds_redone(self.run_dir) if self.past is not None else None

    @cached_property
    def steps_redone(self) -> int | None:
        """Number of steps that were done more than once. None: the run did not reach its end, or a fault fired at a
        step that no record names."""
        if self.context.parts:
            return _sum(part.steps_redone for part in self.context.parts)
        if self.ended is None:
            return None
        fired = [one.armed[firing.fault_index] for one in self.attempts for firing in one.fired]
        return steps_redone(self.run_dir, int(self.ended["steps"]), fired, self.context.undisturbed)


def _sum(numbers: Iterable[int | None]) -> int | None:
    """Return the sum of the measured numbers. None: no number was measured."""
    known = [one for one in numbers if one is not None]
    return sum(known) if known else None
