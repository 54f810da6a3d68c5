"""A process beside ours that says it if ours ends without a word. It is a shell that waits for a line and does no more.

Where a process of Ray is gone Ray's core ends its process from within C++ ("Failed to register worker to Raylet",
"Failed to connect to GCS within 60 seconds"): no Python runs then.
"""

from __future__ import annotations

import subprocess

from esper.closing import Closing

WORDS = (
    "error: ActorLost\n"
    "message: ray: the process of the run was ended from outside Python and could not say why: a process of Ray died,\n"
    "or this one was killed\n"
    "next: esper resume RUN"
)
SCRIPT = 'trap "" INT TERM HUP; read -r word || printf "%s\\n" "$1" >&2'
"""An end of its input without a line says that nobody is there any more."""


class Witness(Closing):
    """Speaks for this process, on its standard error, if this ends before `close`."""

    def __init__(self) -> None:
        self._shell: subprocess.Popen[bytes] | None = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "sh", WORDS], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )

    def close(self) -> None:
        """All is well, or has been said. May be called twice."""
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.communicate(b"well\n")
