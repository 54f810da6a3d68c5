"""The records in the log of the emergency queue, and their form as bytes.

Each record is one JSON object. The state of the queue is what all records of the log make of it, in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, ValidationError

from esper.leyline.base import Count, Message
from esper.leyline.signals import EmergencySignal

UnixSeconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]


class Record(Message):
    """Base class of the records. `KIND` is the kind of the record in the framed log."""

    KIND: ClassVar[int]

    def encoded(self) -> tuple[int, bytes]:
        """Return kind and payload, as a framed log takes them."""
        return self.KIND, self.model_dump_json().encode()


class Put(Record):
    """A signal was accepted. It is durable before its publisher gets an answer."""

    KIND = 1
    order: Annotated[int, Field(ge=1)]
    """Number of the signal among all accepted ones, from 1."""
    to: tuple[str, ...]
    """The subscribers that get the signal."""
    signal: EmergencySignal


class Attempt(Record):
    """Signals are about to be sent to a subscriber. Not synced: if it is lost, they may be sent once more."""

    KIND = 2
    subscriber: str
    ids: tuple[str, ...]
    at: UnixSeconds


class Acknowledged(Record):
    """A subscriber has made signals durable."""

    KIND = 3
    subscriber: str
    ids: tuple[str, ...]


class Dead(Record):
    """A subscriber did not take a signal after the last attempt: a dead letter."""

    KIND = 4
    subscriber: str
    signal_id: str
    attempts: Count
    why: str


class Rejected(Record):
    """A signal was not accepted. The record is for people; it changes no state."""

    KIND = 5
    signal_id: str
    why: str


class Retry(Record):
    """An attempt failed; the next one is made at `ready_at`. Not synced: if it is lost, the next one comes earlier."""

    KIND = 6
    subscriber: str
    signal_id: str
    attempts: Count
    """Attempts so far."""
    ready_at: UnixSeconds
    why: str


class Dropped(Record):
    """Signals were given up for one subscriber, or with an empty `subscriber` for all of them."""

    KIND = 7
    subscriber: str
    ids: tuple[str, ...]
    why: str


class Revived(Record):
    """The dead letters of signals are to be sent again."""

    KIND = 8
    ids: tuple[str, ...]


class DeliveryState(Message):
    """The delivery of a signal to one subscriber that has not acknowledged it."""

    attempts: Count = 0
    ready_at: UnixSeconds = 0.0
    """Unix time before which no attempt is made."""
    dead: str | None = None
    """Why the delivery is a dead letter. None: it is not one."""


class Held(Record):
    """A signal that waits for subscribers, as a compaction writes it. It replaces what was known of the signal."""

    KIND = 9
    order: Annotated[int, Field(ge=1)]
    signal: EmergencySignal
    waiting: Mapping[str, DeliveryState]


class Summary(Record):
    """The rest of the state, as a compaction writes it, before the `Held` records of the same batch.

    Signals that are not in `held` have no place in the queue any more.
    """

    KIND = 10
    published: Count
    held: tuple[str, ...]
    finished: tuple[tuple[int, str, str], ...]
    """Generation, id and checksum of the last finished signals, the oldest first."""
    attempted: Mapping[str, tuple[UnixSeconds, ...]]
    """Subscriber -> Unix times of its last attempts that count for the cap, the oldest first."""


KINDS: Mapping[int, type[Record]] = {
    one.KIND: one for one in (Put, Attempt, Acknowledged, Dead, Rejected, Retry, Dropped, Revived, Held, Summary)
}


@dataclass(frozen=True)
class Unreadable:
    """A record whose bytes are undamaged and that this program cannot read."""

    reason: str


def decoded(kind: int, payload: bytes) -> Record | Unreadable:
    """Return the record of a frame."""
    if (found := KINDS.get(kind)) is None:
        return Unreadable(f"a record of the emergency queue has no kind {kind}")
    try:
        return found.model_validate_json(payload)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        return Unreadable(f"a {found.__name__} record that is none: {place}: {problem['msg']}")
