"""Splits a command line into a parent that waits and a child that works. If the child could not report its end, the
parent reports the end of the child.

Code in C can end a process. For example, Ray's core calls `_exit(1)` if a process of Ray has died. The system can end a
process, too, by SIGKILL for lack of memory. Then no Python code runs, and esper does not choose the exit code. See
docs/adr/0004-ray.md.
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
"""Signals that request an end. These signals end a child that has no handler for them yet."""
PASSED_ON = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that the parent sends on to the child. A signal from a terminal is not sent on, because both processes
receive it from the terminal."""
FROM_KERNEL = 128
"""`si_code` of a signal from a terminal."""
PR_SET_PDEATHSIG = 1
MOST_BYTES = 65536
"""Capacity of a pipe. The capacity is more than any child writes."""

_pipe: int | None = None
"""In a child, the writable end of the pipe to the parent. None in other processes."""


@dataclass(frozen=True)
class End:
    """How a child ended."""

    status: int
    """The result of `os.waitstatus_to_exitcode`: an exit code, or the negative number of a signal."""
    code: int | None = None
    """The exit code that the child announced. None: the child announced no code."""
    run_dir: str | None = None
    """The directory of the run that the child began. None: it began no run."""
    reason: str | None = None
    """The reason that the child sent for its end. None: it sent no reason."""

    @property
    def how(self) -> str:
        """The end in words, such as "ended with exit code 1" or "was killed by SIGKILL"."""
        if self.status >= 0:
            return f"ended with exit code {self.status}"
        return f"was killed by {signal.Signals(-self.status).name}"


def is_there() -> bool:
    """Return True in a child whose parent reports its end."""
    return _pipe is not None


def tell(**facts: object) -> None:
    """Send fields of `End` to the parent. Do nothing in a process that `split` did not make."""
    if _pipe is not None:
        os.write(_pipe, (json.dumps(facts) + "\n").encode())


def split() -> End | None:
    """Fork. In the child, return None at once. In the parent, wait for the end of the child and return it.

    The parent passes signals on to the child. If the parent is killed, the system kills the child. Call it before
    threads start.

    Raises:
        OSError: the system refuses another pipe or process. The signals of `PASSED_ON` are then blocked.
    """
    global _pipe
    reading, writing = os.pipe()
    parent = os.getpid()
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # SIGCHLD may be inherited as ignored, and then no child could be waited for
    mask = signal.pthread_sigmask(
        signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD}
    )  # blocked, so that no signal is lost before `_wait`
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
    """End this process by a signal, as if the process had no handler."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    signal.raise_signal(number)
    os._exit(128 + number)  # the signal was ignored, because this process is the first of a container


def _wait(child: int) -> int:
    while True:
        came = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if came.si_signo != signal.SIGCHLD:
            if came.si_code != FROM_KERNEL:
                os.kill(child, came.si_signo)
        elif (ended := os.waitpid(child, os.WNOHANG))[0] == child:
            return os.waitstatus_to_exitcode(ended[1])


def _die_with(parent: int) -> None:
    """Let the system kill this process when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
