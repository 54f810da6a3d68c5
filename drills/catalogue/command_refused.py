"""Drill 19: a command is forged, altered, replayed, stale or from the future."""

from __future__ import annotations

from drills import expect
from drills.breaking import alter, spec
from drills.drill import Drill, Expectation
from drills.drill_context import DrillContext
from esper.faults import Fault, FaultSpec


def _act(drill: DrillContext, fault: FaultSpec) -> None:
    drill.run(fault)
    drill.resume()


def forged(drill: DrillContext) -> None:
    """Sign the command that grafts the first seed with another key, and resume."""
    _act(drill, spec("kasmina.receive", Fault.FORGE, round=drill.undisturbed.first_graft))


def altered(drill: DrillContext) -> None:
    """Change a field of the signed command that grafts the first seed, and resume."""
    _act(drill, alter("kasmina.receive", {"feature_coverage": 0.5}, round=drill.undisturbed.first_graft))


def replayed(drill: DrillContext) -> None:
    """Let the command that began the tournament take the place of the command that grafts the first seed."""
    _act(drill, spec("kasmina.receive", Fault.REPLAY, round=drill.undisturbed.first_graft))


def stale(drill: DrillContext) -> None:
    """Let Tamiyo's clock be behind by two minutes at the first tournament, and resume."""
    _act(drill, spec("tamiyo.decide", Fault.SKEW, round=drill.undisturbed.first_tournament, seconds=-120))


def future(drill: DrillContext) -> None:
    """Let Tamiyo's clock be ahead by two minutes at the first tournament, and resume."""
    _act(drill, spec("tamiyo.decide", Fault.SKEW, round=drill.undisturbed.first_tournament, seconds=120))


def _refused(reason: str) -> tuple[Expectation, ...]:
    """Return what follows if admission refuses a command for a reason."""
    return (
        expect.exit_codes(3, 0),
        expect.error("CommandRejected", says=reason),
        expect.journalled("CommandRejected"),
        expect.events(command_rejected=1),
        expect.counters({"esper.command.rejections": 1}),
        expect.trace("esper round >> command admit", error="CommandRejected", event="command_rejected"),
        expect.nothing_changed(),
        expect.same_bits(),
    )


COMMAND_FORGED = Drill(
    number=19,
    name="command-forged",
    what="A command is signed with another key: it is refused, and changes nothing.",
    act=forged,
    place="in process",
    follows=_refused("signature_invalid"),
)
COMMAND_ALTERED = Drill(
    number=19,
    name="command-altered",
    what="A field of a command is changed after it was signed: it is refused, and changes nothing.",
    act=altered,
    place="in process",
    follows=_refused("signature_invalid"),
)
COMMAND_REPLAYED = Drill(
    number=19,
    name="command-replayed",
    what="An earlier command takes the place of a new one: its answer is not used a second time, and the run stops.",
    act=replayed,
    place="in process",
    follows=(
        expect.exit_codes(3, 0),
        expect.error("DependencyViolationError", says="instead and answered that"),
        expect.journalled("DependencyViolationError"),
        expect.events(dependency_violation=1),
        expect.counters({"esper.command.rejections": 0}),
        expect.nothing_changed(),
        expect.same_bits(),
    ),
)
COMMAND_STALE = Drill(
    number=19,
    name="command-stale",
    what="The clock of Tamiyo is behind: its command is refused as stale, and changes nothing.",
    act=stale,
    follows=_refused("stale"),
)
COMMAND_FROM_THE_FUTURE = Drill(
    number=19,
    name="command-from-the-future",
    what="The clock of Tamiyo is ahead: its command is refused as from the future, and changes nothing.",
    act=future,
    follows=_refused("future"),
)
