"""How many bytes a signal may need in the queue's log, so that the queue can read each log that it has written.

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
"""Number of bytes of `MOST_HELD_BYTES` that only HALT signals may use: 16 of the largest signals need fewer."""
GROWTH_BYTES = 16 * 2**20
"""Largest number of bytes by which a log grows until it is compacted. Records of a few bytes stay below the largest
number of records, too."""
REASON_BYTES = 512
"""Largest size of the reason of a dead letter as JSON, in bytes."""
_FIELDS_BYTES = 128
"""Bytes of a record or of a delivery's state, without the texts in it, are fewer."""


def needed_bytes(signal: EmergencySignal, subscribers: Iterable[str]) -> int:
    """Return the largest number of bytes that a held signal can need, if each subscriber has a dead letter of it."""
    deliveries = sum(_FIELDS_BYTES + _json_bytes(name) + REASON_BYTES for name in subscribers)
    return _FIELDS_BYTES + len(signal.model_dump_json(ensure_ascii=True)) + _json_bytes(signal.signal_id) + deliveries


def cut(why: str) -> str:
    """Return the beginning of a reason that needs at most `REASON_BYTES` as JSON."""
    why = why[:REASON_BYTES]
    while (over := _json_bytes(why) - REASON_BYTES) > 0:
        why = why[: -max(1, over // 12)]  # a character needs at most 12 bytes
    return why


def _json_bytes(text: str) -> int:
    return len(json.dumps(text))
