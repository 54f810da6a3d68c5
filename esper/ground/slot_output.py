"""The part of a slot's output on which its seeds act: the whole output, or the first item of a tuple.

A recurrent module returns its outputs over time and its last state. An attention module returns its outputs and its
weights. Seeds act on the outputs; the other items are unchanged.
"""

from __future__ import annotations

from typing import Any


def part_of(output: Any) -> Any:  # Any: an output of a user's module
    """Return the part of a slot's output on which seeds act."""
    return output[0] if isinstance(output, tuple) and output else output


def with_part(output: Any, part: Any) -> Any:  # Any: as above
    """Return a slot's output in which `part_of(output)` is replaced by another part. A named tuple is returned in its
    class."""
    if not isinstance(output, tuple):
        return part
    items = (part, *output[1:])
    return type(output)._make(items) if hasattr(output, "_make") else type(output)(items)
