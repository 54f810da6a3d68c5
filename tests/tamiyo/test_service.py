"""Tamiyo as one: a decision or a reasoned hold; what fails is told, counted and raised, and never becomes a hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from deciding import make_decision, make_pair, make_report, make_seed, make_state, make_tamiyo

from esper.errors import (
    DependencyViolationError,
    FieldReportInvalid,
    NoSeedCandidates,
    PolicyDeadlineExceeded,
    PolicyFailed,
    ProcessStateChanged,
)
from esper.leyline.commands import BlendSpec, Command, CommandKind, Operation, sign
from esper.leyline.decisions import Decision, Hold, HoldReason, Pair, RateScale, Verdict
from esper.leyline.reports import FieldReport
from esper.leyline.signals import Level
from esper.leyline.stages import Stage
from esper.leyline.state import RoundState
from esper.telemetry import Telemetry
from esper.testing import FakeClock, ScriptedPolicy, telling
from esper.user_code.process_state import process_state

Told = Callable[[], list[str]]


class Components:
    """Tamiyo with a policy that answers as scripted, and the clock that both see."""

    def __init__(self, *answers: Any, policy: Any = None) -> None:
        self.clock, self.policy = FakeClock(), policy or ScriptedPolicy(*answers)
        self.tamiyo = make_tamiyo(self.policy, self.clock)


def failures(telemetry: Telemetry) -> int:
    return telemetry.counters.total("esper.policy.failures")


def test_a_decision_becomes_a_signed_command(telemetry: Telemetry, told: Told) -> None:
    decision = make_decision(make_pair("mlp"))
    verdict = Components(decision).tamiyo.decide(make_state())

    assert isinstance(verdict.outcome, Command)
    assert verdict.outcome.operation is Operation.GERMINATE
    assert [c.blueprint_id for c in verdict.outcome.candidates] == ["mlp"]
    assert verdict.outcome.signature
    assert verdict.decision == decision
    assert telemetry.counters.total("esper.policy.decisions") == 1
    assert (told(), failures(telemetry)) == ([], 0)


def test_the_policy_sees_the_state_the_open_pairs_and_the_whole_past() -> None:
    class Watching:
        name, version = "watching", "1"

        def decide(self, state: RoundState, eligible: tuple[Pair, ...], past: tuple[FieldReport, ...]) -> Decision:
            self.saw = (state, eligible, past)
            return make_decision(*eligible)

    components = Components(policy=Watching())
    reports = (make_report(1), make_report(2))
    for report in reports:
        components.tamiyo.remember(report)
    state = make_state()
    components.tamiyo.decide(state)

    assert components.policy.saw == (state, state.options, reports)


CLOSED: dict[str, dict[str, Any]] = {
    "every test is used": {"tests_used": 400},
    "a tournament is in flight": {"incubating": True},
    "before the first fence": {"fence": 0},
    "near the end": {"last_fence": 6},
    "every slot is full": {"slots": ()},
    "an emergency": {"level": Level.CONSERVATIVE},
}


@pytest.mark.parametrize("closed", CLOSED)
def test_where_nothing_is_open_the_policy_is_asked_without_pairs(closed: str, telemetry: Telemetry) -> None:
    state = make_state(**CLOSED[closed])

    def answer(seen: RoundState, eligible: tuple[Pair, ...]) -> Decision:
        assert (seen, eligible) == (state, ())
        return make_decision(fence=state.fence, **change)

    def decide() -> Verdict:
        return Components(answer).tamiyo.decide(state)

    change: dict[str, Any] = {"hold": "let it settle"}
    held = decide()
    assert isinstance(held.outcome, Hold)
    assert held.outcome.reason is not HoldReason.POLICY_CHOICE
    assert (held.decision, held.rates, telemetry.counters.total("esper.policy.decisions")) == (None, (), 0)

    change = {"rates": (RateScale(seed_id="seed-1", scale=0.5),)}
    scaled = decide()
    assert (scaled.outcome, [command.rate_scale for command in scaled.rates]) == (held.outcome, [0.5])

    change = {"go_back_to": 0}
    back = decide().outcome
    assert isinstance(back, Command)
    assert (back.operation, back.to_fence) == (Operation.GO_BACK, 0)


def test_a_policys_own_hold_keeps_its_reason(told: Told) -> None:
    decision = make_decision(hold="let it settle")
    verdict = Components(decision).tamiyo.decide(make_state())

    assert verdict.outcome == Hold(fence=5, reason=HoldReason.POLICY_CHOICE, detail="let it settle")
    assert verdict.decision == decision
    assert told() == []


def test_a_risk_over_its_limit_holds_what_the_policy_decided() -> None:
    decision = make_decision(make_pair("mlp"), risk=0.99)
    verdict = Components(decision).tamiyo.decide(make_state())

    assert verdict.outcome == Hold(fence=5, reason=HoldReason.RISK, detail="policy risk", measured=0.99, limit=0.98)
    assert verdict.decision == decision


@pytest.mark.parametrize(("ramp_steps", "last"), [(75, 33), (76, 32), (1000, -4)])
def test_a_ramp_that_does_not_fit_the_fences_left_holds_what_the_policy_decided(ramp_steps: int, last: int) -> None:
    decision = make_decision(make_pair("mlp"), fence=33, blend=BlendSpec(mode="CONVEX", ramp_steps=ramp_steps))
    verdict = Components(decision).tamiyo.decide(make_state(fence=33))

    assert verdict.decision == decision
    if isinstance(verdict.outcome, Hold):
        assert (verdict.outcome.reason, verdict.outcome.measured) == (HoldReason.GROWTH_OVER, 33)
        assert verdict.outcome.limit == last
    else:
        assert last == 33


@pytest.mark.parametrize(("pairs", "changes"), [(1, {}), (1, {"risk": 0.99}), (0, {"hold": "let it settle"})])
def test_changes_of_rates_become_commands_whatever_is_tried(pairs: int, changes: Any) -> None:
    rates = (RateScale(seed_id="seed-1", scale=0.5), RateScale(seed_id="seed-2", scale=2.0))
    decision = make_decision(*[make_pair("mlp")] * pairs, rates=rates, **changes)
    verdict = Components(decision).tamiyo.decide(make_state())

    assert [(c.kind, c.operation) for c in verdict.rates] == [(CommandKind.OPTIMIZER, Operation.SCALE_RATE)] * 2
    assert [(c.seed_id, c.rate_scale) for c in verdict.rates] == [("seed-1", 0.5), ("seed-2", 2.0)]
    assert len({c.command_id for c in verdict.rates} | {c.nonce for c in verdict.rates}) == 4
    assert all(command.signature == sign(command, b"key") for command in verdict.rates)


def test_a_decision_to_go_back_becomes_a_command() -> None:
    verdict = Components(make_decision(go_back_to=3)).tamiyo.decide(make_state())
    command = verdict.outcome
    assert isinstance(command, Command)
    assert (command.kind, command.operation, command.to_fence) == (CommandKind.ROLLBACK, Operation.GO_BACK, 3)
    assert command.signature == sign(command, b"key")


# -- blends ------------------------------------------------------------------------------------------------------

CONFIDENT = BlendSpec(mode="CONFIDENCE", ramp_steps=9)


@pytest.mark.parametrize(("mode", "carried"), [("CONFIDENCE", (2.0, 1.0)), ("CONVEX", ()), ("CROSSFADE", ())])
def test_a_command_to_germinate_carries_the_decided_blend_and_logits_where_the_mode_uses_them(
    mode: str, carried: Any
) -> None:
    blend = BlendSpec(mode=mode, ramp_steps=9)
    command = Components(make_decision(make_pair("mlp"), blend=blend, logits=(2.0, 1.0))).tamiyo.decide(make_state())
    assert isinstance(command.outcome, Command)
    assert (command.outcome.blend, command.outcome.confidence_logits) == (blend, carried)


@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.BLENDING, Stage.PROBATIONARY])
def test_the_policy_is_asked_for_logits_on_a_due_seed_whose_blend_uses_them(stage: Stage) -> None:
    policy = ScriptedPolicy(logits=(3.0, 1.0))
    for blend, carried in ((CONFIDENT, (3.0, 1.0)), (BlendSpec(mode="CONVEX", ramp_steps=9), ())):
        state = make_state(seeds=(make_seed(stage=stage, due=True, blend=blend),))
        command = Components(policy=policy).tamiyo.advance(state)
        assert command is not None
        assert command.confidence_logits == carried
        assert command.blend == (blend if stage is Stage.TRAINING else None)


@pytest.mark.parametrize("answer", [[1.0, 2.0], (1, 2), (1.0,) * 5000, RuntimeError("no logits today")])
def test_a_policy_that_has_no_logits_in_their_form_has_failed(telemetry: Telemetry, told: Told, answer: Any) -> None:
    class Failing(ScriptedPolicy):
        def logits(self, *_: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    state = make_state(seeds=(make_seed(stage=Stage.BLENDING, due=True, blend=CONFIDENT),))
    with pytest.raises(PolicyFailed):
        Components(policy=Failing()).tamiyo.advance(state)
    assert (told(), failures(telemetry)) == (["policy_failed"], 1)


# -- failures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold", [None, ""])
def test_a_policy_that_names_no_pair_and_no_reason_has_no_candidates(
    telemetry: Telemetry, told: Told, hold: str | None
) -> None:
    with pytest.raises(
        NoSeedCandidates, check=telling("2", "`hold`", subject="policy scripted", missing="none of the eligible pairs")
    ):
        Components(make_decision(hold=hold)).tamiyo.decide(make_state())
    assert told() == ["policy_no_candidates"]
    assert failures(telemetry) == 1


def test_a_policy_that_names_closed_pairs_alone_has_no_candidates(told: Told) -> None:
    with pytest.raises(NoSeedCandidates):
        Components(make_decision(make_pair("block"), make_pair("mlp", "head"))).tamiyo.decide(make_state())
    assert told() == ["policy_no_candidates"]


@pytest.mark.parametrize(
    "stray",
    [{"blueprint_id": "block"}, {"slot": "head"}, {"flops": 1}, {"mesh": ()}, {"parameters": 0}, {"risk": 0.0}],
    ids=str,
)
def test_one_pair_that_is_not_eligible_as_it_stands_refuses_the_whole_decision(
    telemetry: Telemetry, told: Told, stray: dict[str, Any]
) -> None:
    decision = make_decision(make_pair("norm", risk=0.1), make_pair("mlp").model_copy(update=stray))

    with pytest.raises(
        DependencyViolationError, check=telling(subject="policy scripted", missing="a pair that is not eligible")
    ) as caught:
        Components(decision).tamiyo.decide(make_state())
    assert not isinstance(caught.value, NoSeedCandidates)
    assert told() == ["dependency_violation"]
    assert failures(telemetry) == 1


@pytest.mark.parametrize(
    "figures", [{"risk": float("nan")}, {"risk": float("-inf")}, {"logits": (0.5, float("nan"))}], ids=str
)
def test_a_figure_that_is_not_finite_is_an_error_and_not_a_pass(told: Told, figures: dict[str, Any]) -> None:
    with pytest.raises(
        DependencyViolationError, check=telling(subject="policy scripted", missing="a figure that is not finite")
    ):
        Components(make_decision(make_pair("mlp"), **figures)).tamiyo.decide(make_state())
    assert told() == ["dependency_violation"]


RAMP = BlendSpec(mode="RESIDUAL", ramp_steps=1)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"pairs": None}, "a malformed decision"),
        ({"blend": {"mode": "RESIDUAL"}}, "a malformed decision"),
        ({"blend": RAMP.model_copy(update={"ramp_steps": 0})}, "a malformed decision"),
        ({"blend": RAMP.model_copy(update={"ramp_steps": 2.5})}, "a malformed decision"),
        ({"rates": ("seed-1",)}, "a malformed decision"),
        ({"go_back_to": 1.5}, "a malformed decision"),
        ({"more": 1}, "a malformed decision"),
        ({"fence": 99}, "a decision for another fence"),
        ({"risk": 5.0}, "a risk outside [0, 1]"),
        ({"hold": "let it settle", "risk": float("nan")}, "a figure that is not finite"),
        ({"hold": "let it settle"}, "both pairs and a hold"),
        ({"go_back_to": 1}, "other choices beside going back"),
        ({"go_back_to": 1, "pairs": (), "hold": "wait"}, "other choices beside going back"),
        (
            {"go_back_to": 1, "pairs": (), "rates": (RateScale(seed_id="s", scale=1.0),)},
            "other choices beside going back",
        ),
        ({"rates": (RateScale(seed_id="s", scale=0.5), RateScale(seed_id="s", scale=2.0))}, "two rates for one seed"),
    ],
    ids=str,
)
def test_a_decision_that_was_not_checked_when_it_was_made_is_checked_before_it_counts(
    telemetry: Telemetry, told: Told, changes: dict[str, Any], missing: str
) -> None:
    decision = make_decision(make_pair("mlp")).model_copy(update=changes)
    with pytest.raises(DependencyViolationError, check=telling(subject="policy scripted", missing=missing)):
        Components(decision).tamiyo.decide(make_state())
    assert told() == ["dependency_violation"]
    assert (failures(telemetry), telemetry.counters.total("esper.policy.decisions")) == (1, 0)


def test_a_policys_own_error_is_the_cause_of_its_failure(telemetry: Telemetry, told: Told) -> None:
    own = ZeroDivisionError("in the features")

    with pytest.raises(PolicyFailed, check=telling("fence 5", policy="scripted", fence=5)) as caught:
        Components(own).tamiyo.decide(make_state())
    assert caught.value.__cause__ is own
    assert told() == ["policy_failed"]
    assert failures(telemetry) == 1
    assert telemetry.counters.total("esper.policy.decisions") == 0


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (FieldReportInvalid("a report", "issued_at"), "dependency_violation"),
        (NoSeedCandidates("the policy", "a candidate"), "dependency_violation"),
        (PolicyDeadlineExceeded(7.0, 5.0, ""), "policy_failed"),
    ],
)
def test_an_error_of_the_tree_passes_unchanged(telemetry: Telemetry, told: Told, error: Exception, event: str) -> None:
    with pytest.raises(type(error)) as caught:
        Components(error).tamiyo.decide(make_state())
    assert caught.value is error
    assert told() == [event]
    assert failures(telemetry) == 1


@pytest.mark.parametrize("method", ["decide", "logits"])
@pytest.mark.parametrize(
    ("setting", "put", "value"),
    [
        ("torch.is_grad_enabled()", torch.set_grad_enabled, False),
        ("torch.get_default_dtype()", torch.set_default_dtype, torch.float64),
    ],
)
def test_a_policy_that_changes_a_setting_of_torch_is_named_with_its_call(
    told: Told, method: str, setting: str, put: Callable[[Any], None], value: Any
) -> None:
    def decide(*_: Any) -> Decision:
        put(value)
        return make_decision(make_pair("mlp"))

    class Changing(ScriptedPolicy):
        def logits(self, *_: Any) -> Any:
            put(value)
            return 1.0, 0.0

    tamiyo = Components(policy=Changing(decide)).tamiyo
    seed = make_seed(stage=Stage.BLENDING, due=True, blend=CONFIDENT)
    where = f"policy scripted, {method}, process {os.getpid()}"
    with process_state(1), pytest.raises(ProcessStateChanged, check=telling(setting=setting, where=where)):
        tamiyo.decide(make_state()) if method == "decide" else tamiyo.advance(make_state(seeds=(seed,)))
    assert told() == ["policy_failed"]


@pytest.mark.parametrize("answer", [None, "try the mlp", ()])
def test_an_answer_that_is_no_decision_is_a_failure(told: Told, answer: object) -> None:
    with pytest.raises(PolicyFailed) as caught:
        Components(lambda _state, _eligible: answer).tamiyo.decide(make_state())
    assert isinstance(caught.value.__cause__, TypeError)
    assert told() == ["policy_failed"]


def test_a_policy_over_its_deadline_is_an_error_whatever_it_answered(telemetry: Telemetry, told: Told) -> None:
    def slow(_state: RoundState, eligible: tuple[Pair, ...]) -> Decision:
        components.clock.move(5.5)
        return make_decision(*eligible)

    components = Components(slow)
    with pytest.raises(PolicyDeadlineExceeded) as caught:
        components.tamiyo.decide(make_state())
    assert (caught.value.elapsed_s, caught.value.deadline_s) == (5.5, 5.0)
    (file,) = telemetry.directory.glob("spans-*.jsonl")
    assert len(caught.value.span_id) == 16
    assert caught.value.span_id in file.read_text()
    assert told() == ["policy_timeout"]
    assert failures(telemetry) == 1


def test_a_policy_that_just_meets_its_deadline_is_heard() -> None:
    def slow(_state: RoundState, eligible: tuple[Pair, ...]) -> Decision:
        components.clock.move(5.0)
        return make_decision(*eligible)

    components = Components(slow)
    assert isinstance(components.tamiyo.decide(make_state()).outcome, Command)


# -- seeds that are under way ------------------------------------------------------------------------------------


def test_the_first_seed_that_is_due_advances_without_the_policy() -> None:
    components = Components()
    seeds = (make_seed("s1"), make_seed("s2", due=True, stage=Stage.SHADOWING), make_seed("s3", due=True))
    command = components.tamiyo.advance(make_state(seeds=seeds))

    assert components.tamiyo.advance(make_state(seeds=seeds[:1])) is None
    assert command is not None
    assert (command.seed_id, command.operation, command.policy_version) == ("s2", Operation.ADVANCE, "scripted-1")
    assert components.policy.asked == []
