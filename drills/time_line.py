"""The time line of a drill: its runs as stretches, its severe events as moments. Seconds count from its begin."""

from __future__ import annotations

from datetime import datetime

from drills.observed import Observed
from drills.report import Mark, Span
from esper.ground.exit_codes import DONE


def spans(found: Observed) -> tuple[Span, ...]:
    """Return a stretch for each run and resume."""
    return tuple(
        Span(
            one.began_s,
            one.began_s + one.wall_s,
            f"{one.what}: exit code {one.exit_code}" + (f", {type(one.error).__name__}" if one.error else ""),
            one.exit_code == DONE,
        )
        for one in found.attempts
    )


def marks(found: Observed) -> tuple[Mark, ...]:
    """Return a moment for each severe event."""
    began = found.context.began_at
    return tuple(
        Mark(datetime.fromisoformat(event["time"]).timestamp() - began, event["name"]) for event in found.events
    )
