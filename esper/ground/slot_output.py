"""The part of a slot's output that its seeds act on: the output itself, or the first item of a tuple. Imports nothing.

A recurrent module returns its outputs over time and its last state, an attention module its outputs and its weights.
The seeds act on the outputs; the other items pass unchanged.
"""

from __future__ import annotations

from typing import Any


def part_of(output: Any) -> Any:  # Any: whatever a module of the user returns
    """Return the part of a slot's output that seeds act on."""
    return output[0] if isinstance(output, tuple) and output else output


def with_part(output: Any, part: Any) -> Any:  # Any: as above
    """Return a slot's output with another part in the place of `part_of(output)`; named tuples keep their class."""
    if not isinstance(output, tuple):
        return part
    items = (part, *output[1:])
    return type(output)._make(items) if hasattr(output, "_make") else type(output)(items)
