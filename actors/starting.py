"""Runs Ray's own start in a thread, so that signals, a deadline or the death of a process can end it.

A start of Ray that cannot succeed may block for minutes: for example without a loopback device, or after the death of
its control store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

from actors.end_signals import held_back
from actors.heads import TRY_AGAIN
from esper.errors import PlacementUnavailable, StartDeadlineExceeded
from esper.flow.stopping import SAME_REQUEST_S

RAISE_IT = "raise ray.start_deadline_s if the machine is slow or busy"
GIVE_UP_WITHIN_S = 2.0
THREAD = "ray-start"
LOOK_EVERY_S = 0.05
_GIVEN_UP: list[threading.Thread] = []
"""Threads of starts that were given up. If a thread is in Ray's code, it may continue. Otherwise it ends at once."""


def start(
    begin: Callable[[], object],
    give_up: Callable[[], None],
    deadline_s: float,
    ended: threading.Event,
    gone: Callable[[], str] = lambda: "",
) -> None:
    """Call `begin` in a thread, and return when `begin` has returned.

    If a signal requests an end, the earlier signal handlers are called after the start, because an interrupted start
    leaves processes behind. A second signal, the deadline, or the death of a process ends the start.

    Args:
        give_up: Function that ends the started processes. After this, `begin` fails, or its thread is abandoned.
        ended: Event that is set when the processes are no longer needed. The thread must run until then, because the
            system ends the processes together with the thread.
        gone: Function that describes the essential process that has ended. "": all are running.

    Raises:
        StartDeadlineExceeded: the start was not complete in time.
        PlacementUnavailable: an essential process ended; a second signal came, and no handler ended this process; or an
            earlier start was given up, and its thread has not ended.
        Exception: the error of `begin`.
    """
    _refuse_a_second_one()
    done: Future[None] = Future()
    limit_s = time.monotonic() + deadline_s
    stopped: PlacementUnavailable | StartDeadlineExceeded | None = None
    with held_back() as came:  # entered before the thread starts, so that no signal is lost
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
        raise stopped from done.exception() if done.done() else None  # Ray's processes were ended
    done.result()


def _why_to_stop(
    lost: str, came: Sequence[tuple[int, float]], limit_s: float, deadline_s: float
) -> PlacementUnavailable | StartDeadlineExceeded | None:
    """Return the error that ends a start now. None: the start continues.

    Args:
        lost: Description of the process that has ended. "": all are running.
        came: The signals so far, each with its monotonic time.
        limit_s: Monotonic time of the deadline.
    """
    if lost:
        return PlacementUnavailable("ray", f"{lost} while Ray started; its other processes were ended; {TRY_AGAIN}")
    if time.monotonic() > limit_s:
        why = f"it was not up within {deadline_s:g} s (twice ray.start_deadline_s); its processes were ended"
        return StartDeadlineExceeded("ray", f"{why}; {RAISE_IT}")
    if len(came) > 1 and came[-1][1] - came[0][1] > SAME_REQUEST_S:
        return PlacementUnavailable("ray", "it was interrupted; its processes were ended")
    return None


def _refuse_a_second_one() -> None:
    """Raise if the thread of an earlier start is still running, because two starts at once would end this process."""
    for thread in _GIVEN_UP:
        thread.join(GIVE_UP_WITHIN_S)
        if thread.is_alive():
            mend = "an earlier start of Ray in this process was given up and has not ended; use a new process"
            raise PlacementUnavailable("ray", mend)


def _fill(done: Future[None], begin: Callable[[], object], ended: threading.Event) -> None:
    try:
        begin()
    except BaseException as error:  # also `SystemExit` of Ray; the waiting thread raises it again
        done.set_exception(error)
    else:
        done.set_result(None)
        ended.wait()  # the end of this thread would end Ray's processes
