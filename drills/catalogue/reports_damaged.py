"""Drill 15: the store of field reports is damaged while the run is stopped."""

from __future__ import annotations

from drills import expect
from drills.damaging import flip
from drills.drill import Drill
from drills.drill_context import DrillContext
from drills.stop_at_fence import StopAtFence
from esper.archive.run_directory import reports_folder
from esper.errors import DrillImpossible


def act(drill: DrillContext) -> None:
    """Stop after the first field reports, flip a bit in their store, and resume."""
    watch = StopAtFence(drill.undisturbed.first_entry("FOSSILIZED"))
    drill.run(progress=watch, drain=watch.drain)
    stores = sorted(reports_folder(drill.run_dir).glob("*.log"))
    if not stores:
        raise DrillImpossible("the run wrote no field report before the stop")
    flip(stores[0])
    drill.resume()


REPORTS_DAMAGED = Drill(
    number=15,
    name="reports-damaged",
    what="A field report on the disk is damaged: it is counted and told by name, and the run ends with the same bits.",
    act=act,
    place="in process",
    follows=(
        expect.exit_codes(143, 0),
        expect.events(field_reports_damaged=1),
        expect.counters({"esper.load.errors": 1}),
        expect.within(steps_redone=0),
        expect.same_bits(),
    ),
)
