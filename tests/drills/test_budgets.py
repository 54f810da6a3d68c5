"""Counters and budgets as expectations: what meets them, what fails them, and where a report tells of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from drills import Drill, DrillContext, breaking, expect
from drills.budgets import EACH_PHASE
from drills.drill_runner import DrillRunner
from drills.reporting import write
from drills.task_under_drill import TaskUnderDrill
from esper.archive.recovery_record import Recovery


def recovery(**changes: Any) -> Recovery:
    """Return a recovery with a second for each phase."""
    seconds = dict.fromkeys(("detect_s", "decide_s", "stop_s", "start_s", "restore_s", "first_step_s"), 1.0)
    texts: dict[str, Any] = {"actors": ("tolaria",), "error": "TrainerRankLost", "detail": "", "notes": ()}
    fields: dict[str, Any] = {"fence": 3, "generation": 2, "alone": False, "from_memory": True}
    return Recovery(**{**texts, **fields, **seconds, **changes})


def observed(*recoveries: Recovery, **left: Any) -> Any:
    """Return what a drill left, as far as budgets and counters read it."""
    usual = {"counters": Counter(), "steps_redone": 20, "rounds_redone": 1, "peak_memory_bytes": 1000}
    return SimpleNamespace(recoveries=list(recoveries), **{**usual, **left})


def test_a_counter_is_compared_with_an_exact_number_or_a_lower_limit() -> None:
    found = observed(counters=Counter({"esper.spans.lost": 7}))
    assert expect.counters({"esper.spans.lost": 7, "esper.rollbacks": 0})(found).met
    assert expect.counters({"esper.spans.lost": expect.AtLeast(7)})(found).met
    missed = expect.counters({"esper.spans.lost": expect.AtLeast(8), "esper.rollbacks": 1})(found)
    assert (missed.met, missed.found) == (False, "counters esper.rollbacks 0, esper.spans.lost 7")
    assert missed.expected == "counters esper.rollbacks 1, esper.spans.lost at least 8"
    with pytest.raises(ValueError, match=r"esper\.no\.such"):
        expect.counters({"esper.no.such": 1})


@pytest.mark.parametrize(
    ("field", "broken"),
    [
        ("detect_s", {"detect_s": 9.0}),
        ("decide_s", {"decide_s": 9.0}),
        ("stop_s", {"stop_s": 9.0}),
        ("restore_s", {"start_s": 9.0}),
        ("restore_s", {"restore_s": 9.0}),
        ("first_good_step_s", {"first_step_s": 9.0}),
    ],
)
def test_a_budget_of_seconds_is_exceeded_by_the_slowest_recovery(field: str, broken: dict[str, float]) -> None:
    within = expect.within(**{field: 2.0})
    assert within(observed(recovery(), recovery())).met
    missed = within(observed(recovery(), recovery(**broken)))
    assert not missed.met
    assert f"{field} {'10' if field == 'restore_s' else '9'} of 2" in missed.found


@pytest.mark.parametrize(("field", "least"), [("steps_redone", 20), ("rounds_redone", 1), ("peak_memory_bytes", 1000)])
def test_a_budget_of_work_or_memory_is_exceeded(field: str, least: int) -> None:
    assert expect.within(**{field: least})(observed()).met
    assert not expect.within(**{field: least - 1})(observed()).met


@pytest.mark.parametrize("within", [EACH_PHASE, expect.within(steps_redone=9), expect.within(peak_memory_bytes=9)])
def test_a_budget_of_something_that_was_not_measured_is_not_met(within: Callable[..., Any]) -> None:
    """Without a recovery there are no seconds. A recovery that was interrupted has no seconds of restoring."""
    interrupted = recovery(start_s=None, restore_s=None, first_step_s=None)
    for found in (observed(), observed(interrupted)):
        found.steps_redone = found.peak_memory_bytes = None
        missed = within(found)
        assert not missed.met
        assert "not measured" in missed.found
    assert EACH_PHASE(observed(recovery(), interrupted)).met


@pytest.mark.slow
def test_each_report_has_the_counters_and_budgets_and_a_drill_fails_by_them(tmp_path: Path) -> None:
    """A round is lost, which costs 10 steps: the budget of 9 steps is not met, and one fault fired, not two."""

    def act(drill: DrillContext) -> None:
        drill.run(breaking.fail("tolaria.step", step=130))
        drill.resume()

    follows = (expect.within(steps_redone=9), expect.counters({"esper.faults.fired": 2, "esper.rollbacks": 0}))
    with DrillRunner(TaskUnderDrill.tiny(seed=0)) as runner:
        outcome = runner.run_one(Drill("too-much", "A drill that must fail.", act, follows, place="in process"))
    assert "expected at most steps_redone 9; found steps_redone 10 of 9" in outcome.why
    assert "found counters esper.faults.fired 1, esper.rollbacks 0" in outcome.why
    for ending in ("json", "xml", "html"):
        write(tmp_path / f"report.{ending}", [outcome], 0)
    (told,) = json.loads((tmp_path / "report.json").read_text())["drills"]
    assert told["budgets"] == [{"name": "steps_redone", "limit": 9, "measured": 10, "met": False}]
    assert told["counters"]["esper.faults.fired"] == 1
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    properties = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert properties["budget steps_redone"] == "10 of 9"
    assert "esper.faults.fired 1" in str(properties["counters"])
    page = (tmp_path / "report.html").read_text()
    assert "10 of 9" in page
    assert "esper.faults.fired 1" in page


@pytest.mark.slow
def test_what_was_not_measured_is_null_with_its_reason_and_meets_no_expectation() -> None:
    """No run is begun: neither 0 of a counter nor 0 rounds redone was measured."""
    follows = (expect.counters({"esper.rollbacks": 0}), expect.within(rounds_redone=0, steps_redone=0, stop_s=1.0))

    def act(drill: DrillContext) -> None:
        drill.run(settings={"run.device": "cuda:99"})

    with DrillRunner(TaskUnderDrill.tiny(seed=0)) as runner:
        told = runner.run_one(Drill("no-run", "A drill that must fail.", act, follows, place="in process")).as_json()
    counted, within, *_ = told["findings"]
    assert (counted["met"], counted["found"]) == (False, "counters not measured")
    assert (within["met"], within["found"].count("not measured")) == (False, 3)
    assert told["counters"] is None
    names = {"counters", "budgets.rounds_redone", "budgets.steps_redone", "budgets.stop_s"}
    assert names <= told["not_measured"].keys()
    assert all(told["not_measured"].values())
