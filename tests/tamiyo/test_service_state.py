"""Tamiyo's state in a checkpoint: restored anywhere, it decides as one that was never touched."""

from __future__ import annotations

import json
from datetime import timedelta, timezone
from typing import Any

import pytest
from deciding import make_report, make_state, make_tamiyo
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.errors import StoreCorrupt
from esper.leyline.commands import Command
from esper.leyline.decisions import Decision, Hold, Pair
from esper.leyline.reports import FieldReport, Outcome
from esper.leyline.state import RoundState
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.policy_state import TamiyoState
from esper.tamiyo.service import Tamiyo
from esper.testing import EPOCH, FakeClock, telling


class Watching:
    """The config's own policy, with an eye on what it is shown."""

    name, version = HeuristicPolicy.name, HeuristicPolicy.version

    def __init__(self) -> None:
        self.saw: tuple[FieldReport, ...] = ()
        self._own = HeuristicPolicy(candidates=2, replicas=2, ramp_steps=30)

    def decide(self, state: RoundState, eligible: tuple[Pair, ...], past: tuple[FieldReport, ...]) -> Decision:
        self.saw = past
        return self._own.decide(state, eligible, past)


def fresh_tamiyo(policy: Watching | None = None) -> Tamiyo:
    return make_tamiyo(policy or Watching(), FakeClock())


def test_a_tamiyo_restored_before_every_decision_decides_as_one_that_stayed() -> None:
    """A pair that was tried rests, so that what is decided at a fence depends on the past."""

    def decided(restored: bool) -> list[Any]:
        tamiyo, outcomes = fresh_tamiyo(), []
        for fence in range(1, 20):
            if restored:
                state, tamiyo = tamiyo.state(), fresh_tamiyo()
                tamiyo.restore(state, generation=2)
            verdict = tamiyo.decide(make_state(fence=fence))
            outcomes.append(verdict)
            if isinstance(verdict.outcome, Command):
                for seed in verdict.outcome.candidates[:1]:
                    window = (fence, fence + 1)
                    name = f"{fence}/{seed.blueprint_id}"
                    tamiyo.remember(make_report(name, blueprint_id=seed.blueprint_id, window_fences=window))
        return outcomes

    stayed = decided(restored=False)
    assert decided(restored=True) == stayed
    kinds = {type(verdict.outcome) for verdict in stayed}
    assert kinds == {Command, Hold}
    assert len({verdict.decision.pairs for verdict in stayed}) > 2


def test_what_was_remembered_after_the_state_was_taken_is_forgotten() -> None:
    policy = Watching()
    tamiyo = fresh_tamiyo(policy)
    tamiyo.remember(make_report(1))
    state = tamiyo.state()
    tamiyo.remember(make_report(2))
    tamiyo.restore(state, generation=3)
    tamiyo.decide(make_state(generation=3))
    assert policy.saw == (make_report(1),)
    tamiyo.remember(make_report(3, generation=3))
    tamiyo.decide(make_state(generation=3))
    assert policy.saw == (make_report(1), make_report(3, generation=3))


def test_after_a_restore_commands_are_of_the_new_generation() -> None:
    tamiyo = fresh_tamiyo()
    before = tamiyo.decide(make_state()).outcome
    tamiyo.restore(tamiyo.state(), generation=3)
    after = tamiyo.decide(make_state(generation=3)).outcome
    assert isinstance(before, Command)
    assert isinstance(after, Command)
    assert (before.generation, after.generation) == (2, 3)
    assert (before.command_id, before.nonce, before.candidates) == (after.command_id, after.nonce, after.candidates)


FIGURES = st.none() | st.floats()
REPORTS = st.builds(
    FieldReport,
    report_id=st.text(max_size=9),
    command_id=st.text(max_size=9),
    run_id=st.text(max_size=9),
    generation=st.integers(0, 3),
    seed_id=st.text(max_size=9),
    blueprint_id=st.text(max_size=9),
    slot=st.text(max_size=9),
    outcome=st.sampled_from(Outcome),
    reasons=st.lists(st.text(max_size=9), max_size=2).map(tuple),
    gain=FIGURES,
    z=FIGURES,
    pick_gain=FIGURES,
    window_fences=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    issued_at=st.sampled_from([EPOCH, EPOCH.astimezone(timezone(timedelta(hours=-3)))]),
    policy_version=st.text(max_size=9),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(REPORTS, max_size=4))
def test_every_report_comes_back_as_it_was(reports: list[FieldReport]) -> None:
    tamiyo, other = fresh_tamiyo(), fresh_tamiyo()
    for report in reports:
        tamiyo.remember(report)
    other.restore(tamiyo.state(), generation=3)
    assert other.state() == tamiyo.state()
    again = TamiyoState.model_validate_json(other.state()).past
    assert [told(report) for report in again] == [told(report) for report in reports]


def told(report: FieldReport) -> dict[str, str]:
    """A report's fields as text, by which not-a-number equals itself and 0.0 is not -0.0."""
    fields = report.model_dump() | {"issued_at": report.issued_at.isoformat()}
    return {name: repr(value) for name, value in fields.items()}


@pytest.mark.parametrize("generation", [0, 1])
def test_a_past_of_a_later_generation_is_refused(generation: int) -> None:
    tamiyo = fresh_tamiyo()
    tamiyo.remember(make_report(1))
    with pytest.raises(StoreCorrupt, check=telling(f"after {generation}", "1", path="tamiyo's state")):
        fresh_tamiyo().restore(tamiyo.state(), generation)


@pytest.mark.parametrize("text", ["", "{}", "null", "[]", "not json", '{"past": null}', '{"past": [], "more": 1}'])
def test_what_is_no_state_is_refused_and_changes_nothing(text: str) -> None:
    tamiyo = fresh_tamiyo()
    tamiyo.remember(make_report(1))
    before = tamiyo.state()
    with pytest.raises(StoreCorrupt) as caught:
        tamiyo.restore(text, generation=3)
    assert caught.value.path == "tamiyo's state"
    assert tamiyo.state() == before


@pytest.mark.parametrize("field", sorted(FieldReport.model_fields.keys() - FieldReport.LATER))
def test_a_report_that_lacks_a_field_makes_no_state(field: str) -> None:
    tamiyo = fresh_tamiyo()
    tamiyo.remember(make_report(1))
    state = json.loads(tamiyo.state())
    del state["past"][0][field]
    with pytest.raises(StoreCorrupt, check=telling(field, "past.0", "missing", path="tamiyo's state")):
        tamiyo.restore(json.dumps(state), generation=3)
