"""Drill 14: the disk is full, refuses a write, or damages what it writes, in each store of a run."""

from __future__ import annotations

import shutil

from drills import expect
from drills.breaking import disk
from drills.catalogue.emergency import DOWN
from drills.drill import Drill, Expectation
from drills.drill_context import DrillContext
from drills.signalling import SINK, SendsSignals
from drills.small_disk import FILLER, FillsDisk, small_disk
from drills.stop_at_fence import StopAtFence
from esper.faults import Fault, FaultSpec

SIGNALS = 8
QUEUE, JOURNAL = "run/emergency/queue", "run/journal-"
CHECKPOINTS, REPORTS = "run/checkpoints/", "run/field_reports/"
"""Words of an error whose write failed in a store. The path also has the name of the drill, so `queue` would say too
little."""


def in_checkpoint(drill: DrillContext, fault: Fault, fence: int | None = None) -> FaultSpec:
    """Break the write of the checkpoint of a fence. None: the fence in the middle."""
    return disk(fault, "checkpoints/*", "tolaria.save", round=fence or drill.undisturbed.middle)


def in_journal(drill: DrillContext, fault: Fault, fence: int | None = None) -> FaultSpec:
    """Break the next record of the journal after a fence. None: the fence in the middle."""
    return disk(fault, "journal-*.log", "conductor.fence", round=fence or drill.undisturbed.middle)


def in_reports(drill: DrillContext, fault: Fault) -> FaultSpec:
    """Break the field report of the first seed that stays."""
    fence = drill.undisturbed.first_entry("FOSSILIZED") - 1
    return disk(fault, "field_reports/*", "conductor.fence", round=fence)


def full(drill: DrillContext, fault: FaultSpec) -> None:
    """Let one write find a full disk, and resume."""
    drill.run(fault)
    drill.resume()


def in_queue(fault: Fault, fence: int) -> FaultSpec:
    """Break the next record of the queue after a fence. The conductor asks the queue once at each fence."""
    return disk(fault, "emergency/queue/*", "emergency.pending", passage=fence + 1)


def breaks_the_queue(drill: DrillContext, fault: FaultSpec, *then: FaultSpec) -> None:
    """Let the record of an emergency signal meet a broken disk, and resume, with faults of the resume."""
    progress = SendsSignals(drill.undisturbed.first_tournament, SIGNALS)
    drill.sent = progress.sent
    drill.run(fault, progress=progress, settings={"emergency.drain_s": 300.0, "emergency.sinks": [SINK.model_dump()]})
    drill.resume(*then)


def refuses(drill: DrillContext) -> None:
    """Let the disk refuse a write of the queue, of the journal, of a checkpoint, and of a field report."""
    fence = drill.undisturbed.first_tournament
    breaks_the_queue(drill, in_queue(Fault.IO_ERROR, fence), in_journal(drill, Fault.IO_ERROR, fence + 1))
    drill.resume(in_checkpoint(drill, Fault.IO_ERROR, fence + 2))
    drill.resume(in_reports(drill, Fault.IO_ERROR))
    drill.resume()


def really_full(drill: DrillContext) -> None:
    """Put the run on a small file system, fill it at the fence in the middle, make room and resume."""
    with small_disk(drill.run_dir):
        drill.run(progress=FillsDisk(drill.undisturbed.middle))
        (drill.run_dir / FILLER).unlink(missing_ok=True)
        drill.resume()


def damages(drill: DrillContext, fault: FaultSpec, stop: int) -> None:
    """Let the disk damage what it writes, stop at a fence, and resume."""
    watch = StopAtFence(stop)
    drill.run(fault, progress=watch, drain=watch.drain)
    drill.resume()


def damages_report(drill: DrillContext) -> None:
    """Let the disk damage the first field report, stop when a seed stays, and resume."""
    fault = disk(Fault.BIT_FLIP, "field_reports/*", "conductor.fence", round=drill.undisturbed.first_tournament)
    damages(drill, fault, drill.undisturbed.first_entry("FOSSILIZED"))


def cuts_last_report(drill: DrillContext) -> None:
    """Let the disk lose a part of the report of the first seed that stays, stop at its fence, and resume."""
    damages(drill, in_reports(drill, Fault.TRUNCATE), drill.undisturbed.first_entry("FOSSILIZED"))


def damages_signal(drill: DrillContext) -> None:
    """Let the disk damage the record of a signal while the sink is down, and resume when the sink is back."""
    fence, folder = drill.undisturbed.first_tournament, drill.signals_file.parent
    folder.mkdir()
    progress = SendsSignals(fence, SIGNALS, before=lambda: shutil.rmtree(folder))
    drill.sent = progress.sent
    sink = SINK.model_copy(update={"path": str(drill.signals_file)})
    settings = {**DOWN, "emergency.sinks": [sink.model_dump()]}
    drill.run(in_queue(Fault.BIT_FLIP, fence), progress=progress, settings=settings)
    folder.mkdir()
    drill.resume(settings={"emergency.drain_s": 300.0})


def _stopped(store: str) -> tuple[Expectation, ...]:
    return (
        expect.exit_codes(3, 0),
        expect.error("StoreWriteFailed", cause="OSError", says=store),
        expect.journalled("StoreWriteFailed"),
        expect.events(),
        expect.same_bits(),
    )


