"""The emergency queue: publishing beside a raw fdatasync, 10,000 signals to three subscribers, and reopening.

The limit for a publish is the time of one pwrite of as many bytes and one fdatasync, on a file in the same folder. Both
are measured in turns. The cap is above the number of signals, so it delays no delivery.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from _common import Outcome, Row, Spread, main, scratch

from esper.emergency.queue import EmergencyQueue
from esper.emergency.schedule import Subscriber
from esper.leyline.signals import EmergencySignal, Level

CAPACITY, SIGNALS, BATCH = 1024, 10_000, 256
TURNS, PUBLISHES_OF_A_TURN, OPENINGS = 20, 10, 5
NAMES = ("conductor", "file", "webhook")
SUBSCRIBERS = tuple(Subscriber(name, capped=name != "conductor") for name in NAMES)
PUBLISH_RATIO, REOPEN_MS, MEMORY_GROWTH = 2.0, 100.0, 1.1


def signal(number: int) -> EmergencySignal:
    return EmergencySignal.sealed(
        signal_id=f"{number:032x}",
        run_id="6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10",
        generation=1,
        level=Level.HALT if number % 64 == 63 else Level.NOTICE,
        origin="tolaria",
        reason="the loss of a batch is not finite",
        issued_at=datetime.now(UTC),
        monotonic_ns=time.monotonic_ns(),
        attributes={"step": number, "loss": 0.5},
    )


def opened(folder: Path) -> EmergencyQueue:
    return EmergencyQueue.open(folder, capacity=CAPACITY, subscribers=SUBSCRIBERS, cap_per_minute=10**6)


def timed_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def publishing(folder: Path) -> tuple[list[float], list[float]]:
    """Milliseconds of each durable publish, and of each raw write and fdatasync of as many bytes."""
    ours, raw = list[float](), list[float]()
    descriptor = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT)
    with opened(folder / "queue") as queue:
        data, offset = os.urandom(700), 0

        def write() -> None:
            nonlocal offset
            offset += os.pwrite(descriptor, data, offset)
            os.fdatasync(descriptor)

        signals = [signal(number) for number in range(TURNS * PUBLISHES_OF_A_TURN)]
        for _ in range(TURNS):
            for _ in range(PUBLISHES_OF_A_TURN):
                raw.append(timed_ms(write))
            for _ in range(PUBLISHES_OF_A_TURN):
                one = signals.pop()
                ours.append(timed_ms(lambda one=one: queue.publish(one)))
    os.close(descriptor)
    return ours, raw


def reopening(folder: Path) -> list[tuple[float, float]]:
    """Milliseconds until a queue of 1,024 waiting signals is open: wall time, and CPU time of this process."""
    with opened(folder) as queue:
        for number in range(CAPACITY - 16):
            queue.publish(signal(64 * number))
        for number in range(16):
            queue.publish(signal(64 * number + 63))
    found = list[tuple[float, float]]()
    for _ in range(OPENINGS):
        start, worked = time.perf_counter(), time.process_time()
        queue = opened(folder)
        found.append(((time.perf_counter() - start) * 1e3, (time.process_time() - worked) * 1e3))
        assert len(queue) == CAPACITY
        assert len(queue.due("webhook", CAPACITY)) == CAPACITY
        queue.close()
    return found


def delivering(folder: Path) -> tuple[float, float]:
    """Send all signals to all subscribers. Return signals/s, and a ratio: the largest memory in the last quarter of the
    signals, divided by the largest memory in the third quarter. In both quarters the number of remembered ids is at its
    limit.

    Raises:
        AssertionError: a signal did not come, or came twice.
    """
    got, memory = {name: bytearray(SIGNALS) for name in NAMES}, list[int]()
    tracemalloc.start()
    start = time.perf_counter()
    with opened(folder) as queue:
        for first in range(0, SIGNALS, BATCH):
            for number in range(first, min(first + BATCH, SIGNALS)):
                queue.publish(signal(number))
            for name in NAMES:
                while due := queue.due(name):
                    deliver(queue, name, [delivery.signal.signal_id for delivery in due], got[name])
            memory.append(tracemalloc.get_traced_memory()[0])
        rate = SIGNALS / (time.perf_counter() - start)
        assert len(queue) == 0
    tracemalloc.stop()
    assert all(got[name] == bytes([1]) * SIGNALS for name in NAMES)
    quarter = len(memory) // 4
    return rate, max(memory[-quarter:]) / max(memory[-2 * quarter : -quarter])


def deliver(queue: EmergencyQueue, name: str, ids: list[str], got: bytearray) -> None:
    queue.attempt(name, ids)
    for signal_id in ids:
        got[int(signal_id, 16)] += 1
    queue.acknowledge(name, ids)


def measure(repetitions: int) -> Outcome:
    ours, raw, reopen_ms, reopen_work_ms = [list[float]() for _ in range(4)]
    with scratch() as folder:
        for repetition in range(repetitions):
            here = folder / str(repetition)
            here.mkdir()
            mine, limits = publishing(here)
            ours += mine
            raw += limits
            for took_ms, worked_ms in reopening(here / "reopened"):
                reopen_ms.append(took_ms)
                reopen_work_ms.append(worked_ms)
        rate, growth = delivering(folder / "delivering")
    spreads = {
        "publish, ms": Spread(tuple(ours)),
        "raw pwrite + fdatasync, ms": Spread(tuple(raw)),
        "reopening with 1,024 signals, ms": Spread(tuple(reopen_ms)),
        "of these, work of the process, ms": Spread(tuple(reopen_work_ms)),
    }
    publish_ms, raw_ms, open_ms, work_ms = (spread.median for spread in spreads.values())
    return Outcome(
        [
            Row.judged(
                "publish (durable), ms, over a raw fdatasync",
                publish_ms,
                raw_ms,
                f"<= {PUBLISH_RATIO:g} times raw",
                publish_ms <= PUBLISH_RATIO * raw_ms,
            ),
            Row.judged(
                "reopening with 1,024 signals, ms", open_ms, REOPEN_MS, f"<= {REOPEN_MS:g} ms", open_ms <= REOPEN_MS
            ),
            Row.judged(
                "memory, 10,000 signals to 3 subscribers, last quarter over the third",
                growth,
                1.0,
                f"<= {MEMORY_GROWTH:g}",
                growth <= MEMORY_GROWTH,
            ),
            Row.told("reopening with 1,024 signals, ms of the process's own work", work_ms),
            Row.told("signals/s to 3 subscribers, none lost", rate),
        ],
        spreads,
    )


if __name__ == "__main__":
    main("emergency", __doc__, measure)
