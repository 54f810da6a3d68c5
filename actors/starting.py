"""Runs Ray's own start in a thread, so that signals and a deadline can end it. It starts nothing else.

Ray's start may block for minutes where it cannot succeed: without a loopback device it waits for a server that it
cannot reach.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from types import FrameType

from esper.errors import PlacementUnavailable, StartDeadlineExceeded
from esper.flow.stopping import SAME_REQUEST_S

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a run to end."""
GIVE_UP_WITHIN_S = 2.0
LOOK_EVERY_S = 0.05


def start(begin: Callable[[], object], give_up: Callable[[], None], deadline_s: float, ended: threading.Event) -> None:
    """Call `begin` in a thread and return when it has.

    One signal that asks for an end is answered afterwards, by the handlers that were there before: a start that is
    interrupted leaves processes behind. A second one, or the deadline, ends the start.

    Args:
        give_up: Ends the processes that were started; `begin` fails then, or its thread is left to itself.
        ended: Set once those processes are no longer needed: the system ends them together with the thread.

    Raises:
        StartDeadlineExceeded: the start was not done in time.
        PlacementUnavailable: a second signal came, and no handler ended the process.
        Exception: what `begin` raised.
    """
    done: Future[None] = Future()
    limit_s, late, again = time.monotonic() + deadline_s, False, False
    with _held_back() as came:  # before the thread: no signal may come between
        threading.Thread(target=_fill, args=(done, begin, ended), name="ray-start", daemon=True).start()
        while not done.done():
            wait([done], timeout=LOOK_EVERY_S)
            late, again = time.monotonic() > limit_s, len(came) > 1 and came[-1][1] - came[0][1] > SAME_REQUEST_S
            if late or again:
                give_up()
                wait([done], timeout=GIVE_UP_WITHIN_S)
                break
    failure = done.exception() if done.done() else None  # its processes were ended, if it was late or interrupted
    if late:
        why = f"it was not up within {deadline_s:g} s (twice ray.start_deadline_s); its processes were ended"
        raise StartDeadlineExceeded("ray", why) from failure
    if again:
        raise PlacementUnavailable("ray", "it was interrupted; its processes were ended") from failure
    done.result()


def _fill(done: Future[None], begin: Callable[[], object], ended: threading.Event) -> None:
    try:
        begin()
    except BaseException as error:  # also `SystemExit`, which Ray raises: whoever waits gets it
        done.set_exception(error)
    else:
        done.set_result(None)
        ended.wait()  # Ray has its processes die with their parent, which is a thread to the system


@contextmanager
def _held_back() -> Iterator[list[tuple[int, float]]]:
    """Within the block, signals that ask for an end are recorded with their times; its end raises them again.

    Only the main thread has handlers.
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
