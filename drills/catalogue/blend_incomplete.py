"""Drill 4: a command lacks what its blend mode needs."""

from __future__ import annotations

from collections.abc import Callable

from drills import expect
from drills.altered_policy import AlteredPolicy
from drills.drill import Drill
from drills.drill_context import DrillContext
from esper.leyline.commands import BlendMode, BlendSpec
from esper.leyline.decisions import Decision


def _blended(mode: BlendMode) -> Callable[[Decision], Decision]:
    def alter(decision: Decision) -> Decision:
        blend = BlendSpec(mode=mode, ramp_steps=10)
        return decision.model_copy(update={"blend": blend})

    return alter


def _act(drill: DrillContext, mode: BlendMode) -> None:
    """Ask for a blend mode without what it needs, at the fence of the first tournament."""
    fence = drill.undisturbed.first_tournament
    drill.run(policy=AlteredPolicy(drill.config().growth, fence, _blended(mode)))


FOLLOWS = (
    expect.exit_codes(3),
    expect.error("DependencyViolationError"),
    expect.journalled("DependencyViolationError"),
    expect.events(command_validation_failed=1),
    expect.trace("esper round >> command admit", error="DependencyViolationError", event="command_validation_failed"),
)
NO_CHANNEL_VECTOR = Drill(
    number=4,
    name="no-channel-vector",
    what="A command asks for CHANNEL without its vector: it is refused, and no other mode takes its place.",
    act=lambda drill: _act(drill, BlendMode.CHANNEL),
    place="in process",
    follows=FOLLOWS,
)
NO_LOGITS = Drill(
    number=4,
    name="no-logits",
    what="A command asks for CONFIDENCE without logits: it is refused, and no other mode takes its place.",
    act=lambda drill: _act(drill, BlendMode.CONFIDENCE),
    place="in process",
    follows=FOLLOWS,
)
