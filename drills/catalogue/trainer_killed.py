"""Drill 11: the trainer's process is killed in every phase of a round."""

from __future__ import annotations

from drills import expect
from drills.breaking import kill
from drills.budgets import EACH_PHASE
from drills.drill import Drill
from drills.drill_context import DrillContext


def act(drill: DrillContext) -> None:
    """Kill the trainer at the begin of a round, in a step, in a graft and in a checkpoint, in one run."""
    moments = drill.undisturbed
    drill.run(
        kill("tolaria.apply"),
        kill("tolaria.step", step=moments.middle_step),
        kill("tolaria.round", round=moments.middle + 2),
        kill("tolaria.save", round=moments.middle + 3),
        settings={"supervision.deaths": 4},
    )


TRAINER_KILLED = Drill(
    number=11,
    name="trainer-killed",
    what="The trainer is killed in a graft, a step, a round and a checkpoint: each time it is restored to a fence.",
    act=act,
    follows=(
        expect.exit_codes(0),
        expect.restarted("tolaria", "tolaria", "tolaria", "tolaria"),
        expect.events(trainer_rank_lost=4, actor_restarted=4),
        expect.recovered(4),
        expect.counters({"esper.actor.restarts": 4}),
        EACH_PHASE,
        expect.redone(rounds=4),
        expect.same_bits(),
    ),
)
