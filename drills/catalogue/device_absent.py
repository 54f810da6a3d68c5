"""Drill 18: the config names a device that torch cannot use."""

from __future__ import annotations

from drills import expect
from drills.drill import Drill
from drills.drill_context import DrillContext

DEVICE = "meta"
"""A device of torch without values, which no machine can train on."""
WROTE_NOTHING = "the refused run wrote nothing"


def act(drill: DrillContext) -> None:
    """Ask for a device that cannot be used, and then begin the run on the device of the task."""
    drill.run(settings={"run.device": DEVICE})
    if not drill.run_dir.exists():
        drill.note(WROTE_NOTHING)
    drill.run()


DEVICE_ABSENT = Drill(
    number=18,
    name="device-absent",
    what="The config names a device that cannot be used: the run is refused, and does not use another device instead.",
    act=act,
    place="in process",
    follows=(
        expect.exit_codes(2, 0),
        expect.error("ConfigError", says="run.device"),
        expect.noted(WROTE_NOTHING),
        expect.events(),
        expect.same_bits(),
    ),
)
