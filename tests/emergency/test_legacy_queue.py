"""A double of an older system's emergency queue, which was emptied when it was full: our check finds it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from esper.emergency.queue import EmergencyQueue
from esper.errors import EmergencyQueueFull
from esper.leyline.signals import EmergencySignal, Level
from esper.testing import EPOCH

CAPACITY, READER = 24, "conductor"


class ClearsAtTheCap(EmergencyQueue):
    """A full queue drops what it holds and accepts the signal."""

    def publish(self, signal: EmergencySignal) -> int:
        try:
            return super().publish(signal)
        except EmergencyQueueFull:
            self._held.clear()
            return super().publish(signal)


class RefusesAndClears(EmergencyQueue):
    """A full queue refuses the signal, and drops what it holds as well."""

    def publish(self, signal: EmergencySignal) -> int:
        if len(self) == CAPACITY:
            self._held.clear()
            raise EmergencyQueueFull(signal.signal_id, CAPACITY)
        return super().publish(signal)


def halt(number: int) -> EmergencySignal:
    return EmergencySignal(
        signal_id=f"s{number}",
        run_id="run",
        generation=1,
        level=Level.HALT,
        origin="test",
        reason="why",
        issued_at=EPOCH,
    )


def check_that_no_signal_is_lost(make: Callable[[int, tuple[str, ...]], EmergencyQueue]) -> None:
    """A full queue refuses, and every signal that it has accepted is pending."""
    queue, accepted = make(CAPACITY, (READER,)), [halt(number) for number in range(CAPACITY)]
    for signal in accepted:
        queue.publish(signal)
    with pytest.raises(EmergencyQueueFull):
        queue.publish(halt(CAPACITY))
    assert list(queue.pending(READER)) == accepted, "accepted signals are gone"


def test_a_full_queue_refuses_and_loses_nothing() -> None:
    check_that_no_signal_is_lost(EmergencyQueue)


@pytest.mark.parametrize(
    ("legacy", "found"),
    [(ClearsAtTheCap, "DID NOT RAISE .*EmergencyQueueFull"), (RefusesAndClears, "accepted signals are gone")],
)
def test_a_queue_that_loses_signals_at_its_cap_is_found(legacy: type[EmergencyQueue], found: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=found):
        check_that_no_signal_is_lost(legacy)


def test_the_double_is_what_it_stands_for() -> None:
    queue = ClearsAtTheCap(CAPACITY, (READER,))
    for number in range(CAPACITY + 1):
        queue.publish(halt(number))
    assert queue.pending(READER) == (halt(CAPACITY),)
