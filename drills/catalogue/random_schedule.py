"""Drill 29: random schedules of the faults of the other drills, until a time is over."""

from __future__ import annotations

import shutil
import time
from functools import partial

from drills.drill import Drill, Finding
from drills.drill_context import DrillContext
from drills.episodes import carry_out
from drills.fault_schedule import episode
from drills.leaks import Footprint, settled
from drills.observed import Observed

MOST_FAILED = 3
"""The drill ends after this many episodes that failed."""
FAILED = "FAILED: "


def act(drill: DrillContext) -> None:
    """Carry out episodes, each drawn from the seed and its number, until the time is over."""
    seed, soak = drill.config().run.seed, drill.soak
    limit, number = time.monotonic() + soak.seconds, soak.first
    while number == soak.first or (time.monotonic() < limit and not soak.only):
        drawn = episode(seed, number, drill.undisturbed)
        drill.note(f"{drawn} (repeat it: --seed {seed} --episode {number})")
        part, began, before = drill.part(f"episode-{number}"), time.monotonic(), Footprint.now()
        left, missed = carry_out(drawn, part, partial(settled, before))
        drill.take(part, left)
        if missed:
            drill.note(f"{FAILED}episode {number}: {'; '.join(missed)}")
        else:
            drill.note(f"episode {number} passed in {time.monotonic() - began:.1f} s")
            shutil.rmtree(part.folder)
        if sum(note.startswith(FAILED) for note in drill.notes) >= MOST_FAILED:
            break
        number += 1


def _every_episode(found: Observed) -> Finding:
    failed = [note for note in found.context.notes if note.startswith(FAILED)]
    passed = sum(" passed in " in note for note in found.context.notes)
    return Finding("every episode with the same bits and nothing left", "; ".join(failed) or str(passed), not failed)


RANDOM_SCHEDULE = Drill(
    number=29,
    name="random-schedule",
    what="Faults drawn from the seed, run after run until the time is over: the same bits each time, nothing left.",
    act=act,
    follows=(_every_episode,),
)
