"""Drills 8 and 20: an actor stands still for longer than the run is patient. It is killed before its successor begins,
so it never wakes beside it.
"""

from __future__ import annotations

from drills import expect
from drills.breaking import spec
from drills.catalogue.emergency import MANY, PLACES, full_and_down
from drills.drill import Drill
from drills.drill_context import DrillContext
from esper.faults import Fault

PATIENCE_S = 15.0
PAUSE_S = 30.0
"""A process that is not killed wakes after this time, beside its successor."""


def emergency(drill: DrillContext) -> None:
    """Stop the emergency actor at the second fence after the signals, while its queue is full."""
    fence = drill.undisturbed.first_tournament
    pause = spec("emergency.pending", Fault.PAUSE, passage=fence + 3, seconds=PAUSE_S)
    full_and_down(drill, pause, {"ray.collective_timeout_s": PATIENCE_S})


def manager(drill: DrillContext) -> None:
    """Stop a manager in a step of a fork."""
    pause = spec("kasmina.step", Fault.PAUSE, role="manager-0", passage=5, seconds=PAUSE_S)
    drill.run(pause, settings={"ray.collective_timeout_s": PATIENCE_S})


EMERGENCY_FROZEN = Drill(
    number=8,
    name="emergency-frozen",
    what="The emergency actor stands still with a full queue: it is killed and replaced; no accepted signal is lost.",
    act=emergency,
    follows=(
        expect.exit_codes(0, 0),
        expect.restarted("emergency"),
        expect.full_before_the_fault(PLACES),
        expect.signals(MANY, some_refused=True),
        expect.same_bits(),
    ),
)
MANAGER_FROZEN = Drill(
    number=20,
    name="manager-frozen",
    what="A manager stands still while a fork trains: it is killed and replaced, and changes nothing afterwards.",
    act=manager,
    follows=(expect.exit_codes(0), expect.restarted("manager-0"), expect.same_bits()),
)
