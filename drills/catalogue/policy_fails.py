"""Drill 1: the policy raises an error."""

from __future__ import annotations

from typing import NoReturn

from drills import expect
from drills.altered_policy import AlteredPolicy
from drills.drill import Drill
from drills.drill_context import DrillContext
from esper.leyline.decisions import Decision

SAYS = "drill: no pair has a score"


def _raise(decision: Decision) -> NoReturn:
    raise ZeroDivisionError(f"{SAYS} (fence {decision.fence})")


def act(drill: DrillContext) -> None:
    """Let the code of the policy raise at the fence of the first tournament, then resume with one that does not."""
    growth, fence = drill.config().growth, drill.undisturbed.first_tournament
    drill.run(policy=AlteredPolicy(growth, fence, _raise))
    drill.resume(policy=AlteredPolicy(growth, fence, lambda decision: decision))


POLICY_FAILS = Drill(
    number=1,
    name="policy-fails",
    what="The policy's own code raises: the caller gets the error and its cause, and a resume has the same bits.",
    act=act,
    follows=(
        expect.exit_codes(3, 0),
        expect.error("PolicyFailed", cause="ZeroDivisionError", says=SAYS),
        expect.journalled("PolicyFailed"),
        expect.events(policy_failed=1),
        expect.counters({"esper.policy.failures": 1}),
        expect.trace(
            "esper round >> tamiyo decide > policy", error="PolicyFailed", role="tamiyo", event="policy_failed"
        ),
        expect.redone(rounds=1),
        expect.same_bits(),
    ),
)
