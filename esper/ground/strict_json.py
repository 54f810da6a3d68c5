"""JSON that every parser accepts. Infinities and NaN become null. The key `not_finite` has "nan", "inf" or "-inf" for
each such null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

NAMED = "not_finite"
"""Key with the figures that are not finite. Its value is nested like the object, with "nan", "inf" or "-inf" in the
place of each null.
"""


def strict_json(found: Mapping[str, Any], indent: int | None = None) -> str:
    """Return an object as JSON text. A figure that is not finite becomes null; see `NAMED`."""
    named = not_finite(found)
    whole = {**_without(found), NAMED: named} if named else found
    return json.dumps(whole, indent=indent, allow_nan=False)


def not_finite(found: Any) -> Any:  # Any: JSON values
    """Return "nan", "inf" or "-inf" for each number in nested JSON values that is not finite. The result has the same
    nesting. Empty: all values are finite.
    """
    if isinstance(found, float):
        return {} if math.isfinite(found) else str(found)
    if isinstance(found, Mapping):
        named = {str(key): not_finite(value) for key, value in found.items()}
    elif isinstance(found, Sequence) and not isinstance(found, str):
        named = {str(place): not_finite(value) for place, value in enumerate(found)}
    else:
        return {}
    return {key: value for key, value in named.items() if value}


def _without(found: Any) -> Any:  # Any: JSON values
    if isinstance(found, Mapping):
        return {key: _without(value) for key, value in found.items()}
    if isinstance(found, Sequence) and not isinstance(found, str):
        return [_without(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found
