"""Drill 26: the cluster has no room for an actor."""

from __future__ import annotations

from drills import expect
from drills.drill import Drill
from drills.drill_context import DrillContext


def act(drill: DrillContext) -> None:
    """Ask for more managers than the Ray of the drills has places for."""
    drill.run(growth__managers=64, ray__start_deadline_s=30.0)


NO_ROOM = Drill(
    number=26,
    name="no-room",
    what="The actors find no room: the run stops with the error that names what they lack, and nothing is left.",
    act=act,
    follows=(expect.exit_codes(3), expect.error("PlacementUnavailable")),
)
