"""Limits the bytes that a signal may need in the log of the queue, so that the queue can read each log that it has
written.

The log has three parts: the held signals, at most `MOST_HELD_BYTES`; the finished ids and the times of attempts, at
most 32 MiB; and the records since the last compaction, at most `GROWTH_BYTES`. During a compaction the log exists
twice, and a crash leaves both copies. `reading.MOST_LOG_BYTES` is larger than three copies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

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


_ACKNOWLEDGED_BYTES = 28 + len('{"subscriber":,"ids":[]}')
"""Size of an `Acknowledged` record in the log, without the name and the ids."""


class Room:
    """Computes the bytes that a signal needs in the log of a queue with these subscribers."""

    def __init__(self, subscribers: Iterable[str]) -> None:
        names = [_json_bytes(name) for name in subscribers]
        self._receivers = len(names)
        self._acknowledged_bytes = sum(_ACKNOWLEDGED_BYTES + name for name in names)
        self._deliveries_bytes = sum(_FIELDS_BYTES + name + REASON_BYTES for name in names)

    def needed_bytes(self, signal_id: str, signal_json: str) -> int:
        """Return the largest number of bytes that a held signal can need. A signal needs the most bytes if it is a dead
        letter for each subscriber. `signal_json` is the signal as JSON in ASCII.
        """
        return _FIELDS_BYTES + len(signal_json) + _json_bytes(signal_id) + self._deliveries_bytes

    def owed_bytes(self, signal_id: str) -> int:
        """Return the bytes of the records with which all subscribers acknowledge a signal, or a little more."""
        return self._acknowledged_bytes + self._receivers * _json_bytes(signal_id)


def cut(why: str) -> str:
    """Return a beginning of a reason that needs at most `REASON_BYTES` bytes as JSON."""
    why = why[:REASON_BYTES]
    while (over := _json_bytes(why) - REASON_BYTES) > 0:
        why = why[: -max(1, over // 12)]  # a character needs at most 12 bytes
    return why


def _json_bytes(text: str) -> int:
    return len(json.dumps(text))
