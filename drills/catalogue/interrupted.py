"""Drill 28: Ctrl-C while the run starts, trains and saves."""

from __future__ import annotations

import os
import signal

from drills import expect
from drills.breaking import spec
from drills.drill import Drill
from drills.drill_context import DrillContext
from esper.faults import Fault


def act(drill: DrillContext) -> None:
    """Send SIGINT to the driver at a fence, where a fault holds it, and resume."""
    held = spec("conductor.fence", Fault.DELAY, round=drill.undisturbed.middle, seconds=5.0)
    process = drill.start_command(held, in_process=False)
    drill.await_fault()
    os.killpg(process.pid, signal.SIGINT)
    drill.await_command(process)
    drill.resume()


INTERRUPTED = Drill(
    number=28,
    name="interrupted",
    what="Ctrl-C ends a run with exit code 130 and leaves nothing behind; a resume has the same bits.",
    act=act,
    follows=(expect.exit_codes(130, 0), expect.redone(rounds=1), expect.same_bits()),
)
