"""Ids of the objects of a run. An id is derived from the place of its object in the run, so a repeated step makes the
same ids.
"""

from __future__ import annotations

import uuid
from enum import StrEnum


class Purpose(StrEnum):
    """Types of objects that have an id."""

    DECISION = "decision"
    COMMAND = "command"
    NONCE = "nonce"
    SEED = "seed"
    REPORT = "report"


def new_run_id() -> str:
    """Return a random id for a run. Weights, names, the order of work and random streams must not depend on the id."""
    return str(uuid.uuid4())


def derive_id(run_id: str, purpose: Purpose, *, fence: int, step: int, slot: str = "", ordinal: int = 0) -> str:
    """Return the id of an object of a run: `uuid5(run, purpose, fence, step, slot, ordinal)`.

    Source: RFC 9562, section 5.5 (name-based UUID, SHA-1).
    """
    return str(uuid.uuid5(uuid.UUID(run_id), f"{purpose}/{fence}/{step}/{slot}/{ordinal}"))
