"""Drill 25: an actor dies more often than the limits of restarts allow."""

from __future__ import annotations

from drills import expect
from drills.breaking import kill
from drills.budgets import EACH_PHASE
from drills.drill import Drill
from drills.drill_context import DrillContext


def too_often(drill: DrillContext) -> None:
    """Kill the trainer at the begin of three rounds, where two deaths are allowed."""
    drill.run(
        *(kill("tolaria.round", round=drill.undisturbed.middle + number) for number in (1, 2, 3)),
        settings={"supervision.deaths": 2},
    )
    drill.resume()


def in_place(drill: DrillContext) -> None:
    """Kill the trainer at the begin of a round, and the process that takes its place at the begin of the same round."""
    drill.run(
        *(kill("tolaria.round", round=drill.undisturbed.middle, incarnation=number) for number in (1, 2)),
        settings={"supervision.without_progress": 2},
    )
    drill.resume()


RESTARTS_EXCEEDED = Drill(
    number=25,
    name="restarts-exceeded",
    what="The trainer dies once more than allowed: the run stops with the error, and a resume has the same bits.",
    act=too_often,
    follows=(
        expect.exit_codes(3, 0),
        expect.error("RestartIntensityExceeded", cause="TrainerRankLost"),
        expect.restarted("tolaria", "tolaria"),
        expect.counters({"esper.actor.restarts": 2}),
        EACH_PHASE,
        expect.redone(rounds=3),
        expect.same_bits(),
    ),
)
NO_PROGRESS = Drill(
    number=25,
    name="no-progress",
    what="The trainer dies again before a new fence: the run stops, and never restarts without end.",
    act=in_place,
    follows=(
        expect.exit_codes(3, 0),
        expect.error("RestartIntensityExceeded", cause="TrainerRankLost"),
        expect.restarted("tolaria"),
        expect.counters({"esper.actor.restarts": 1}),
        expect.redone(rounds=2),
        expect.same_bits(),
    ),
)
