"""The bases of every message between rooms and of every table of the config: frozen, strict, nothing unknown."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Message(BaseModel):
    """A value that crosses a room or a process. Frozen; unknown fields and loose types are refused."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        ser_json_inf_nan="constants",
        ser_json_bytes="base64",
        val_json_bytes="base64",
    )


LARGEST_INT = 2**53 - 1
"""A JSON reader that keeps numbers as floats keeps every integer up to this one."""

SMALLEST_FLOAT, LARGEST_FLOAT = 1e-100, 1e100
"""Products and quotients of such numbers with counts, sizes and each other are finite."""
Count = Annotated[int, Field(ge=0)]
"""How many of something."""
PositiveInt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=1e8)]
"""A time to wait, up to three years: the waits of Python and of Ray overflow at some hundred years."""


def is_utf8(text: str) -> bool:
    """The text can be written as UTF-8, as JSON needs it; a file name of other bytes cannot."""
    return not any("\ud800" <= one <= "\udfff" for one in text)


class Settings(BaseModel):
    """A table of the config. Each value that it takes can be written to `run.json` and read back as the same value."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_kept(cls, value: object) -> object:
        """Raises: ValueError: it could not be read back from JSON, computed with, or used in the name of a file."""
        if isinstance(value, int) and abs(value) > LARGEST_INT:
            raise ValueError(f"use at most {LARGEST_INT}")
        if isinstance(value, float) and value and not SMALLEST_FLOAT <= abs(value) <= LARGEST_FLOAT:
            raise ValueError(f"use a size between {SMALLEST_FLOAT} and {LARGEST_FLOAT}")
        if isinstance(value, dict | tuple | list):
            for one in value.items() if isinstance(value, dict) else value:
                cls._can_be_kept(one)
        if isinstance(value, str):
            if "\0" in value:
                raise ValueError("leave out the NUL character")
            if not is_utf8(value):
                raise ValueError("it is not UTF-8 text")
        return value
