"""Requests to stop a run. The run stops at its next fence, or at once if it is still starting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from esper.errors import Drained

SAME_REQUEST_S = 1.0
"""A signal that is repeated within this time, in seconds, counts as the same request to end."""


@dataclass
class Drain:
    """A request to stop a run at its next fence."""

    requested: bool = False
    _interruptible: bool = False
    """True while the run is starting. A request then raises KeyboardInterrupt."""
    _interrupted: bool = False
    """True after a request raised KeyboardInterrupt. It shows that this exception does not come from the user's
    Ctrl-C."""

    def ask(self) -> None:
        """Request a stop at the next fence. Safe in a signal handler.

        Raises:
            KeyboardInterrupt: the run is starting, in this thread. `starting` turns the exception into `Drained`.
        """
        first, self.requested = not self.requested, True
        if first and self._interruptible:
            self._interrupted = True
            raise KeyboardInterrupt

    @contextmanager
    def starting(self, fence: int) -> Iterator[None]:
        """Return the context for the start of a run, before its next fence. A request ends the block at once.

        Args:
            fence: The fence at which the run stands: 0 in a new run, the last committed fence in a resumed run.

        Raises:
            Drained: a stop was requested, before the block or inside it. The error names `fence`.
        """
        try:
            self._interruptible = True
            if self.requested:
                raise Drained(fence)
            yield
        except KeyboardInterrupt as interrupt:
            if not self._interrupted:  # not raised by `ask`: the user pressed Ctrl-C
                raise
            raise Drained(fence) from interrupt
        finally:
            self._interruptible = False
