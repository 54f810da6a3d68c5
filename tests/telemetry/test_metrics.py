"""Counters: all there at 0, exact under threads, and closed to names that nobody declared."""

from __future__ import annotations

import sys
from threading import Thread

import pytest

from esper.telemetry import Counters, Telemetry, count, use
from esper.telemetry.metrics import NAMES


def test_every_counter_stands_at_zero_before_anything_happens():
    assert Counters().snapshot() == {name: {(): 0} for name in NAMES}
    assert {"esper.fallbacks", "esper.spans.lost", "esper.signal.rejected"} <= NAMES


def test_labels_split_a_count_whatever_their_order():
    counters = Counters()
    counters.add("esper.gate.evaluations", gate="G2", passed=True)
    counters.add("esper.gate.evaluations", passed=True, gate="G2")
    counters.add("esper.gate.evaluations", gate="G2", passed=False)
    counters.add("esper.gate.evaluations", gate="G3", passed=True)

    assert counters.snapshot()["esper.gate.evaluations"][("gate", "G2"), ("passed", "true")] == 2
    assert counters.total("esper.gate.evaluations", gate="G2") == 3
    assert counters.total("esper.gate.evaluations") == 4


def test_a_snapshot_does_not_move_when_the_counters_do():
    counters = Counters()
    before = counters.snapshot()
    counters.add("esper.rollbacks", tier="fast")
    assert before["esper.rollbacks"] == {(): 0}


@pytest.fixture
def hurried_threads():
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hurried_threads")
def test_no_increment_is_lost_between_threads():
    counters = Counters()
    threads = [Thread(target=lambda: [counters.add("esper.signal.published") for _ in range(2_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.total("esper.signal.published") == 8_000


@pytest.mark.parametrize("refused", [lambda: count("esper.typo"), lambda: Counters().add("esper.rollbacks", -1)])
def test_an_undeclared_name_or_a_step_down_is_refused_even_with_no_telemetry_in_use(refused):
    with pytest.raises(ValueError, match=r"no counter is named 'esper.typo'|cannot go down"):
        refused()


def test_count_goes_to_the_telemetry_in_use():
    with Telemetry.start(None, "conductor") as telemetry, use(telemetry):
        count("esper.command.rejections", reason="stale")
    count("esper.command.rejections", reason="stale")

    assert telemetry.counters.total("esper.command.rejections", reason="stale") == 1
