"""Drills 5 and 6: a fallback mark in a command, a fallback of a seed in the host, and a layer that a seed needs and the
host does not have.
"""

from __future__ import annotations

from drills import expect
from drills.breaking import alter
from drills.drill import Drill
from drills.drill_context import DrillContext

GHOST = "no.such.layer"
OTHER_DTYPE = "torch.complex64"
"""A type of outputs that no slot has."""


def marked(drill: DrillContext) -> None:
    """Let Tamiyo mark the command that grafts the first seed."""
    drill.run(alter("tamiyo.command", {"fallback_marks": ["drill"]}, round=drill.undisturbed.first_graft))


def ran_elsewhere(drill: DrillContext) -> None:
    """Let the trainer observe another type of output of the seeds at the fence of the last gate of the first seed."""
    fence = drill.undisturbed.first_entry("FOSSILIZED")
    drill.run(alter("kasmina.evidence", {"output_dtype": OTHER_DTYPE}, round=fence))


def mesh_incomplete(drill: DrillContext) -> None:
    """Let the command that grafts the first seed require a layer that the host does not have."""
    drill.run(alter("tamiyo.command", {"mesh_host_layers": [GHOST]}, round=drill.undisturbed.first_graft))


FALLBACK_MARKED = Drill(
    number=5,
    name="fallback-marked",
    what="A command has a fallback mark: its seed never gets into the host, and the run goes on.",
    act=marked,
    place="in process",
    follows=(
        expect.exit_codes(0),
        expect.culled("G2", "fallback_requested"),
        expect.events(tamiyo_fallback_requested=1, diverges=True),
        expect.counters({"esper.fallbacks": 1}),
    ),
)
FALLBACK_STATUS = Drill(
    number=5,
    name="fallback-status",
    what="A seed ran in another type than asked: G4 refuses its fallback status, and the seed is culled.",
    act=ran_elsewhere,
    place="in process",
    follows=(
        expect.exit_codes(0),
        expect.culled("G4", "fallback_status"),
        expect.events(fallback_status_rejected=1, diverges=True),
        expect.counters({"esper.fallbacks": 1}),
    ),
)
MESH_INCOMPLETE = Drill(
    number=6,
    name="mesh-incomplete",
    what="A seed requires a layer that the host does not have: G3 culls the seed.",
    act=mesh_incomplete,
    place="in process",
    follows=(
        expect.exit_codes(0),
        expect.culled("G3", "mesh_incomplete"),
        expect.events(mesh_coverage_missing=1, diverges=True),
        expect.counters({"esper.fallbacks": 0}),
    ),
)
