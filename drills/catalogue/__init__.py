"""The drills of esper, in the order of their numbers. A row with `needs` waits for a part of esper."""

from __future__ import annotations

from typing import NoReturn

from drills.catalogue.checkpoint_damaged import CHECKPOINT_DAMAGED
from drills.catalogue.collector_down import COLLECTOR_REFUSES, COLLECTOR_SILENT
from drills.catalogue.command_incomplete import NO_CHANNEL_VECTOR, NO_COMMAND_ID, NO_LOGITS, NO_MESH
from drills.catalogue.command_refused import (
    COMMAND_ALTERED,
    COMMAND_FORGED,
    COMMAND_FROM_THE_FUTURE,
    COMMAND_REPLAYED,
    COMMAND_STALE,
)
from drills.catalogue.device_absent import DEVICE_ABSENT
from drills.catalogue.disk_fails import (
    CHECKPOINT_CUT,
    CHECKPOINT_FLIPPED,
    DISK_FULL_CHECKPOINT,
    DISK_FULL_JOURNAL,
    DISK_FULL_QUEUE,
    DISK_FULL_REPORTS,
    DISK_REALLY_FULL,
    DISK_REFUSES,
    JOURNAL_CUT,
    JOURNAL_FLIPPED,
    QUEUE_CUT,
    QUEUE_FLIPPED,
    REPORTS_CUT,
    REPORTS_FLIPPED,
)
from drills.catalogue.driver_killed import DRIVER_KILLED
from drills.catalogue.driver_paused import DRIVER_PAUSED
from drills.catalogue.emergency import EMERGENCY_KILLED, QUEUE_CAPPED, QUEUE_FULL, SINK_DOWN
from drills.catalogue.fallback_rejected import FALLBACK_MARKED, FALLBACK_STATUS, MESH_INCOMPLETE
from drills.catalogue.frozen import EMERGENCY_FROZEN, MANAGER_FROZEN
from drills.catalogue.interrupted import INTERRUPTED
from drills.catalogue.manager_killed import MANAGER_KILLED
from drills.catalogue.no_candidates import NO_CANDIDATES
from drills.catalogue.no_room import NO_ROOM, ROOM_TAKEN
from drills.catalogue.policy_fails import POLICY_FAILS
from drills.catalogue.policy_late import POLICY_LATE, POLICY_LATE_IN_C
from drills.catalogue.random_schedule import RANDOM_SCHEDULE
from drills.catalogue.reports_damaged import REPORTS_DAMAGED
from drills.catalogue.restarts_exceeded import NO_PROGRESS, RESTARTS_EXCEEDED
from drills.catalogue.rollbacks_compared import ROLLBACKS_COMPARED
from drills.catalogue.trainer_killed import TRAINER_KILLED
from drills.drill import Drill
from drills.drill_context import DrillContext
from esper.errors import DrillImpossible


def _waiting(number: int, name: str, what: str, needs: str) -> Drill:
    def impossible(_: DrillContext) -> NoReturn:
        raise DrillImpossible(f"it needs {needs}")

    return Drill(name, what, impossible, (), number=number, needs=needs)


CATALOGUE: tuple[Drill, ...] = (
    POLICY_FAILS,
    POLICY_LATE,
    POLICY_LATE_IN_C,
    NO_CANDIDATES,
    NO_CHANNEL_VECTOR,
    NO_LOGITS,
    NO_COMMAND_ID,
    NO_MESH,
    FALLBACK_MARKED,
    FALLBACK_STATUS,
    MESH_INCOMPLETE,
    QUEUE_CAPPED,
    QUEUE_FULL,
    EMERGENCY_KILLED,
    EMERGENCY_FROZEN,
    SINK_DOWN,
    _waiting(10, "rollback-on-nan", "A NaN in the loss is rolled back from memory.", "the guard of Tolaria"),
    TRAINER_KILLED,
    ROLLBACKS_COMPARED,
    CHECKPOINT_DAMAGED,
    DISK_FULL_CHECKPOINT,
    DISK_FULL_JOURNAL,
    DISK_FULL_REPORTS,
    DISK_FULL_QUEUE,
    DISK_REFUSES,
    DISK_REALLY_FULL,
    CHECKPOINT_FLIPPED,
    CHECKPOINT_CUT,
    JOURNAL_FLIPPED,
    JOURNAL_CUT,
    REPORTS_FLIPPED,
    REPORTS_CUT,
    QUEUE_FLIPPED,
    QUEUE_CUT,
    REPORTS_DAMAGED,
    _waiting(16, "normaliser-flush-fails", "The normaliser cannot be written.", "the learned policy"),
    _waiting(17, "profiler-refused", "The folder of the profiler is missing.", "the profiler"),
    _waiting(18, "loss-on-another-device", "The outputs of the model lie on another device.", "a second device"),
    DEVICE_ABSENT,
    COMMAND_FORGED,
    COMMAND_ALTERED,
    COMMAND_REPLAYED,
    COMMAND_STALE,
    COMMAND_FROM_THE_FUTURE,
    MANAGER_KILLED,
    MANAGER_FROZEN,
    _waiting(21, "rank-hangs", "A rank hangs in a collective call.", "several ranks"),
    _waiting(22, "node-lost", "A node with a rank is lost.", "several nodes"),
    _waiting(23, "network-cut", "The network between two nodes is cut.", "several nodes"),
    DRIVER_KILLED,
    DRIVER_PAUSED,
    RESTARTS_EXCEEDED,
    NO_PROGRESS,
    NO_ROOM,
    ROOM_TAKEN,
    COLLECTOR_REFUSES,
    COLLECTOR_SILENT,
    INTERRUPTED,
    RANDOM_SCHEDULE,
)
"""Every drill of the catalogue."""
