"""Drill 24: the process that leads the run stands still for some seconds, and another process tries to take its run."""

from __future__ import annotations

import esper
from drills import expect
from drills.breaking import spec
from drills.drill import Drill
from drills.drill_context import DrillContext
from esper.errors import RunDirectoryError
from esper.faults import Fault

PAUSE_S = 3.0


def act(drill: DrillContext) -> None:
    """Stop the driver at a fence in an own process, try to resume its run meanwhile, and wait for its end."""
    pause = spec("conductor.fence", Fault.PAUSE, round=drill.undisturbed.middle, seconds=PAUSE_S)
    process = drill.start_command(pause, in_process=True)
    drill.await_fault()
    try:
        esper.resume(drill.run_dir, on=drill.place(None))
    except RunDirectoryError as refusal:
        drill.notes.append(f"the resume was refused: {refusal}")
    drill.await_command(process)


DRIVER_PAUSED = Drill(
    number=24,
    name="driver-paused",
    what="The driver is stopped for some seconds: nobody else can resume its run, and it goes on with the same bits.",
    act=act,
    place="in process",
    follows=(
        expect.exit_codes(0),
        expect.noted("the resume was refused", "in use by pid"),
        expect.events(),
        expect.within(rounds_redone=0),
        expect.same_bits(),
    ),
)
