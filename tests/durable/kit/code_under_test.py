"""The modules of esper/durable and the emergency queue as one bundle, real or with a mutation in their source. It tests
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from mutating import Changes, mutated_modules

DURABLE = ("files", "log_format", "log", "segments", "streams")
QUEUE = ("records", "queue_state", "schedule", "reserve", "reading", "queue")
MODULES = (*(f"esper.durable.{name}" for name in DURABLE), *(f"esper.emergency.{name}" for name in QUEUE))
"""In the order in which they import each other."""


@dataclass(frozen=True)
class Code:
    """One version of the modules; every check takes one."""

    files: ModuleType
    log_format: ModuleType
    log: ModuleType
    segments: ModuleType
    streams: ModuleType
    records: ModuleType
    queue_state: ModuleType
    schedule: ModuleType
    reserve: ModuleType
    reading: ModuleType
    queue: ModuleType


def mutated(changes: Changes) -> Code:
    """The modules with texts of their source replaced; see `mutated_modules`."""
    return Code(**mutated_modules(MODULES, changes))


REAL = mutated({})
