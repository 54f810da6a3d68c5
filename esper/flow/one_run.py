"""Refuses a second run in another thread of the same process.

Both runs would draw from the same random generators and set the same settings of torch, so neither would have its bits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from esper.errors import ConfigError

_lock = threading.RLock()


def _forget() -> None:
    """Begin anew in a forked process, because it does not have the thread of a run."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def only_run() -> Iterator[None]:
    """Be the only run of this process within the block.

    Raises:
        ConfigError: a run is in progress in another thread. Nothing was written.
    """
    held = _lock
    if not held.acquire(blocking=False):
        why = "a run is in progress in another thread of this process, and both would use the same random generators"
        raise ConfigError("run", f"process {os.getpid()}", f"{why}; wait for its end, or use another process")
    try:
        yield
    finally:
        held.release()
