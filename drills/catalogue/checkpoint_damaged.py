"""Drill 13: the last checkpoints are damaged in three ways."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

from drills import expect
from drills.damaging import Hostile, flip, truncate
from drills.drill import Drill
from drills.drill_context import DrillContext
from drills.stop_at_fence import StopAtFence
from esper.archive.history import look_at
from esper.archive.run_directory import checkpoints_folder
from esper.errors import DrillImpossible


def act(drill: DrillContext) -> None:
    """Stop at three fences, damage the last checkpoint in another way each time, and resume."""
    trap = drill.folder / "trap"
    damages: tuple[Callable[[Path], object], ...] = (
        flip,
        truncate,
        lambda file: file.write_bytes(pickle.dumps(Hostile(trap))),
    )
    middle = drill.undisturbed.middle
    watch = StopAtFence(middle)
    drill.run(progress=watch, drain=watch.drain)
    for number, damage in enumerate(damages, start=1):
        damage(checkpoints_folder(drill.run_dir) / look_at(drill.run_dir).commits[-1].file)
        watch = StopAtFence(middle + number)
        last = number == len(damages)
        drill.resume() if last else drill.resume(progress=watch, drain=watch.drain)
    if trap.exists():
        raise DrillImpossible("the hostile pickle was executed")


CHECKPOINT_DAMAGED = Drill(
    number=13,
    name="checkpoint-damaged",
    what="The last checkpoint has a flipped bit, is cut, or is a hostile pickle: it is put aside, never loaded.",
    act=act,
    place="in process",
    follows=(
        expect.exit_codes(143, 143, 143, 0),
        expect.events(checkpoint_rejected=3),
        expect.put_aside(3),
        expect.redone(rounds=3),
        expect.same_bits(),
    ),
)
