"""Stores each vector of a CHANNEL blend once in the JSON of the registry's state.

A vector has up to 4,096 entries, and a tournament repeats it in its command, its plans and the records of its seeds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

FIELD, TABLE = "channels", "vectors"
"""Name of the field with the vector in a blend, and name of the table with all vectors in the JSON. The table maps
digest -> vector."""


def packed(text: str) -> str:
    """Return the JSON with a digest instead of each vector, and with a table of the vectors.

    A JSON text without a vector is not changed.
    """
    if f'"{FIELD}":[' not in text:
        return text
    table: dict[str, list[float]] = {}

    def name(vector: Any) -> Any:  # Any: plain values
        if not isinstance(vector, list):
            return vector
        digest = hashlib.sha256(json.dumps(vector).encode()).hexdigest()
        table[digest] = vector
        return digest

    state = _replaced(json.loads(text), name)
    return json.dumps({**state, TABLE: table}, separators=(",", ":"))


def unpacked(text: str) -> str:
    """Return the JSON with each digest replaced by its vector. Raises: ValueError: the table lacks a vector."""
    if f'"{TABLE}"' not in text:
        return text
    state = json.loads(text)
    if not isinstance(state, dict) or TABLE not in state:
        return text
    table = state.pop(TABLE)
    if not isinstance(table, dict):
        raise ValueError(f"{TABLE} is no table")

    def vector(digest: Any) -> Any:  # Any: plain values
        if not isinstance(digest, str):
            return digest
        if digest not in table:
            raise ValueError(f"vector {digest} is named but missing")
        return table[digest]

    return json.dumps(_replaced(state, vector), separators=(",", ":"))


def _replaced(value: Any, change: Callable[[Any], Any]) -> Any:  # Any: plain values
    """Return the value with `change` applied to every field named `FIELD`."""
    if isinstance(value, dict):
        return {key: change(one) if key == FIELD else _replaced(one, change) for key, one in value.items()}
    return [_replaced(one, change) for one in value] if isinstance(value, list) else value
