"""The form in which sinks send a signal: one JSON object."""

from __future__ import annotations

import json

from esper.leyline.signals import EmergencySignal


def as_json(signal: EmergencySignal) -> str:
    """Return the fields of a signal as JSON in one line, with the name of the level instead of its number."""
    return json.dumps({**signal.model_dump(mode="json"), "level": signal.level.name}, allow_nan=False)
