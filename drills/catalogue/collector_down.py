"""Drill 27: the collector of telemetry is down."""

from __future__ import annotations

from drills import expect
from drills.collectors import SETTINGS, ReadsLosses, collector_down
from drills.drill import Drill
from drills.drill_context import DrillContext


def _act(drill: DrillContext, *, silent: bool) -> None:
    """Run with a collector that is down, and read at its end, and after it, how many spans were lost."""
    with collector_down(silent=silent):
        progress = ReadsLosses()
        drill.run(progress=progress, settings=SETTINGS)
        drill.spans_lost, drill.spans_lost_in_all = progress.lost, progress.in_all


FOLLOWS = (
    expect.exit_codes(0),
    expect.spans_lost(),
    expect.counters({"esper.spans.lost": expect.AtLeast(1)}),
    expect.events(),
    expect.same_bits(),
)
COLLECTOR_REFUSES = Drill(
    number=27,
    name="collector-refuses",
    what="The collector of telemetry refuses connections: training is not disturbed, and each lost span is counted.",
    act=lambda drill: _act(drill, silent=False),
    place="in process",
    follows=FOLLOWS,
)
COLLECTOR_SILENT = Drill(
    number=27,
    name="collector-silent",
    what="The collector of telemetry never answers: training is not disturbed, and each lost span is counted.",
    act=lambda drill: _act(drill, silent=True),
    place="in process",
    follows=FOLLOWS,
)
