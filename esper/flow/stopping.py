"""Requests that a run stop: at its next fence, or at once while it is starting and has no fence yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from esper.errors import Drained

SAME_REQUEST_S = 1.0
"""Seconds within which a repeated signal counts as the same request to end."""


@dataclass
class Drain:
    """A request that a run stop at its next fence."""

    requested: bool = False
    _interruptible: bool = False
    """True while the run is starting: a request raises KeyboardInterrupt."""
    _interrupted: bool = False
    """True after a request raised, to tell its KeyboardInterrupt from one of the user's Ctrl-C."""

    def ask(self) -> None:
        """Request a stop at the next fence. Safe in a signal handler.

        Raises:
            KeyboardInterrupt: the run is starting, in this thread; `starting` turns it into `Drained`.
        """
        first, self.requested = not self.requested, True
        if first and self._interruptible:
            self._interrupted = True
            raise KeyboardInterrupt

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Context of everything that happens before the first fence: a request ends it at once.

        Raises:
            Drained: a stop was requested, before the block or inside it.
        """
        try:
            self._interruptible = True
            if self.requested:
                raise Drained(0)
            yield
        except KeyboardInterrupt as interrupt:
            if not self._interrupted:  # not from `ask`: the user pressed Ctrl-C
                raise
            raise Drained(0) from interrupt
        finally:
            self._interruptible = False
