"""Signals that request the end of a run. They are delayed while Ray starts, and ignored while the run ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that request the end of a run."""


@contextmanager
def held_back() -> Iterator[list[tuple[int, float]]]:
    """Within the block, record signals that request an end, with their monotonic times. After the block, raise them.

    In other threads than the main thread, nothing is recorded, because only the main thread has handlers.
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
    """Within the block, ignore signals that request an end, because the end has begun.

    In other threads than the main thread, this has no effect, because only the main thread has handlers.
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
