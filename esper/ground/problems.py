"""The problems that pydantic found in an input, in plain words, for a message of one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

PLAIN = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be {le} or less",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "too_short": "must have {min_length} or more entries, not {actual_length}",
    "too_long": "must have {max_length} or fewer entries, not {actual_length}",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have {max_length} or fewer characters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "missing": "is missing",
    "union_tag_invalid": "{discriminator} must be {expected_tags}",
    "union_tag_not_found": "{discriminator} is missing",
    "extra_forbidden": "is not known",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "is_instance_of": "must be a {class}",
    "dict_type": "must be a table",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "string_type": "must be a text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number with fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
}
"""What the input must be, by pydantic's name of a kind of problem. pydantic fills in the figures in braces."""


@dataclass(frozen=True)
class Problem:
    """One problem of an input. It consists of the path of the field, the message, and the value of the field."""

    place: tuple[str | int, ...]
    message: str
    kind: str
    value: object

    def __str__(self) -> str:
        """Return the path of the field, joined by dots, and the message. If the whole input is wrong, return the
        message alone."""
        where = ".".join(map(str, self.place))
        return f"{where}: {self.message}" if where else self.message


def first_problem(error: ValidationError, within: str = "") -> Problem:
    """Return the first problem that pydantic found. Its message begins with a small letter.

    Args:
        within: The name of the whole input. It becomes the first part of the path.
    """
    return problems(error, within)[0]


def problems(error: ValidationError, within: str = "") -> list[Problem]:
    """Return all problems that pydantic found, at least one. The arguments are the same as for `first_problem`."""
    return [
        Problem((*filter(None, [within]), *one["loc"]), _in_words(one), one["type"], one["input"])
        for one in error.errors(include_url=False)
    ]


def _in_words(first: Any) -> str:  # Any: an `ErrorDetails` of pydantic's core
    """Return what the input must be. If the kind of problem is not in `PLAIN`, return the message of pydantic or of the
    validator.
    """
    if first["type"] in PLAIN:
        figures = first["ctx"].items() if "ctx" in first else ()
        return PLAIN[first["type"]].format(**{name: _figure(value) for name, value in figures})
    message: str = first["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _figure(value: object) -> object:
    """Return a whole number without the `.0` of a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
