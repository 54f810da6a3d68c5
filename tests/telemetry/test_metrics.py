"""Metrics: all there at 0, exact under threads, and closed to names and labels that nobody declared."""

from __future__ import annotations

import re
import sys
from threading import Thread

import pytest

from actors.run_actors import STRATEGIES
from esper.archive.recovery_record import Recovery
from esper.errors import CommandRejected
from esper.flow.going_back import Tier
from esper.leyline.reports import Gate
from esper.leyline.stages import Stage
from esper.telemetry import Counters, Severity, Telemetry, count, events, severe, use
from esper.telemetry.event_tally import EventTally
from esper.telemetry.metric_snapshot import MetricSnapshot
from esper.telemetry.metric_table import COUNTERS, MALFORMED, PHASES, REASONS, ROLES, SHORT_S, STAGES
from esper.telemetry.metrics import NAMES, Gauges, Histograms, Metrics


def test_every_counter_stands_at_zero_before_anything_happens():
    counters = Counters().snapshot()
    assert counters == {name: dict.fromkeys(metric.series(), 0) for name, metric in COUNTERS.items()}
    assert counters["esper.severe_events"].keys() == {(("event", name),) for name in events.NAMES}
    assert {"esper.fallbacks", "esper.spans.lost", "esper.signal.rejected"} <= NAMES
    assert Metrics().snapshot() == MetricSnapshot(1)  # what is sent leaves zeros out


def test_the_values_of_labels_are_those_of_the_code():
    assert set(STAGES) == set(Stage)
    assert set(COUNTERS["esper.gate.evaluations"].labels["gate"]) == set(Gate)
    assert set(COUNTERS["esper.rollbacks"].labels["tier"]) == set(Tier)
    assert set(ROLES) == set(STRATEGIES)
    assert {f"{phase}_s" for phase in PHASES} == {name for name in Recovery.model_fields if name.endswith("_s")}
    reasons = set(re.findall(r"\w+", CommandRejected.__doc__.partition("one of:")[2]))
    assert set(REASONS) == {*reasons, MALFORMED}


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
    assert before["esper.rollbacks"] == {(("tier", "fast"),): 0, (("tier", "full"),): 0}


def test_a_histogram_counts_each_duration_once_and_a_gauge_keeps_its_last_value():
    metrics = Metrics()
    metrics.histograms.observe("esper.step.duration", (0.0005, 0.0006, 7.0), role="tolaria")
    metrics.histograms.observe("esper.step.duration", (1e6,), role="tolaria")
    metrics.gauges.set("esper.parameters", 3)
    metrics.gauges.set("esper.parameters", 2)

    told = metrics.snapshot()
    (counts, total_s), bounds = told.histograms["esper.step.duration"][(("role", "tolaria"),)], SHORT_S
    assert (counts[0], counts[1], counts[bounds.index(10.0)], counts[-1], sum(counts)) == (1, 1, 1, 1, 4)
    assert total_s == pytest.approx(1000007.0011)
    assert told.gauges == {"esper.parameters": {(): 2}}


def test_processes_add_up_and_a_dead_one_leaves_its_counts_but_no_gauge():
    one, other = Metrics(), Metrics()
    for metrics in (one, other):
        metrics.counters.add("esper.signal.published")
        metrics.histograms.observe("esper.round.duration", (0.2,))
        metrics.gauges.set("esper.queue.depth", 5)
    other.counters.add("esper.guard.trips")

    both = one.snapshot().outlived().plus(other.snapshot())
    assert [both.total(f"esper.{name}") for name in ("signal.published", "guard.trips", "fallbacks")] == [2, 1, 0]
    assert both.histograms["esper.round.duration"][()] == ((0, 2, *(0,) * 12), 0.4)
    assert both.gauges == {"esper.queue.depth": {(): 5}}
    assert one.snapshot().number < one.snapshot().number


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


@pytest.mark.parametrize(
    "refused",
    [
        lambda: count("esper.typo"),
        lambda: Counters().add("esper.rollbacks", -1, tier="fast"),
        lambda: Counters().add("esper.rollbacks"),
        lambda: Counters().add("esper.rollbacks", tier="slow"),
        lambda: Histograms().observe("esper.step.duration", (0.1,), role="tamiyo"),
        lambda: Gauges().set("esper.queue.depth", 1, run="an id"),
    ],
)
def test_an_undeclared_name_or_label_or_a_step_down_is_refused_even_with_no_telemetry_in_use(refused):
    with pytest.raises(ValueError, match=r"no counter is named 'esper.typo'|cannot go down|no metric '"):
        refused()


def test_count_goes_to_the_telemetry_in_use():
    with Telemetry.start(None, "conductor") as telemetry, use(telemetry):
        count("esper.command.rejections", reason="stale")
    count("esper.command.rejections", reason="stale")

    assert telemetry.counters.total("esper.command.rejections", reason="stale") == 1


def test_an_event_of_a_process_that_died_before_it_could_report_is_counted_once_from_the_log(tmp_path):
    with Telemetry.start(tmp_path, "tolaria") as earlier, use(earlier):
        severe("guard_tripped", Severity.CRITICAL)  # of an earlier process of the run: not counted again
    tally = EventTally(tmp_path)
    with Telemetry.start(tmp_path, "conductor") as own, Telemetry.start(tmp_path, "tolaria") as dead:
        with use(own):
            severe("rollback_fast", Severity.ERROR)
        with use(dead):
            severe("rollback_fast", Severity.ERROR)
            severe("fault_fired", Severity.WARNING)
        log = tmp_path / events.LOG
        log.write_bytes(
            log.read_bytes() + b'{"name": "rollback_full"}\nno JSON\n{"name": "an unknown one"}\n{"name": "gua'
        )
        for _ in range(2):
            told = tally.raised(own.metrics.snapshot())
            counted = {key[0][1]: value for key, value in told.counters["esper.severe_events"].items()}
            assert counted == {"rollback_fast": 2, "fault_fired": 1, "rollback_full": 1}
        several = MetricSnapshot(1, {"esper.severe_events": {(("event", "rollback_fast"),): 3}})  # the log was lost
        assert tally.raised(several).total("esper.severe_events") == 3 + 1 + 1
    assert EventTally(tmp_path / "absent").raised(MetricSnapshot()).total("esper.severe_events") == 0
