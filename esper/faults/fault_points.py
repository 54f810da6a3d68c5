"""The names of the fault points, and what a process knows when it passes each of them."""

NOTHING, ROUND, ROUND_AND_STEP = frozenset[str](), frozenset({"round"}), frozenset({"round", "step"})

POINTS = {
    "conductor.adoption_after": ROUND,
    "conductor.adoption_before": ROUND,
    "conductor.adoption_journaled": ROUND,
    "conductor.adoption_snapshot": ROUND,
    "conductor.begin": NOTHING,
    "conductor.commit": ROUND,
    "conductor.end": NOTHING,
    "conductor.fence": ROUND,
    "conductor.open": NOTHING,
    "conductor.restore": ROUND,
    "conductor.resume": NOTHING,
    "conductor.rollback": ROUND,
    "conductor.start": NOTHING,
    "conductor.supersede": NOTHING,
    "emergency.pending": NOTHING,
    "emergency.publish": NOTHING,
    "emergency.start": NOTHING,
    "kasmina.adoption_snapshot": NOTHING,
    "kasmina.evidence": ROUND,
    "kasmina.receive": ROUND,
    "kasmina.start": NOTHING,
    "kasmina.step": frozenset({"step"}),
    "tamiyo.command": ROUND,
    "tamiyo.decide": ROUND,
    "tamiyo.start": NOTHING,
    "tolaria.adoption_restored": ROUND,
    "tolaria.apply": NOTHING,
    "tolaria.round": ROUND_AND_STEP,
    "tolaria.save": ROUND,
    "tolaria.start": NOTHING,
    "tolaria.step": ROUND_AND_STEP,
}
"""The values that a process knows when it passes each fault point: `round`, `step`, both or neither. The part of the
name before the dot is the role of the process that passes the point.
"""

ADOPTION = frozenset(name for name in POINTS if ".adoption_" in name)
"""Points at the adoption of a fork. No process passes them in a run that adopts no fork."""


def possible(adopts: bool) -> set[str]:
    """Return the points that the processes of a run pass.

    Args:
        adopts: True: the run adopts forks (growth.entry).
    """
    return {name for name in POINTS if adopts or name not in ADOPTION}