DISK_FULL_CHECKPOINT = Drill(
    number=14,
    name="disk-full-checkpoint",
    what="The disk is full while a checkpoint is written: the run stops, and a resume has the same bits.",
    act=lambda drill: full(drill, in_checkpoint(drill, Fault.NO_SPACE)),
    place="in process",
    follows=_stopped(CHECKPOINTS),
)
DISK_FULL_JOURNAL = Drill(
    number=14,
    name="disk-full-journal",
    what="The disk is full while the journal is written: the run stops, and a resume has the same bits.",
    act=lambda drill: full(drill, in_journal(drill, Fault.NO_SPACE)),
    place="in process",
    follows=_stopped(JOURNAL),
)
DISK_FULL_REPORTS = Drill(
    number=14,
    name="disk-full-reports",
    what="The disk is full while a field report is written: the run stops, and a resume has the same bits.",
    act=lambda drill: full(drill, in_reports(drill, Fault.NO_SPACE)),
    place="in process",
    follows=_stopped(REPORTS),
)
DISK_FULL_QUEUE = Drill(
    number=14,
    name="disk-full-queue",
    what="The disk is full while a signal is recorded: its sender is told, the run stops; a resume delivers the rest.",
    act=lambda drill: breaks_the_queue(drill, in_queue(Fault.NO_SPACE, drill.undisturbed.first_tournament)),
    place="in process",
    follows=(
        expect.exit_codes(3, 0),
        expect.error("StoreWriteFailed", cause="OSError", says=QUEUE),
        expect.signals(SIGNALS, some_refused=True),
        expect.same_bits(),
    ),
)
DISK_REFUSES = Drill(
    number=14,
    name="disk-refuses",
    what="The disk refuses a write of the journal, a checkpoint, a report, the queue: each stops the run; same bits.",
    act=refuses,
    place="in process",
    follows=(
        expect.exit_codes(3, 3, 3, 3, 0),
        *(
            expect.error("StoreWriteFailed", cause="OSError", says=store, attempt=number)
            for number, store in enumerate((QUEUE, JOURNAL, CHECKPOINTS, REPORTS))
        ),
        expect.signals(SIGNALS, some_refused=True),
        expect.same_bits(),
    ),
)
DISK_REALLY_FULL = Drill(
    number=14,
    name="disk-really-full",
    what="A small file system is full to the last block: the run stops; with room, it ends with the same bits.",
    act=really_full,
    place="in process",
    follows=(
        expect.exit_codes(3, 0),
        expect.error("StoreWriteFailed", cause="OSError", says="No space left on device"),
        expect.same_bits(),
    ),
)
CHECKPOINT_FLIPPED = Drill(
    number=14,
    name="checkpoint-flipped",
    what="The disk flips a bit of a checkpoint while it is written: the resume puts it aside; same bits.",
    act=lambda drill: damages(drill, in_checkpoint(drill, Fault.BIT_FLIP), drill.undisturbed.middle),
    place="in process",
    follows=(expect.exit_codes(143, 0), expect.events(checkpoint_rejected=1), expect.put_aside(1), expect.same_bits()),
)
CHECKPOINT_CUT = Drill(
    number=14,
    name="checkpoint-cut",
    what="The disk loses a part of a checkpoint while it is written: the resume puts it aside; same bits.",
    act=lambda drill: damages(drill, in_checkpoint(drill, Fault.TRUNCATE), drill.undisturbed.middle),
    place="in process",
    follows=(expect.exit_codes(143, 0), expect.events(checkpoint_rejected=1), expect.put_aside(1), expect.same_bits()),
)
JOURNAL_FLIPPED = Drill(
    number=14,
    name="journal-flipped",
    what="The disk flips a bit of the journal: the resume names the damage, and goes on from a fence before it.",
    act=lambda drill: damages(drill, in_journal(drill, Fault.BIT_FLIP), drill.undisturbed.middle + 2),
    place="in process",
    follows=(expect.exit_codes(143, 0), expect.events(journal_damaged=1), expect.same_bits()),
)
JOURNAL_CUT = Drill(
    number=14,
    name="journal-cut",
    what="The disk loses a part of a record of the journal: the next record finds out, and the run stops; same bits.",
    act=lambda drill: full(drill, in_journal(drill, Fault.TRUNCATE)),
    place="in process",
    follows=(
        expect.exit_codes(3, 0),
        expect.error("StoreWriteFailed", cause="OSError", says=JOURNAL),
        expect.events(journal_damaged=1),
        expect.same_bits(),
    ),
)
QUEUE_CUT = Drill(
    number=14,
    name="queue-cut",
    what="The disk cuts the record of a signal: the next record finds out, the run stops; all other signals come out.",
    act=lambda drill: breaks_the_queue(drill, in_queue(Fault.TRUNCATE, drill.undisturbed.first_tournament)),
    place="in process",
    follows=(
        expect.exit_codes(3, 0),
        expect.error("StoreWriteFailed", cause="OSError", says=QUEUE),
        expect.damaged_signals(SIGNALS, lost=1),
        expect.same_bits(),
    ),
)
REPORTS_FLIPPED = Drill(
    number=14,
    name="reports-flipped",
    what="The disk flips a bit of a field report: the resume names the damage, and the run ends with the same bits.",
    act=damages_report,
    place="in process",
    follows=(expect.exit_codes(143, 0), expect.events(field_reports_damaged=1), expect.same_bits()),
)
REPORTS_CUT = Drill(
    number=14,
    name="reports-cut",
    what="The disk loses a part of the last field report: the resume misses it by the journal, and names the damage.",
    act=cuts_last_report,
    place="in process",
    follows=(expect.exit_codes(143, 0), expect.events(field_reports_damaged=1), expect.same_bits()),
)
QUEUE_FLIPPED = Drill(
    number=14,
    name="queue-flipped",
    what="The disk flips a bit of a waiting signal: the resume names the damage, and delivers all other signals.",
    act=damages_signal,
    place="in process",
    follows=(expect.exit_codes(0, 0), expect.damaged_signals(SIGNALS, lost=1), expect.same_bits()),
)
