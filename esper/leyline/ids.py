"""How things are named: ids follow from what they name, so that a step done again makes the same ids."""

from __future__ import annotations

import uuid
from enum import StrEnum


class Purpose(StrEnum):
    """What an id names."""

    DECISION = "decision"
    COMMAND = "command"
    NONCE = "nonce"
    SEED = "seed"
    REPORT = "report"


def new_run_id() -> str:
    """A random id for a run; nothing that affects weights, names, order or random streams may depend on it."""
    return str(uuid.uuid4())


def derive_id(run_id: str, purpose: Purpose, *, fence: int, step: int, slot: str = "", ordinal: int = 0) -> str:
    """The id of one thing of a run: `uuid5(run, purpose, fence, step, slot, ordinal)`.

    Source: RFC 9562, section 5.5 (name-based UUID, SHA-1).
    """
    return str(uuid.uuid5(uuid.UUID(run_id), f"{purpose}/{fence}/{step}/{slot}/{ordinal}"))
