"""Drill 20: a manager of forks and the registry of Kasmina are killed in the stages of a seed."""

from __future__ import annotations

from drills import expect
from drills.breaking import kill
from drills.budgets import EACH_PHASE
from drills.drill import Drill
from drills.drill_context import DrillContext


def act(drill: DrillContext) -> None:
    """Kill the manager in a fork's step, and Kasmina where a seed enters SHADOWING and FOSSILIZED."""
    moments = drill.undisturbed
    drill.run(
        kill("kasmina.step"),
        kill("kasmina.receive", round=moments.first_entry("SHADOWING")),
        kill("kasmina.receive", round=moments.first_entry("FOSSILIZED")),
    )


MANAGER_KILLED = Drill(
    number=20,
    name="manager-killed",
    what="A manager is killed while a fork trains, and Kasmina in later stages of a seed: no seed is lost or changed.",
    act=act,
    follows=(
        expect.exit_codes(0),
        expect.restarted("manager-0", "kasmina", "kasmina"),
        expect.replaced_alone("manager-0"),
        expect.counters({"esper.actor.restarts": 3}),
        EACH_PHASE,
        expect.redone(rounds=2),
        expect.same_bits(),
    ),
)
