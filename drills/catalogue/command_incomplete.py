"""Drill 4: a command lacks an id, its mesh, or what its blend mode needs."""

from __future__ import annotations

from collections.abc import Callable

from drills import expect
from drills.altered_policy import AlteredPolicy
from drills.breaking import alter
from drills.drill import Drill
from drills.drill_context import DrillContext
from esper.leyline.commands import BlendMode, BlendSpec
from esper.leyline.decisions import Decision


def _blended(mode: BlendMode) -> Callable[[Decision], Decision]:
    def change(decision: Decision) -> Decision:
        blend = BlendSpec(mode=mode, ramp_steps=10)
        return decision.model_copy(update={"blend": blend})

    return change


def _blend(drill: DrillContext, mode: BlendMode) -> None:
    """Ask for a blend mode without what it needs, at the fence of the first tournament."""
    fence = drill.undisturbed.first_tournament
    drill.run(policy=AlteredPolicy(drill.config().growth, fence, _blended(mode)))


def _leave_out(drill: DrillContext, **fields: object) -> None:
    """Let Tamiyo sign a command without a field, at the fence of the first graft, and resume."""
    drill.run(alter("tamiyo.command", fields, round=drill.undisturbed.first_graft))
    drill.resume()


FOLLOWS = (
    expect.journalled("DependencyViolationError"),
    expect.events(command_validation_failed=1),
    expect.counters({"esper.command.rejections": 1}),
    expect.trace("esper round >> command admit", error="DependencyViolationError", event="command_validation_failed"),
    expect.nothing_changed(),
)
NO_CHANNEL_VECTOR = Drill(
    number=4,
    name="no-channel-vector",
    what="A command asks for CHANNEL without its vector: it is refused, and no other mode takes its place.",
    act=lambda drill: _blend(drill, BlendMode.CHANNEL),
    place="in process",
    follows=(expect.exit_codes(3), expect.error("DependencyViolationError", says="channels missing"), *FOLLOWS),
)
NO_LOGITS = Drill(
    number=4,
    name="no-logits",
    what="A command asks for CONFIDENCE without logits: it is refused, and no other mode takes its place.",
    act=lambda drill: _blend(drill, BlendMode.CONFIDENCE),
    place="in process",
    follows=(expect.exit_codes(3), expect.error("DependencyViolationError", says="confidence_logits"), *FOLLOWS),
)
NO_COMMAND_ID = Drill(
    number=4,
    name="no-command-id",
    what="A signed command has no id: it is refused, and no id is invented for it.",
    act=lambda drill: _leave_out(drill, command_id=""),
    place="in process",
    follows=(
        expect.exit_codes(3, 0),
        expect.error("DependencyViolationError", says="command id missing"),
        *FOLLOWS,
        expect.same_bits(),
    ),
)
NO_MESH = Drill(
    number=4,
    name="no-mesh",
    what="A signed command has no mesh of host layers: it is refused, and no mesh is invented for it.",
    act=lambda drill: _leave_out(drill, mesh_host_layers=[]),
    place="in process",
    follows=(
        expect.exit_codes(3, 0),
        expect.error("DependencyViolationError", says="mesh_host_layers missing"),
        *FOLLOWS,
        expect.same_bits(),
    ),
)
