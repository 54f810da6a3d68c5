"""What must hold of one version of the emergency queue without any crash. Each check raises."""

from __future__ import annotations

from collections.abc import Callable

from code_under_test import Code
from crash_disk import CrashDisk
from queue_workload import CONDUCTOR, FILE, NAMES, open_queue, signal
from workloads import demand

from esper.errors import EmergencyQueueFull
from esper.leyline.signals import Level
from esper.testing import FakeClock

CAPACITY, HALT_PLACES, CAP = 20, 16, 3


def due(queue: object, name: str = FILE) -> list[str]:
    return [one.signal.signal_id for one in queue.due(name)]


def fill(queue: object, count: int, level: Level = Level.NOTICE) -> list[str]:
    ids = [f"{level.name}{n}" for n in range(count)]
    for signal_id in ids:
        queue.publish(signal(signal_id, level))
    return ids


def full(queue: object, level: Level) -> None:
    try:
        queue.publish(signal("late", level))
    except EmergencyQueueFull:
        return
    raise AssertionError("a full queue accepted a signal")


def queue_works(code: Code) -> None:
    """What no mutant may break: one signal goes to all and is gone, also after a reopening."""
    disk = CrashDisk()
    with open_queue(code, disk) as queue:
        queue.publish(signal("a"))
        demand(due(queue, CONDUCTOR) == ["a"], "it is not due")
        for name in NAMES:
            queue.acknowledge(name, ["a"])
    with open_queue(code, disk) as queue:
        demand(len(queue) == 0, "it is still there")


def a_full_queue_refuses_and_loses_nothing(code: Code) -> None:
    with open_queue(code, CrashDisk(), capacity=CAPACITY) as queue:
        notices = fill(queue, CAPACITY - HALT_PLACES)
        full(queue, Level.CONSERVATIVE)
        halts = fill(queue, HALT_PLACES, Level.HALT)
        full(queue, Level.HALT)
        demand(due(queue, CONDUCTOR) == halts + notices, f"due: {due(queue, CONDUCTOR)}")


def a_known_signal_is_accepted_once(code: Code) -> None:
    with open_queue(code, CrashDisk(), compact_bytes=1) as queue:
        for _ in range(3):
            demand(queue.publish(signal("a")) == 1, "accepted again")
            queue.acknowledge(CONDUCTOR, ["a"])
        queue.acknowledge(FILE, ["a"])
        demand(queue.publish(signal("a")) == 1 and len(queue) == 0, "accepted again after it was finished")


def the_cap_delays_and_drops_nothing(code: Code) -> None:
    disk, clock, sent = CrashDisk(), FakeClock(), []
    for minute in range(3):
        with open_queue(code, disk, clock=clock, cap=CAP, capacity=40) as queue:
            if not minute:
                waiting = [*fill(queue, 2, Level.HALT), *fill(queue, 2 * CAP + 1)]
            now = due(queue)
            demand(now == waiting[len(sent) :][: len(now)], f"out of order: {now}")
            demand(len(now) == (CAP + 2 if not minute else min(CAP, len(waiting) - len(sent))), f"{len(now)} are due")
            queue.attempt(FILE, now)
            sent += now
            demand(due(queue) == [], "the cap was passed")
            queue.publish(signal(f"urgent{minute}", Level.HALT))
            demand(due(queue) == [f"urgent{minute}"], "the cap held a HALT back")
            queue.drop([f"urgent{minute}"], "seen")
            queue.acknowledge(FILE, now)
        with open_queue(code, disk, clock=clock, cap=CAP, capacity=40) as queue:
            demand(due(queue) == [] and (minute == 2 or queue.next_due_s(FILE) == 60.0), "the cap was forgotten")
        clock.move(60.0)
    demand(sent == waiting, f"sent: {sent}")


def a_wait_outlives_a_reopening(code: Code) -> None:
    disk = CrashDisk()
    with open_queue(code, disk) as queue:
        queue.publish(signal("a"))
        queue.attempt(FILE, ["a"])
        wait_s = queue.failed(FILE, "a", "down")
    with open_queue(code, disk) as queue:
        demand(abs(queue.next_due_s(FILE) - wait_s) < 1e-3, f"{queue.next_due_s(FILE)} s instead of {wait_s} s")


def a_compact_log_replaces_older_segments(code: Code) -> None:
    """A crash may bring one back that was removed."""
    disk = CrashDisk()
    with open_queue(code, disk, compact_bytes=2**20) as queue:
        queue.publish(signal("a"))
    old = {name: data for name, data in disk.contents().items() if name.endswith(".log")}
    with open_queue(code, disk, compact_bytes=1) as queue:
        for name in NAMES:
            queue.acknowledge(name, ["a"])
    with open_queue(code, disk, compact_bytes=1) as queue:
        queue.publish(signal("b"))
    demand(not old.keys() & disk.contents().keys(), "it was not compacted")
    disk = CrashDisk({**disk.contents(), **old})
    with open_queue(code, disk) as queue:
        demand(due(queue) == ["b"], f"due: {due(queue)}")


QUEUE_CHECKS: tuple[Callable[[Code], None], ...] = (
    a_full_queue_refuses_and_loses_nothing,
    a_known_signal_is_accepted_once,
    the_cap_delays_and_drops_nothing,
    a_wait_outlives_a_reopening,
    a_compact_log_replaces_older_segments,
)
