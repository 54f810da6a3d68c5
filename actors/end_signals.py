"""Signals that ask a run to end: held back while Ray starts, ignored while the run is ending."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a run to end."""


@contextmanager
def held_back() -> Iterator[list[tuple[int, float]]]:
    """Within the block, signals that ask for an end are recorded with their monotonic times; after the block they are
    raised.

    In a thread other than the main one nothing is recorded: only the main thread has handlers.
    """
    came: list[tuple[int, float]] = []

    def keep(number: int, frame: FrameType | None) -> None:
        del frame
        came.append((number, time.monotonic()))

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, keep) for number in ENDING}
    try:
        yield came
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
    for number, _ in came:
        signal.raise_signal(number)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within the block, signals that ask for an end are ignored, because the end has begun.

    In a thread other than the main one it does nothing: only the main thread has handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
