"""Reports the end of this process if the process itself cannot report it.

If a process of Ray has ended, Ray's core may end this process in C++ ("Failed to register worker to Raylet", "Failed to
connect to GCS within 60 seconds"). In this case no Python code runs. In a command of esper, the parent process prints
the report (`esper.ground.parent`). In other programs, a separate shell process prints it.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from esper.flow.next_steps import resume_command
from esper.ground import parent
from esper.ground.closing import Closing
from esper.ground.exit_codes import STRICT_FAILURE

ENDED = "its process ended before it could report the reason: a process of Ray died, or the system ended it"
SCRIPT = 'trap "" INT TERM HUP; read -r word || printf "%s\\n" "$1" >&2'
"""Shell script. It prints its argument if its input ends without a line. This means that the process has ended without
`close`."""


def words(reason: str, run_dir: Path | None) -> str:
    """Return the lines of the report."""
    step = resume_command(run_dir) if run_dir is not None else "esper resume, with the directory of the run"
    return f"error: ActorLost\nmessage: conductor: {reason}\nnext: {step}"


class Witness(Closing):
    """Prints the report on the standard error of this process if the process ends before `close`."""

    def __init__(self, run_dir: Path | None = None) -> None:
        """Begin to watch this process. The report names `run_dir`."""
        self._run_dir = run_dir
        self._shell: subprocess.Popen[bytes] | None = None
        if not parent.is_there():
            command = ["/bin/sh", "-c", SCRIPT, "sh", words(ENDED, run_dir)]
            self._shell = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def leave(self, reason: str) -> NoReturn:
        """Report the reason, and end this process with exit code 3. Any thread may call it."""
        if parent.is_there():
            parent.tell(reason=reason)
        else:
            with suppress(OSError):  # standard error is closed; the exit code is still correct
                os.write(2, (words(reason, self._run_dir) + "\n").encode())
        self.close()
        os._exit(STRICT_FAILURE)

    def close(self) -> None:
        """Stop watching. A second call has no effect."""
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.communicate(b"well\n")
