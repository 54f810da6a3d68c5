"""Drill 1: the policy raises an error."""

from __future__ import annotations

from drills import expect
from drills.breaking import fail
from drills.drill import Drill
from drills.drill_context import DrillContext


def act(drill: DrillContext) -> None:
    """Raise in Tamiyo at the fence of the first tournament, then resume without the fault."""
    drill.run(fail("tamiyo.decide", error="PolicyFailed", round=drill.undisturbed.first_tournament))
    drill.resume()


POLICY_FAILS = Drill(
    number=1,
    name="policy-fails",
    what="Tamiyo fails while it decides: the caller gets this error, the run stops, and a resume has the same bits.",
    act=act,
    follows=(
        expect.exit_codes(3, 0),
        expect.error("PolicyFailed"),
        expect.events(),
        expect.redone(rounds=1),
        expect.same_bits(),
    ),
)
