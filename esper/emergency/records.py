"""The records in the log of the emergency queue, and their form as bytes.

Each record is one JSON object. `QueueState` computes the state of the queue from all records, in their order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

from pydantic import Field, ValidationError

from esper.leyline.base import Count, Message
from esper.leyline.signals import EmergencySignal

UnixSeconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]


class Record(Message):
    """Base class of the records. `KIND` is the kind of the record in the framed log."""

    KIND: ClassVar[int]

    def encoded(self) -> tuple[int, bytes]:
        """Return the kind and the payload of the record for a framed log.

        The payload is ASCII, so no text in it looks like the beginning of a record.
        """
        return self.KIND, self.model_dump_json(ensure_ascii=True).encode()


class Put(Record):
    """A signal was accepted. It is durable before its publisher gets an answer."""

    KIND = 1
    order: Annotated[int, Field(ge=1)]
    """Number of the signal among all accepted signals, from 1."""
    to: tuple[str, ...]
    """The subscribers to which the signal must be delivered."""
    signal: EmergencySignal

    def encoded_with(self, signal_json: str) -> tuple[int, bytes]:
        """Like `encoded`, but faster, because the JSON of the signal is known."""
        return self.KIND, f'{{"order":{self.order},"to":{_array(self.to)},"signal":{signal_json}}}'.encode()


@lru_cache(maxsize=8)
def _array(texts: tuple[str, ...]) -> str:
    return json.dumps(texts)


class Attempt(Record):
    """Signals are about to be sent to a subscriber. The record is not synced. If a crash loses the record, the signals
    may be sent once more than is counted.
    """

    KIND = 2
    subscriber: str
    ids: tuple[str, ...]
    at: UnixSeconds


class Acknowledged(Record):
    """A subscriber has received signals and made them durable."""

    KIND = 3
    subscriber: str
    ids: tuple[str, ...]


class Dead(Record):
    """A subscriber did not confirm a signal after the last attempt. The delivery is a dead letter."""

    KIND = 4
    subscriber: str
    signal_id: str
    attempts: Count
    why: str


class Rejected(Record):
    """A signal was not accepted. The record is only for people who read the log. It does not change the state."""

    KIND = 5
    signal_id: str
    why: str


class Retry(Record):
    """An attempt failed, and the next attempt is due at `ready_at`. The record is not synced. If a crash loses the
    record, the next attempt is made earlier.
    """

    KIND = 6
    subscriber: str
    signal_id: str
    attempts: Count
    """Number of attempts so far."""
    ready_at: UnixSeconds
    why: str


class Dropped(Record):
    """Signals are no longer delivered to a subscriber. If `subscriber` is empty, they are no longer delivered to any
    subscriber.
    """

    KIND = 7
    subscriber: str
    ids: tuple[str, ...]
    why: str


class Revived(Record):
    """An operator ordered new attempts for the dead letters of signals."""

    KIND = 8
    ids: tuple[str, ...]


class DeliveryState(Message):
    """The delivery of a signal to one subscriber that has not acknowledged it."""

    attempts: Count = 0
    ready_at: UnixSeconds = 0.0
    """Unix time from which the next attempt may be made."""
    dead: str | None = None
    """Reason of the last failure, if the delivery is a dead letter. None: it is not a dead letter."""


class Held(Record):
    """A signal that subscribers have not acknowledged. A compaction writes it instead of all records of the signal."""

    KIND = 9
    order: Annotated[int, Field(ge=1)]
    signal: EmergencySignal
    waiting: Mapping[str, DeliveryState]


class Summary(Record):
    """The state without the signals in the queue. A compaction writes this record, and then the `Held` records of the
    same batch.

    A signal that is not in `held` is no longer in the queue.
    """

    KIND = 10
    published: Count
    held: tuple[str, ...]
    finished: tuple[tuple[int, str, str], ...]
    """Generation, id and checksum of the last signals that left the queue, the oldest first."""
    attempted: Mapping[str, tuple[UnixSeconds, ...]]
    """Subscriber -> Unix times of its last attempts that count for the cap, the oldest first."""


KINDS: Mapping[int, type[Record]] = {
    one.KIND: one for one in (Put, Attempt, Acknowledged, Dead, Rejected, Retry, Dropped, Revived, Held, Summary)
}


@dataclass(frozen=True)
class Unreadable:
    """A record that this version of esper cannot read, although its bytes are undamaged."""

    reason: str


def decoded(kind: int, payload: bytes) -> Record | Unreadable:
    """Return the record of a frame with this kind and payload."""
    if (found := KINDS.get(kind)) is None:
        return Unreadable(f"a record of the emergency queue has no kind {kind}")
    try:
        return found.model_validate_json(payload)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        return Unreadable(f"a {found.__name__} record that is none: {place}: {problem['msg']}")
