"""Base classes of messages and config tables. Instances are frozen and strict; unknown fields are refused."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from esper.errors import ConfigError
from esper.ground.problems import first_problem


class Message(BaseModel):
    """A value that is passed between components or processes. It is frozen. Unknown fields and undeclared types are
    refused."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        ser_json_inf_nan="constants",
        ser_json_bytes="base64",
        val_json_bytes="base64",
    )


IN_PYTHON = {
    "missing": "is missing; give it",
    "model_type": "must be an object of the field's class",
    "tuple_type": "must be a tuple",
    "dict_type": "must be a dict",
    "bool_type": "must be True or False",
}
"""What a field must be, in the words of Python instead of TOML, by pydantic's name of a kind of problem."""


class PublicMessage(Message):
    """A message that users make, too. Its constructor raises one of esper's errors.

    Raises:
        ConfigError: a field is missing, unknown or wrong. The error names the class, the field and the mend.
    """

    def __init__(self, **fields: Any) -> None:  # Any: the fields of the class
        try:
            super().__init__(**fields)
        except ValidationError as error:
            first, mine = first_problem(error), type(self)
            field = ".".join(map(str, (mine.__name__, *first.place)))
            mend = ({first.kind: first.message} | IN_PYTHON)[first.kind]
            if len(first.place) == 1 and first.kind == "extra_forbidden":
                mend = f"{mend}; the fields are {', '.join(mine.model_fields)}"
            raise ConfigError(field, None if first.kind == "missing" else first.value, mend) from error

    # pydantic calls a constructor with this mark only for `Class(...)`. So code that validates JSON or another value
    # still gets a ValidationError.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class GrownMessage(Message):
    """A message to which later versions added fields. The JSON of a message leaves out an added field that has its
    default value. So the JSON and the digest of a message change only if the added field is used.
    """

    LATER: ClassVar[frozenset[str]]
    """Names of the fields that were added after the first version."""

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:  # Any: plain values
        told: dict[str, Any] = handler(self)
        for name, default in _later_defaults(type(self)):
            if getattr(self, name) == default:
                told.pop(name, None)
        return told


@cache
def _later_defaults(kind: type[GrownMessage]) -> tuple[tuple[str, Any], ...]:  # Any: the default of any field
    """Return the added fields of a class with their default values."""
    fields = kind.model_fields
    return tuple((name, fields[name].get_default(call_default_factory=True)) for name in sorted(kind.LATER))


LARGEST_INT = 2**53 - 1
"""Largest integer in a config. JSON readers that store numbers as floats read smaller integers exactly."""

SMALLEST_FLOAT, LARGEST_FLOAT = 1e-100, 1e100
"""Bounds of floats in the config. Within these bounds, products and quotients of two floats are finite, and so are
products and quotients of a float and a count or size.
"""
Count = Annotated[int, Field(ge=0)]
"""A count, 0 or more."""
PositiveInt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=1e8)]
"""A waiting time in seconds, at most three years. The timeouts of Python and Ray overflow at a few hundred years."""


def is_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8, as JSON requires. A file name may contain bytes that are not
    UTF-8."""
    return not any("\ud800" <= one <= "\udfff" for one in text)


class Settings(BaseModel):
    """A table of the config. A valid value that is written to `run.json` and read back is unchanged."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_kept(cls, value: object) -> object:
        """Raises: ValueError: JSON or a file name cannot contain the value, or the value is out of bounds."""
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
