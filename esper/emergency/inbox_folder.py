"""Reads the requests that other processes put into the inbox folder, and passes them to the queue.

Any program that may write into the run directory can put any file into the inbox. So there are limits on the size and
the number of files, only regular files are read, and a file that is not a request is refused with a reason. Nothing in
the inbox or in the folders of the answers can stop the run. A failed change of these folders is a severe event.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from esper.durable.files import make_folders
from esper.emergency.intake import Intake
from esper.emergency.request_answers import Answers
from esper.emergency.requests import (
    FIRST,
    INBOX,
    REFUSED,
    REQUESTS,
    TAKEN,
    Refusal,
    Request,
    RetryRequest,
    SignalRequest,
    read_request,
)
from esper.errors import ConfigError, DependencyViolationError, EmergencyQueueFull, StoreWriteFailed
from esper.ground.clock import Clock
from esper.ground.problems import first_problem
from esper.leyline.signals import Level
from esper.telemetry.events import Severity, severe

MOST_NAMES = 10_000
"""Largest number of names that one call of `names` reads. With this limit, the call takes milliseconds in any folder.
"""
MOST_TAKEN = 64
"""Largest number of names that one call of `names` returns."""
MOST_CONTENT = 4096
"""If a file is refused, at most this number of its bytes are copied into the refusal."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class InboxFolder:
    """The reader of one inbox. Only the thread that calls the queue may call `take`.

    Args:
        folder: `RUN/emergency`. The folder `inbox` in it is made.
        run_id: Id of the run. A signal with the id of another run is refused.

    Raises:
        StoreWriteFailed: the inbox could not be made.
    """

    def __init__(self, folder: Path, intake: Intake, run_id: str, clock: Clock) -> None:
        self._inbox = folder / INBOX
        self._taken, self._refused = Answers(folder / TAKEN), Answers(folder / REFUSED)
        self._intake, self._run_id, self._clock = intake, run_id, clock
        self._stuck: set[str] = set()
        """Names of files that were read and cannot be removed. They are not read again."""
        self._is_readable, self._is_crowded = True, False
        self._entries: os._ScandirIterator[str] | None = None
        """The names that the next call of `names` reads first."""
        make_folders(self._inbox)

    def names(self) -> list[str]:
        """Return the names of some files in the inbox, those of HALT signals first.

        Folders are ignored. Files whose names begin with a dot are ignored, too, because they are still being written.

        An inbox that was removed is made again. This is a severe event. An inbox that cannot be read is also a severe
        event, and no names are returned.

        One call reads at most `MOST_NAMES` names; the next call continues after them. So every file is found after some
        calls, even if the folder has many other entries. If more files are found than can be returned, they are opened
        to find the HALT signals. A severe event reports once that the inbox is crowded.
        """
        try:
            found = self._some()
        except OSError as error:
            self.close()
            self._mend(error)
            return []
        self._is_readable = True
        if len(found) <= MOST_TAKEN:
            return sorted(found, key=lambda name: (not name.startswith(FIRST), name))
        if not self._is_crowded:
            severe("emergency_inbox_crowded", Severity.ERROR, folder=str(self._inbox), files=len(found))
        self._is_crowded = True
        return sorted(found, key=lambda name: (not self._is_halt(name), not name.startswith(FIRST), name))[:MOST_TAKEN]

    def close(self) -> None:
        """End the reading of names. The next call of `names` begins with the first name again."""
        if self._entries is not None:
            self._entries.close()
        self._entries = None

    def _some(self) -> list[str]:
        """Read the next names, and return those of files. Raises: OSError: the folder cannot be read."""
        entries = self._entries = self._entries or os.scandir(self._inbox)
        read = list(islice(entries, MOST_NAMES))
        if len(read) < MOST_NAMES:
            self.close()
        return [
            entry.name
            for entry in read
            if not entry.name.startswith(".")
            and entry.name not in self._stuck
            and not entry.is_dir(follow_symlinks=False)
        ]

    def _is_halt(self, name: str) -> bool:
        """Return whether a file has a HALT signal of this run."""
        if not name.startswith(FIRST):
            return False
        try:
            request = REQUESTS.validate_json(read_request(self._inbox / name))
        except (OSError, ValidationError):
            return False
        return (
            isinstance(request, SignalRequest)
            and request.signal.level is Level.HALT
            and request.signal.run_id == self._run_id
        )

    def take(self, name: str) -> None:
        """Carry out or refuse the request in a file, then remove the file. If the file no longer exists, do nothing.

        Raises:
            EmergencyUnavailable: the queue accepts no more signals. The file stays in the inbox.
            StoreWriteFailed: the queue could not make the effect or the refusal durable. The file stays in the inbox.
        """
        try:
            content = read_request(self._inbox / name)
        except FileNotFoundError:
            return
        except OSError as error:
            self._reject(name, error, f"it cannot be read: {error.strerror or error}")
        else:
            self._take(name, content)
        self._remove(name)

    def _take(self, name: str, content: bytes) -> None:
        try:
            request = REQUESTS.validate_json(content)
        except ValidationError as error:
            self._reject(name, error, f"it is no request: {first_problem(error)}", content)
            return
        try:
            self._carry_out(request)
        except (ConfigError, DependencyViolationError, EmergencyQueueFull) as error:
            self._refuse(name, error, str(error), content)
        else:
            self._taken.move_here(self._inbox / name, _safe(name))

    def _carry_out(self, request: Request) -> None:
        """Raises: ConfigError, DependencyViolationError, EmergencyQueueFull: the request was refused."""
        if isinstance(request, SignalRequest):
            signal = request.signal
            if signal.run_id != self._run_id:
                error = ConfigError(
                    "run_id", signal.run_id, f"the signal is of another run; this run is {self._run_id}"
                )
                self._intake.reject(signal.signal_id, str(error))
                raise error
            self._intake.publish(signal)
        elif isinstance(request, RetryRequest):
            _all_done("is no dead letter", request.ids, self._intake.retry(request.ids))
        else:
            _all_done("is not in the queue", request.ids, self._intake.drop(request.ids, request.why))

    def _reject(self, name: str, error: Exception, why: str, content: bytes = b"") -> None:
        """Refuse a file that is not a request. The queue records and reports the refusal."""
        why = why.encode(errors="replace").decode()[:1000]
        self._intake.reject(_safe(name), why)
        self._refuse(name, error, why, content)

    def _refuse(self, name: str, error: Exception, why: str, content: bytes) -> None:
        """Write the reason for the refusal of a file."""
        refusal = Refusal(
            error=type(error).__name__,
            why=why,
            refused_at=self._clock.now(),
            content=content[:MOST_CONTENT].decode(errors="replace"),
        )
        self._refused.write(_safe(name), refusal.model_dump_json().encode())

    def _remove(self, name: str) -> None:
        try:
            (self._inbox / name).unlink(missing_ok=True)
        except OSError as error:
            if error.errno != errno.EISDIR:  # a folder that took the place of the file is ignored
                self._stuck.add(name)
                severe("emergency_inbox_stuck", Severity.ERROR, file=str(self._inbox / _safe(name)), why=str(error))

    def _mend(self, problem: OSError) -> None:
        """Make the inbox again if it was removed. An inbox that cannot be read is reported once, until it can be read
        again.
        """
        if self._is_readable:
            severe("emergency_inbox_unreadable", Severity.CRITICAL, folder=str(self._inbox), why=str(problem))
        self._is_readable = False
        try:
            make_folders(self._inbox)
        except StoreWriteFailed:
            return  # it was reported above, and the next call tries again


def _all_done(otherwise: str, asked: Sequence[str], done: Sequence[str]) -> None:
    """Raises: ConfigError: an id is in `asked` but not in `done`. The error names the first of these ids."""
    if left := [one for one in asked if one not in done]:
        others = "; the order was carried out for the others" if done else ""
        raise ConfigError("ids", left[0], f"it {otherwise}{others}")


def _safe(name: str) -> str:
    """Return a name that is safe in paths, logs and messages: `name` if it is safe, else a name with the digest of
    `name`.
    """
    if _NAME.fullmatch(name):
        return name
    return f"other-{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.json"
