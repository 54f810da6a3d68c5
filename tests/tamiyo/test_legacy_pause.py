"""Doubles of an older system's policy and service, which answered "pause" for every failure: our checks find them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from deciding import make_state, make_tamiyo

from esper.errors import (
    EsperError,
    NoSeedCandidates,
    PolicyDeadlineExceeded,
    PolicyFailed,
)
from esper.leyline.decisions import Decision, Hold, HoldReason, Pair, Verdict
from esper.leyline.ports import Policy
from esper.leyline.reports import FieldReport
from esper.leyline.state import RoundState
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.service import Tamiyo
from esper.testing import FakeClock


class PausingPolicy:
    """A policy that answers "pause" where another one fails."""

    name, version = "pausing", "1"

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        try:
            return self._policy.decide(state, eligible, past)
        except Exception:
            return decision(hold="pause")


class PausingTamiyo(Tamiyo):
    """A service that answers "pause" where its policy fails, gives no pair or is late."""

    def decide(self, state: RoundState) -> Verdict:
        try:
            return super().decide(state)
        except EsperError:
            hold = Hold(fence=state.fence, reason=HoldReason.POLICY_CHOICE, detail="pause")
            return Verdict(outcome=hold, decision=None)


def decision(*pairs: Pair, **changes: Any) -> Decision:
    return Decision(decision_id="1", fence=5, policy="pausing", policy_version="1", pairs=pairs, **changes)


class Unreadable(Sequence[Any]):
    """What a policy is given, and cannot read."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: object) -> Any:
        raise OSError("unreadable")

    def __iter__(self) -> Iterator[Any]:
        raise OSError("unreadable")


# -- the policy --------------------------------------------------------------------------------------------------


def check_that_a_policy_fails_aloud(policy: Policy, state: RoundState) -> None:
    """A policy decides what it can, and raises where it cannot."""
    assert policy.decide(state, state.options, ()).pairs
    for eligible, past in ((state.options, Unreadable()), (Unreadable(), ())):
        with pytest.raises(OSError, match="unreadable"):
            policy.decide(state, eligible, past)


def test_the_heuristic_fails_aloud() -> None:
    check_that_a_policy_fails_aloud(HeuristicPolicy(4, 2, ramp_steps=30), make_state())


def test_a_policy_that_answers_pause_is_found() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"DID NOT RAISE .*OSError"):
        check_that_a_policy_fails_aloud(PausingPolicy(HeuristicPolicy(4, 2, ramp_steps=30)), make_state())


# -- the service -------------------------------------------------------------------------------------------------


class Faulty:
    """A policy with one fault."""

    name, version = "faulty", "1"

    def __init__(self, fault: str, clock: FakeClock) -> None:
        self._fault, self._clock = fault, clock

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Any:
        del state, past
        if self._fault == "raises":
            raise RuntimeError("it has failed")
        if self._fault == "is late":
            self._clock.move(60.0)
        if self._fault == "answers with a word":
            return "pause"
        return decision(*([] if self._fault == "gives no pair" else eligible))


FAULTS: dict[str, type[EsperError]] = {
    "raises": PolicyFailed,
    "is late": PolicyDeadlineExceeded,
    "answers with a word": PolicyFailed,
    "gives no pair": NoSeedCandidates,
}


def check_that_a_service_fails_aloud(service: type[Tamiyo], fault: str, state: RoundState) -> None:
    """The failure of a policy is raised by its class, and never becomes a hold."""
    clock = FakeClock()
    tamiyo = make_tamiyo(Faulty(fault, clock), clock, service)
    with pytest.raises(FAULTS[fault]):
        tamiyo.decide(state)


@pytest.mark.parametrize("fault", FAULTS)
def test_tamiyo_fails_aloud(fault: str) -> None:
    check_that_a_service_fails_aloud(Tamiyo, fault, make_state())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_service_that_answers_pause_is_found(fault: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=f"DID NOT RAISE .*{FAULTS[fault].__name__}"):
        check_that_a_service_fails_aloud(PausingTamiyo, fault, make_state())
