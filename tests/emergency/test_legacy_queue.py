"""A double of an older system's emergency queue, which was emptied when it was full: our check finds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from queues import CONDUCTOR, QuickDisk, signal

from esper.emergency.queue import EmergencyQueue
from esper.errors import EmergencyQueueFull
from esper.leyline.signals import EmergencySignal, Level

CAPACITY = 24


class ClearsAtTheCap(EmergencyQueue):
    """A full queue drops what it holds and accepts the signal."""

    def publish(self, signal: EmergencySignal) -> int:
        try:
            return super().publish(signal)
        except EmergencyQueueFull:
            self._state.held.clear()
            return super().publish(signal)


class RefusesAndClears(EmergencyQueue):
    """A full queue refuses the signal, and drops what it holds as well."""

    def publish(self, signal: EmergencySignal) -> int:
        if len(self) == CAPACITY:
            self._state.held.clear()
            raise EmergencyQueueFull(signal.signal_id, CAPACITY)
        return super().publish(signal)


def halt(number: int) -> EmergencySignal:
    return signal(f"s{number}", Level.HALT)


def made(kind: type[EmergencyQueue], folder: Path) -> EmergencyQueue:
    return kind.open(folder, capacity=CAPACITY, subscribers=(CONDUCTOR,), disk=QuickDisk())


def check_that_no_signal_is_lost(queue: EmergencyQueue) -> None:
    """A full queue refuses, and every signal that it has accepted is pending."""
    accepted = [halt(number) for number in range(CAPACITY)]
    for one in accepted:
        queue.publish(one)
    with pytest.raises(EmergencyQueueFull):
        queue.publish(halt(CAPACITY))
    assert [one.signal for one in queue.outstanding()] == accepted, "accepted signals are gone"


def test_a_full_queue_refuses_and_loses_nothing(tmp_path: Path) -> None:
    check_that_no_signal_is_lost(made(EmergencyQueue, tmp_path))


@pytest.mark.parametrize(
    ("legacy", "found"),
    [(ClearsAtTheCap, "DID NOT RAISE .*EmergencyQueueFull"), (RefusesAndClears, "accepted signals are gone")],
)
def test_a_queue_that_loses_signals_at_its_cap_is_found(
    legacy: type[EmergencyQueue], found: str, tmp_path: Path
) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=found):
        check_that_no_signal_is_lost(made(legacy, tmp_path))


def test_the_double_is_what_it_stands_for(tmp_path: Path) -> None:
    queue = made(ClearsAtTheCap, tmp_path)
    for number in range(CAPACITY + 1):
        queue.publish(halt(number))
    assert [one.signal for one in queue.outstanding()] == [halt(CAPACITY)]
