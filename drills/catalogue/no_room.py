"""Drill 26: the cluster has no room for the actors of the run."""

from __future__ import annotations

from typing import Any

import ray

from drills import expect
from drills.drill import Drill
from drills.drill_context import DrillContext

DEADLINE_S = 20.0
"""Start deadline of actors while another actor holds all CPUs. It must be long enough for the start of the emergency
actor, which needs none.
"""


class Holder:
    """An actor that holds CPUs."""

    def holds(self) -> bool:
        """Return True. The answer shows that the actor is up."""
        return True


def absent(drill: DrillContext) -> None:
    """Ask for as many managers as there are CPUs, beside the trainer, and resume with the managers of the task."""
    cpus = int(ray.cluster_resources()["CPU"])  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    drill.run(settings={"growth.managers": cpus})
    drill.resume(settings={"growth.managers": drill.config().growth.managers})


def taken(drill: DrillContext) -> None:
    """Let another actor hold all CPUs while the run begins, and resume when it is gone."""
    cpus = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    holder: Any = ray.remote(Holder).options(num_cpus=cpus, max_restarts=0).remote()
    try:
        ray.get(holder.holds.remote(), timeout=drill.subject.limit_s)
        drill.run(settings={"ray.start_deadline_s": DEADLINE_S})
    finally:
        ray.kill(holder)
    drill.resume(settings={"ray.start_deadline_s": drill.config().ray.start_deadline_s})


NO_ROOM = Drill(
    number=26,
    name="no-room",
    what="A run asks for more CPUs than there are: it is refused at once, and a resume that asks for fewer ends.",
    act=absent,
    follows=(
        expect.exit_codes(3, 0),
        expect.error("PlacementUnavailable", says="no room: the actors ask for"),
        expect.journalled("PlacementUnavailable"),
        expect.events(),
        expect.same_bits(),
    ),
)
ROOM_TAKEN = Drill(
    number=26,
    name="room-taken",
    what="Another actor holds all CPUs: the run fails within its deadline, and names what is missing.",
    act=taken,
    follows=(
        expect.exit_codes(3, 0),
        expect.error("PlacementUnavailable", says="no room; asked: CPU 1"),
        expect.journalled("PlacementUnavailable"),
        expect.events(),
        expect.same_bits(),
    ),
)
