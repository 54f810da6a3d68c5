"""Drill 24: the process that leads the run is killed."""

from __future__ import annotations

from drills import expect
from drills.breaking import kill
from drills.drill import Drill
from drills.drill_context import DrillContext


def act(drill: DrillContext) -> None:
    """Kill the driver at a fence in an own process with its own Ray, and resume."""
    process = drill.start_command(kill("conductor.fence", round=drill.undisturbed.middle), in_process=False)
    drill.await_command(process)
    drill.resume()


DRIVER_KILLED = Drill(
    number=24,
    name="driver-killed",
    what="The driver is killed: all actors and processes of Ray end with it, and a resume has the same bits.",
    act=act,
    follows=(expect.exit_codes(3, 0), expect.redone(rounds=1), expect.same_bits()),
)
