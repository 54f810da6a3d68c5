"""Counts the optimizer steps that a run did more than once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from drills.undisturbed import Undisturbed
from esper.archive.damage import read_journal
from esper.archive.journal import Entry, RecordKind
from esper.archive.run_directory import journals
from esper.faults import Fault, FaultSpec

IN_A_ROUND = frozenset({"tolaria.save", "conductor.commit", "emergency.publish", "tolaria.step"})
"""Points that a process passes while the trainer may train."""
BREAKING = frozenset({Fault.KILL, Fault.STOP, Fault.RAISE, Fault.HANG, Fault.HANG_C})


def steps_redone(run_dir: Path, ended: int, fired: Iterable[FaultSpec], undisturbed: Undisturbed) -> int | None:
    """Return the number of steps of the live host that were done again.

    The journals of all generations name each round that ended. Steps of a round that was broken off are known only if
    the fault fired at a known step, or between two rounds.

    Args:
        ended: Number of steps of the run at its end.
        fired: The faults, once for each firing.

    Returns:
        The number. None: a fault broke a round off at a step that no record names.
    """
    parts = [_steps_before(fault, undisturbed) for fault in fired]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    did = sum(undisturbed.step_at(fence) - undisturbed.step_at(fence - 1) for fence in _ended_rounds(run_dir))
    return did - ended + sum(known)


def rounds_redone(run_dir: Path) -> int:
    """Return the number of rounds that ended more than once, each as often as it ended again."""
    ended = _ended_rounds(run_dir)
    return len(ended) - len(set(ended))


def _steps_before(fault: FaultSpec, undisturbed: Undisturbed) -> int | None:
    """Return the number of steps of the broken round that were done before the fault fired. None: unknown."""
    if fault.fault not in BREAKING or fault.point not in IN_A_ROUND:
        return 0
    if fault.step is None:
        return None
    fences = range(undisturbed.summary.rounds)
    return fault.step - max(begin for fence in fences if (begin := undisturbed.step_at(fence)) <= fault.step)


def _ended_rounds(run_dir: Path) -> Sequence[int]:
    """Return the fence of each round that ended, as often as it ended."""
    return [int(one.body["fence"]) for one in every_entry(run_dir) if one.kind is RecordKind.ROUND_ENDED]


def every_entry(run_dir: Path) -> Sequence[Entry]:
    """Return the records of all generations in order, also those that were taken back."""
    return [entry for file in journals(run_dir).values() for entry in read_journal(file)[0]]
