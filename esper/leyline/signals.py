"""Types of emergency signals, which any part of a run may send."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, model_validator

from esper.leyline.base import LARGEST_INT, GrownMessage, is_utf8

MOST_BYTES = 24 * 2**10
"""Largest size of a signal as JSON, in bytes."""

_JSON_BYTES = 1024
"""The JSON of a signal without its texts and attributes is smaller than this, in bytes."""
MOST_TEXT = 512
"""Largest number of characters of an attribute's text."""


def _bounded(value: str | int | float | bool) -> str | int | float | bool:
    """Raises: ValueError: the value of an attribute is too long, too large, not finite, or not UTF-8."""
    if isinstance(value, str) and len(value) > MOST_TEXT:
        raise ValueError(f"use at most {MOST_TEXT} characters")
    if isinstance(value, str) and not is_utf8(value):
        raise ValueError("it is not UTF-8 text")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("use a finite number")
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        raise ValueError(f"use at most {LARGEST_INT}")
    return value


AttributeName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Attribute = Annotated[str | int | float | bool, AfterValidator(_bounded)]


_SORTED = json.JSONEncoder(sort_keys=True)


class Level(IntEnum):
    """Urgency of a signal; higher levels are delivered first. HALT stops training at the next step boundary."""

    NOTICE = 1
    ELEVATED = 2
    CONSERVATIVE = 3
    HALT = 4


class EmergencySignal(GrownMessage):
    """One signal; make a signal by `sealed`. A repeated `signal_id` is the same signal and has no further effect."""

    LATER: ClassVar[frozenset[str]] = frozenset({"attributes", "monotonic_ns", "checksum"})

    signal_id: Annotated[str, Field(min_length=1, max_length=512)]
    run_id: Annotated[str, Field(max_length=512)]
    generation: Annotated[int, Field(ge=0, le=2**63 - 1)]
    level: Level
    origin: Annotated[str, Field(max_length=512)]
    """Role of the process that sends the signal."""
    reason: Annotated[str, Field(max_length=4096)]
    issued_at: AwareDatetime
    traceparent: Annotated[str, Field(max_length=512)] = ""
    attributes: Annotated[Mapping[AttributeName, Attribute], Field(max_length=32)] = {}
    """Details for people and for receivers outside the run; esper does not interpret them."""
    monotonic_ns: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Monotonic clock of the sender's machine when the signal was made, in nanoseconds. 0: not known."""
    checksum: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """SHA-256 of all other fields, in hexadecimal. Empty: the signal was not made by `sealed`."""

    @classmethod
    def sealed(cls, **fields: Any) -> Self:  # Any: the fields of the class
        """Make a signal from all its fields except `checksum`, which is computed. Raises: ValidationError."""
        made = cls(**fields)
        return made.model_copy(update={"checksum": made.content_sha256()})

    def content_sha256(self) -> str:
        """Return the SHA-256 of all fields except `checksum`, in hexadecimal."""
        return self.json_and_sha256()[1]

    def json_and_sha256(self) -> tuple[str, str]:
        """Return all fields as JSON in ASCII, and the SHA-256 of all fields except `checksum`, in hexadecimal. One call
        for both is faster than two, because the text of the fields is made once.
        """
        content = self.model_dump(mode="json", exclude={"checksum"})
        text = _SORTED.encode(content)
        return f'{text[:-1]}, "checksum": "{self.checksum}"}}', hashlib.sha256(text.encode()).hexdigest()

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        """Raises: ValueError: the signal is larger than `MOST_BYTES`."""
        texts = (self.signal_id, self.run_id, self.origin, self.reason, self.traceparent)
        characters = sum(map(len, texts)) + sum(len(name) + len(str(value)) for name, value in self.attributes.items())
        if _JSON_BYTES + 6 * characters <= MOST_BYTES:  # JSON needs at most 6 bytes for a character
            return self
        size = len(self.model_dump_json().encode())
        if size > MOST_BYTES:
            raise ValueError(f"the signal has {size} bytes as JSON; use at most {MOST_BYTES}")
        return self
