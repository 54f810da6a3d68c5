"""Drill 24: the process that leads the run stands still for a while, and another process tries to take its run."""

from __future__ import annotations

import os
import signal

import esper
from drills import expect
from drills.breaking import spec
from drills.drill import Drill
from drills.drill_context import DrillContext
from esper.errors import RunDirectoryError
from esper.faults import Fault


def act(drill: DrillContext) -> None:
    """Stop the driver at a fence in an own process, try to resume its run, wake it, and wait for its end."""
    stop = spec("conductor.fence", Fault.STOP, round=drill.undisturbed.middle)
    process = drill.start_command(stop, in_process=True)
    try:
        drill.await_fault()
        try:
            esper.resume(drill.run_dir, on=drill.place(None))
        except RunDirectoryError as refusal:
            drill.notes.append(f"the resume was refused: {refusal}")
        drill.wake()
        drill.await_command(process)
    except BaseException:  # also Ctrl-C: a stopped process would stay for ever
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        raise


DRIVER_PAUSED = Drill(
    number=24,
    name="driver-paused",
    what="The driver is stopped for a while: nobody else can resume its run, and it goes on with the same bits.",
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
