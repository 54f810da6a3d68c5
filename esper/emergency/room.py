"""Limits the bytes that a signal may need in the log of the queue, so that the queue can read each log that it has
written.

The log has three parts: the held signals, at most `MOST_HELD_BYTES`; the finished ids and the times of attempts, at
most 32 MiB; and the records since the last compaction, at most `GROWTH_BYTES`. During a compaction the log exists
twice, and a crash leaves both copies. `reading.MOST_LOG_BYTES` is larger than three copies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from esper.leyline.signals import EmergencySignal

MOST_HELD_BYTES = 64 * 2**20
"""Largest number of bytes that all held signals may need."""
HALT_BYTES = 2 * 2**20
"""Number of bytes of `MOST_HELD_BYTES` that only HALT signals may use. 16 signals of the largest size need fewer bytes.
"""
GROWTH_BYTES = 16 * 2**20
"""Largest number of bytes by which a log grows until it is compacted. If records have only a few bytes, their number
also stays below its limit."""
REASON_BYTES = 512
"""Largest size of the reason of a dead letter as JSON, in bytes."""
_FIELDS_BYTES = 128
"""A record or the state of a delivery needs fewer bytes, if the texts in it are not counted."""


def needed_bytes(signal: EmergencySignal, subscribers: Iterable[str]) -> int:
    """Return the largest number of bytes that a held signal can need. A signal needs the most bytes if it is a dead
    letter for each subscriber.
    """
    deliveries = sum(_FIELDS_BYTES + _json_bytes(name) + REASON_BYTES for name in subscribers)
    return _FIELDS_BYTES + len(signal.model_dump_json(ensure_ascii=True)) + _json_bytes(signal.signal_id) + deliveries


def cut(why: str) -> str:
    """Return a beginning of a reason that needs at most `REASON_BYTES` bytes as JSON."""
    why = why[:REASON_BYTES]
    while (over := _json_bytes(why) - REASON_BYTES) > 0:
        why = why[: -max(1, over // 12)]  # a character needs at most 12 bytes
    return why


def _json_bytes(text: str) -> int:
    return len(json.dumps(text))
