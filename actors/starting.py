"""Runs Ray's own start in a thread, so that signals, a deadline and a death can end it. It starts nothing else.

Ray's start may block for minutes where it cannot succeed: without a loopback device it waits for a server that it
cannot reach, and after the death of its control store it waits for an answer of that store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

from actors.end_signals import held_back
from esper.errors import PlacementUnavailable, StartDeadlineExceeded
from esper.flow.stopping import SAME_REQUEST_S

GIVE_UP_WITHIN_S = 2.0
THREAD = "ray-start"
LOOK_EVERY_S = 0.05
_GIVEN_UP: list[threading.Thread] = []
"""Threads of starts that were given up. A thread inside Ray's code may continue; all others end at once."""


def start(
    begin: Callable[[], object],
    give_up: Callable[[], None],
    deadline_s: float,
    ended: threading.Event,
    gone: Callable[[], str] = lambda: "",
) -> None:
    """Call `begin` in a thread and return when it has.

    One signal that asks for an end is answered afterwards, by the handlers that were there before: a start that is
    interrupted leaves processes behind. A second one, the deadline, or the death of a process ends the start.

    Args:
        give_up: Ends the processes that were started; `begin` fails then, or its thread is left to itself.
        ended: Set once those processes are no longer needed: the system ends them together with the thread.
        gone: Returns, in words, which essential process has ended; "" if all run.

    Raises:
        StartDeadlineExceeded: the start was not done in time.
        PlacementUnavailable: such a process ended; a second signal came, and no handler ended the process; or an
            earlier start was given up, and its thread has not ended.
        Exception: what `begin` raised.
    """
    _refuse_a_second_one()
    done: Future[None] = Future()
    limit_s = time.monotonic() + deadline_s
    stopped: PlacementUnavailable | StartDeadlineExceeded | None = None
    with held_back() as came:  # before the thread starts, so that no signal is lost
        thread = threading.Thread(target=_fill, args=(done, begin, ended), name=THREAD, daemon=True)
        thread.start()
        while not done.done() and stopped is None:
            wait([done], timeout=LOOK_EVERY_S)
            stopped = _why_to_stop(gone(), came, limit_s, deadline_s)
        if stopped is not None:
            _GIVEN_UP.append(thread)
            give_up()
            wait([done], timeout=GIVE_UP_WITHIN_S)
    if stopped is not None:
        raise stopped from done.exception() if done.done() else None  # its processes were ended
    done.result()


def _why_to_stop(
    lost: str, came: Sequence[tuple[int, float]], limit_s: float, deadline_s: float
) -> PlacementUnavailable | StartDeadlineExceeded | None:
    """Return the error with which a start ends now. None: it goes on.

    Args:
        lost: Says which process has ended; "" if none has.
        came: The signals so far, each with its time on the monotonic clock.
        limit_s: Time on that clock at which the deadline ends.
    """
    if lost:
        return PlacementUnavailable("ray", f"{lost} while Ray started; its other processes were ended")
    if time.monotonic() > limit_s:
        why = f"it was not up within {deadline_s:g} s (twice ray.start_deadline_s); its processes were ended"
        return StartDeadlineExceeded("ray", why)
    if len(came) > 1 and came[-1][1] - came[0][1] > SAME_REQUEST_S:
        return PlacementUnavailable("ray", "it was interrupted; its processes were ended")
    return None


def _refuse_a_second_one() -> None:
    """Raise where the thread of an earlier start is still in Ray's code: two starts at once would end this process."""
    for thread in _GIVEN_UP:
        thread.join(GIVE_UP_WITHIN_S)
        if thread.is_alive():
            mend = "an earlier start of Ray in this process was given up and has not ended; use a new process"
            raise PlacementUnavailable("ray", mend)


def _fill(done: Future[None], begin: Callable[[], object], ended: threading.Event) -> None:
    try:
        begin()
    except BaseException as error:  # also `SystemExit`, which Ray raises: the waiting thread raises it again
        done.set_exception(error)
    else:
        done.set_result(None)
        ended.wait()  # Ray has its processes die with their parent, which is a thread to the system
