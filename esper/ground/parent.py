"""Splits a command line into a parent that waits and a child that works. The parent reports the end of a child that
could not report it.

A process can end from within C (Ray's core calls `_exit(1)` once a process of Ray is gone) or by the system (SIGKILL
for lack of memory). No Python runs then, and the exit code is not one that esper chose. See docs/adr/0004-ray.md.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
from dataclasses import dataclass
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end. A child that has no handler yet is ended by them."""
PASSED_ON = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that the parent sends on to the child. A terminal sends its own to both already."""
FROM_KERNEL = 128
"""`si_code` of a signal that a terminal sent."""
PR_SET_PDEATHSIG = 1
MOST_BYTES = 65536
"""Capacity of a pipe; more than any child writes."""

_pipe: int | None = None
"""In a child: the end of the pipe to the parent that is written to."""


@dataclass(frozen=True)
class End:
    """How a child ended."""

    status: int
    """The result of `os.waitstatus_to_exitcode`: an exit code, or a signal number as a negative number."""
    code: int | None = None
    """The exit code that the child announced. None: the child ended before that."""
    run_dir: str | None = None
    """The directory of the run that the child had begun."""
    reason: str | None = None
    """The reason that the child gave for its end, if it could send one."""

    @property
    def how(self) -> str:
        """For people: "ended with exit code 1", "was killed by SIGKILL"."""
        if self.status >= 0:
            return f"ended with exit code {self.status}"
        return f"was killed by {signal.Signals(-self.status).name}"


def is_there() -> bool:
    """True in a child whose parent reports its end."""
    return _pipe is not None


def tell(**facts: object) -> None:
    """Send fields of `End` to the parent. Does nothing in a process that `split` did not make."""
    if _pipe is not None:
        os.write(_pipe, (json.dumps(facts) + "\n").encode())


def split() -> End | None:
    """Fork. Return None in the child at once; in the parent, return how the child ended, once it has.

    The parent passes signals on to the child; if the parent is killed, so is the child. Call it before threads start.

    Raises:
        OSError: the system refuses another pipe or process. The signals of `PASSED_ON` are blocked then.
    """
    global _pipe
    reading, writing = os.pipe()
    parent = os.getpid()
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # SIGCHLD may be inherited as ignored; then no child could be waited for
    mask = signal.pthread_sigmask(
        signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD}
    )  # so that no signal is lost before `_wait`
    child = os.fork()
    if child == 0:
        _pipe = writing
        os.close(reading)
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return None
    os.close(writing)
    status = _wait(child)
    told = os.read(reading, MOST_BYTES) if select.select([reading], [], [], 0)[0] else b""
    os.close(reading)
    facts = [json.loads(line) for line in told.splitlines()]
    return End(status, **{name: value for fact in facts for name, value in fact.items()})


def die_of(number: int) -> NoReturn:
    """End this process by a signal, as if it had no handler."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    signal.raise_signal(number)
    os._exit(128 + number)  # the signal was ignored: this process is the first of a container


def _wait(child: int) -> int:
    while True:
        came = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if came.si_signo != signal.SIGCHLD:
            if came.si_code != FROM_KERNEL:
                os.kill(child, came.si_signo)
        elif (ended := os.waitpid(child, os.WNOHANG))[0] == child:
            return os.waitstatus_to_exitcode(ended[1])


def _die_with(parent: int) -> None:
    """Have the system kill this process when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
