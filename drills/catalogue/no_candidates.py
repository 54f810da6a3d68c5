"""Drill 3: the policy names none of the open pairs, and gives no reason."""

from __future__ import annotations

from drills import expect
from drills.altered_policy import AlteredPolicy
from drills.drill import Drill
from drills.drill_context import DrillContext
from esper.leyline.decisions import Decision


def _nothing(decision: Decision) -> Decision:
    return decision.model_copy(update={"pairs": (), "blend": None, "hold": None})


def act(drill: DrillContext) -> None:
    """Let the policy choose nothing at the fence of the first tournament."""
    drill.run(policy=AlteredPolicy(drill.config().growth, drill.undisturbed.first_tournament, _nothing))


NO_CANDIDATES = Drill(
    number=3,
    name="no-candidates",
    what="The policy chooses nothing and gives no reason: the run fails, and never pauses instead.",
    act=act,
    place="in process",
    follows=(
        expect.exit_codes(3),
        expect.error("NoSeedCandidates"),
        expect.journalled("NoSeedCandidates"),
        expect.events(policy_no_candidates=1),
        expect.counters({"esper.policy.failures": 1, "esper.seed.transitions": 0}),
        expect.trace("esper round >> tamiyo decide", error="NoSeedCandidates", role="tamiyo"),
    ),
)
