"""Drill 12: the run goes back from the same fence by both tiers: from memory, and from the disk."""

from __future__ import annotations

from drills import expect
from drills.drill import Drill
from drills.drill_context import DrillContext
from drills.going_back_policy import GoingBackPolicy


def act(drill: DrillContext) -> None:
    """Go back by one fence, whose state is in memory, and then by two, whose state is on the disk only."""
    middle = drill.undisturbed.middle
    drill.run(policy=GoingBackPolicy(drill.config().growth, middle, (1, 2)))


ROLLBACKS_COMPARED = Drill(
    number=12,
    name="rollbacks-compared",
    what="The run goes back from memory, and then from the disk: both are timed, and every fence keeps its bits.",
    act=act,
    follows=(
        expect.exit_codes(0),
        expect.rolled_back("fast", "full"),
        expect.counters({"esper.rollbacks": 2, "esper.actor.restarts": 0}),
        expect.events(rollback_fast=1, rollback_full=1),
        expect.trace("rollback fast >> checkpoint restore"),
        expect.trace("rollback full >> checkpoint restore"),
        expect.redone(rounds=3),
        expect.same_fences(),
        expect.same_bits(),
    ),
)
