"""Requests from another process to a run: a signal, or an operator's order about the queue. Each request is a file.

RUN/emergency/inbox/NAME.json      a request that waits
RUN/emergency/taken/NAME.json      a request that was carried out
RUN/emergency/refused/NAME.json    the reason why a request was refused

The other process writes the file with `submit`. The process that owns the queue reads the file and carries out the
request. It moves the file to `taken/` when the effect is durable in the queue. If this process refuses the request, it
first writes the reason, then removes the file. If none of the three folders has a file of the request, there is no
answer, because a file was removed or could not be written.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from esper.durable.files import atomic_write, make_folders, read_small
from esper.errors import StoreCorrupt, StoreWriteFailed
from esper.leyline.base import Message
from esper.leyline.signals import EmergencySignal, Level

INBOX, TAKEN, REFUSED = "inbox", "taken", "refused"
MOST_BYTES = 65_536
"""Largest size of a request or of a refusal as a file, in bytes. A larger file in the inbox is refused."""
FIRST = "halt-"
"""If a name in the inbox begins with this text, its file is read before all other files."""

Ids = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=512)], ...], Field(min_length=1, max_length=64)]


class SignalRequest(Message):
    """Publish a signal. The `run_id` of the signal must be the id of the run."""

    kind: Literal["signal"] = "signal"
    signal: EmergencySignal


class RetryRequest(Message):
    """Send the dead letters of these signals again."""

    kind: Literal["retry"] = "retry"
    ids: Ids


class DropRequest(Message):
    """Remove these signals from the queue, even if sinks or the conductor have not received them."""

    kind: Literal["drop"] = "drop"
    ids: Ids
    why: Annotated[str, Field(max_length=1000)]


Request = SignalRequest | RetryRequest | DropRequest
REQUESTS: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])


class Refusal(Message):
    """The reason why a file of the inbox was refused. `error` is the class of the error, and `content` is the beginning
    of the file.
    """

    error: str
    why: str
    refused_at: AwareDatetime
    content: str = ""


def submit(folder: Path, request: Request) -> str:
    """Write a request into the inbox. It is durable on return.

    Args:
        folder: `RUN/emergency`. The inbox is made if it is missing.

    Returns:
        The name of the file, for `waits` and `refusal`.

    Raises: StoreWriteFailed: the request could not be written durably. The owner of the queue may read it nevertheless.
    """
    urgent = isinstance(request, SignalRequest) and request.signal.level is Level.HALT
    name = f"{FIRST if urgent else ''}{request.kind}-{uuid.uuid4().hex}.json"
    make_folders(folder / INBOX)
    atomic_write(folder / INBOX / name, request.model_dump_json().encode())
    return name


def read_request(path: Path) -> bytes:
    """Return the content of a file in the inbox. Raises: OSError: it cannot be read, is not a regular file, or is too
    large."""
    # without O_NONBLOCK, opening a pipe would wait for its writer
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        content = os.read(descriptor, MOST_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MOST_BYTES} bytes")
    return content


def waits(folder: Path, name: str) -> bool:
    """Return whether a request is still in the inbox."""
    return os.path.lexists(folder / INBOX / name)


def withdraw(folder: Path, name: str) -> bool:
    """Remove a request from the inbox. Return false if the request is no longer there."""
    try:
        os.unlink(folder / INBOX / name)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreWriteFailed(str(folder / INBOX / name), "removing a request") from error
    return True


def is_taken(folder: Path, name: str) -> bool:
    """Return whether a request was carried out. Call it when the request has left the inbox."""
    return os.path.lexists(folder / TAKEN / name)


def refusal(folder: Path, name: str) -> Refusal | None:
    """Return why a request was refused. None: the request was not refused. Call it when the request has left the inbox.

    Raises:
        StoreCorrupt: the refusal cannot be read.
    """
    path = folder / REFUSED / name
    try:
        return Refusal.model_validate_json(read_small(path, limit_bytes=MOST_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreCorrupt(str(path), f"cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        raise StoreCorrupt(str(path), "is no refusal that esper wrote") from error
