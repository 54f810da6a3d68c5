"""Durations of steps reach the histogram together, and none of them waits long."""

from __future__ import annotations

import pytest

from esper.telemetry import Telemetry, use
from esper.tolaria import step_times
from esper.tolaria.step_times import LONGEST_S, StepTimes


def test_no_duration_waits_long_beside_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(step_times, "perf_counter", lambda: now_s)
    waited, times, tolaria = [], StepTimes("tolaria"), (("role", "tolaria"),)
    with Telemetry.start(None, "tolaria") as telemetry, use(telemetry):
        for step in range(1, 31):
            began_s, now_s = now_s, now_s + 0.1
            times.add(began_s)
            counts, total_s = telemetry.metrics.snapshot().histograms["esper.step.duration"][tolaria]
            assert total_s == pytest.approx(0.1 * sum(counts))
            waited.append(0.1 * (step - sum(counts)))
        times.tell()
        counts, total_s = telemetry.metrics.snapshot().histograms["esper.step.duration"][tolaria]

    assert 0.1 < max(waited) <= LONGEST_S
    assert (sum(counts), total_s) == (30, pytest.approx(3.0))
