"""The emergency queue on the disk that crashes: what was promised of each delivery, and what must hold afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from code_under_test import Code
from crash_disk import FOLDER, CrashDisk
from workloads import WORKLOADS, Broken, Mark, Promises, Workload, demand

from esper.errors import StoreWriteFailed
from esper.leyline.signals import EmergencySignal, Level
from esper.testing import EPOCH, FakeClock

CONDUCTOR, FILE = NAMES = ("conductor", "file")
WAITING, DEAD, DONE = b"waiting", b"dead", b"done"
COMPACT_BYTES = 700


def signal(signal_id: str, level: Level = Level.NOTICE, extra_bytes: int = 0) -> EmergencySignal:
    told = {"run_id": "r", "generation": 1, "origin": "t", "reason": "." * extra_bytes, "issued_at": EPOCH}
    return EmergencySignal.sealed(signal_id=signal_id, level=level, **told)


def open_queue(
    code: Code,
    disk: CrashDisk,
    *,
    compact_bytes: int = COMPACT_BYTES,
    capacity: int = 24,
    cap: int = 60,
    clock: FakeClock | None = None,
) -> object:
    receivers = (
        code.schedule.Subscriber(CONDUCTOR, capped=False, attempts=None),
        code.schedule.Subscriber(FILE, attempts=2),
    )
    return code.queue.EmergencyQueue.open(
        FOLDER,
        capacity=capacity,
        subscribers=receivers,
        clock=clock or FakeClock(),
        draw=random.Random(0),
        cap_per_minute=cap,
        compact_bytes=compact_bytes,
        disk=disk,
    )


def deliveries(code: Code, disk: CrashDisk, known: Iterable[str]) -> dict[str, bytes]:
    """Delivery -> how it stands: of signals that wait, and of those among the `known` that are finished."""
    state = code.reading.read_queue(FOLDER, disk=disk).state
    found = {}
    for signal_id, held in state.held.items():
        for name in NAMES:
            waits = held.waiting.get(name)
            found[f"{signal_id} {name}"] = DONE if waits is None else WAITING if waits.dead is None else DEAD
    for delivery in known:
        if delivery not in found and state.finished.checksum(delivery.split()[0]) is not None:
            found[delivery] = DONE
    return found


@contextmanager
def becoming(promises: Promises, ids: Iterable[str], names: Iterable[str], how: bytes) -> Iterator[None]:
    """While it lasts the deliveries stand as before or as `how`; afterwards as `how`."""
    before = dict(promises.now.files)
    changed = [f"{signal_id} {name}" for signal_id in ids for name in names]
    either = {one: (*(before.get(one) or (None,)), how) for one in changed}
    promises.now = replace(promises.now, files=tuple((before | either).items()))
    yield
    promises.now = replace(promises.now, files=tuple((before | dict.fromkeys(changed, (how,))).items()))
    promises.moved()


def publish(queue: object, promises: Promises, one: EmergencySignal) -> None:
    with becoming(promises, [one.signal_id], NAMES, WAITING):
        queue.publish(one)


def refused(promises: Promises, call: Callable[[], object]) -> None:
    """An error was planted: it must surface, and then all is as it was before the call."""
    before = promises.now
    try:
        call()
    except StoreWriteFailed:
        promises.now = before
        promises.moved()
    else:
        raise Broken("an error of the disk did not surface")


def acknowledge(queue: object, promises: Promises, name: str, *ids: str) -> None:
    with becoming(promises, ids, [name], DONE):
        queue.acknowledge(name, ids)


def fail_twice(queue: object, promises: Promises, signal_id: str) -> None:
    queue.attempt(FILE, [signal_id])
    demand(queue.failed(FILE, signal_id, "down") is not None, "dead after one attempt of two")
    with becoming(promises, [signal_id], [FILE], DEAD):
        queue.attempt(FILE, [signal_id])
        demand(queue.failed(FILE, signal_id, "down") is None, "no dead letter after two attempts of two")


def _run_queue(code: Code, disk: CrashDisk, promises: Promises, mark: Mark) -> None:
    def of(name: str, level: Level = Level.NOTICE) -> EmergencySignal:
        return signal(mark.text + name, level, mark.extra_bytes)

    a, b, c, d, e = (mark.text + name for name in "abcde")
    with open_queue(code, disk) as queue:
        publish(queue, promises, of("a"))
        publish(queue, promises, of("b", Level.HALT))
        queue.attempt(FILE, [b, a])
        acknowledge(queue, promises, CONDUCTOR, a, b)
        acknowledge(queue, promises, FILE, b)
        disk.faults["write"] = 0
        refused(promises, lambda: publish(queue, promises, of("c")))
        publish(queue, promises, of("c"))
        fail_twice(queue, promises, c)
    with open_queue(code, disk) as queue:
        publish(queue, promises, of("d"))
        acknowledge(queue, promises, FILE, a)
        disk.bytes_per_write = 90
        publish(queue, promises, of("e"))
        disk.faults["write"] = 1
        refused(promises, lambda: acknowledge(queue, promises, CONDUCTOR, d))
        disk.bytes_per_write = None
        with becoming(promises, [c], [FILE], WAITING):
            queue.retry([c])
        with becoming(promises, [d], NAMES, DONE):
            queue.drop([d], "not needed")
        acknowledge(queue, promises, CONDUCTOR, c, e)
        queue.attempt(FILE, [c])
        acknowledge(queue, promises, FILE, c)


def _go_on_queue(code: Code, disk: CrashDisk, promises: Promises) -> None:
    with open_queue(code, disk) as queue:
        litter = [name for name in disk.contents() if name.endswith(".tmp")]
        demand(not litter, f"left behind: {litter}")
        known = [name for name, _ in promises.now.files]
        found = deliveries(code, disk, known)
        demand(found.keys() <= set(known), f"never published: {found.keys() - set(known)}")
        promises.now.judge_files(found)
        promises.now = replace(promises.now, files=tuple((name, (found.get(name),)) for name in known))
        promises.moved()  # what a queue says once it is open is a promise
        probe = f"probe{len(known)}"
        publish(queue, promises, signal(probe))
        _judge_due(queue, deliveries(code, disk, known))
        acknowledge(queue, promises, FILE, probe)
        promises.now.judge_files(deliveries(code, disk, [name for name, _ in promises.now.files]))


def _judge_due(queue: object, found: dict[str, bytes]) -> None:
    for name in NAMES:
        waiting = {one.split()[0] for one, how in found.items() if how == WAITING and one.endswith(name)}
        due, later_s = {one.signal.signal_id for one in queue.due(name)}, queue.next_due_s(name)
        demand(due <= waiting, f"due to {name} and not waiting: {due - waiting}")
        demand((later_s is None) is not bool(waiting), f"{waiting} wait for {name}, the next in {later_s} s")


QUEUE = Workload(
    "queue", frozenset({"queue", "queue_state", "records", "reading", "reserve"}), _run_queue, _go_on_queue
)
ALL_WORKLOADS = (*WORKLOADS, QUEUE)
