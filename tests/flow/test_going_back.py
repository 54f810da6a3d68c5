"""The way back of a run has phases, and each may be followed by some of them only."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from no_inbox import NoInbox

from esper.archive.recovery_record import Lost
from esper.errors import ActorLost, CallDeadlineExceeded, EsperError
from esper.flow.checkpoints import FenceState, HostCopy
from esper.flow.crew import Components, OneProcess
from esper.flow.death_log import DeathLog
from esper.flow.going_back import NEXT, Cause, GoingBack, Phase
from esper.flow.position import Position
from esper.flow.progress import Quiet

FENCE_4 = FenceState(
    4,
    HostCopy.IN_MEMORY,
    {"line": Position().state(), "kasmina": "kasmina's", "tamiyo": "tamiyo's"},
    {"twin": None, "origin": None, "twin_steps": 0},
)


class Told:
    """A fake component or journal: it records the name of each call, in order; some calls kill it, once."""

    generation = 2

    def __init__(self, name: str, calls: list[str], deadly: set[str]) -> None:
        self._name, self._calls, self._deadly = name, calls, deadly

    def __getattr__(self, method: str) -> Any:
        def call(*_: object, **__: object) -> Any:
            said = f"{self._name}.{method}"
            self._calls.append(said)
            if said in self._deadly:
                self._deadly.remove(said)
                raise ActorLost(self._name, "killed")
            match method:
                case "view":
                    return View()
                case "order":
                    return AnOrder()
            return said

        return call


class AnOrder:
    order = weights = None


class View:
    incubating = True


class LoudCrew(OneProcess):
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def revive(self, generation: int) -> None:
        self.calls.append(f"crew.revive {generation}")


def going_back(phase: Phase, *deadly: str) -> tuple[GoingBack, list[str]]:
    """A way back among components that only say what they were asked."""
    calls, once = list[str](), set(deadly)
    made: Any = {name: Told(name, calls, once) for name in ("trainer", "tamiyo", "kasmina", "incubator", "journal")}
    journal = made.pop("journal")
    components = Components(inbox=NoInbox(), crew=LoudCrew(calls), **made)
    deaths = DeathLog(components.crew, journal)
    checkpoints: Any = None
    back = GoingBack(components, journal, checkpoints, Quiet(), deaths, Position(), phase, FENCE_4)
    return back, calls


RESTORED = [
    "trainer.roll_back",
    "trainer.snapshot",
    "kasmina.restore",
    "tamiyo.restore",
    "incubator.restore",
    "kasmina.view",
    "kasmina.order",
    "incubator.begin",
    "journal.write",
]


@pytest.mark.parametrize("cause", [Cause.DEATH, Cause.ROLLBACK])
def test_a_way_back_supersedes_then_revives_then_restores_each_component_in_order(cause: Cause) -> None:
    back, calls = going_back(Phase.GOING_ON)
    back.go_back(FENCE_4, cause)
    assert calls == ["journal.begin_generation", "crew.revive 2", *RESTORED]
    assert (back.phase, back.at.fence) == (Phase.GOING_ON, 4)


def test_a_resumed_run_only_restores_its_components() -> None:
    back, calls = going_back(Phase.STARTED)
    back.go_back(FENCE_4, Cause.RESUME)
    assert calls == RESTORED
    assert back.phase is Phase.GOING_ON


def test_a_run_that_goes_on_is_not_resumed() -> None:
    back, calls = going_back(Phase.GOING_ON)
    with pytest.raises(AssertionError, match="from going on to revived"):
        back.go_back(FENCE_4, Cause.RESUME)
    assert calls == []


@pytest.mark.parametrize("dies_at", RESTORED)
def test_a_way_back_that_a_death_breaks_off_does_not_go_on_and_is_begun_again(dies_at: str) -> None:
    back, calls = going_back(Phase.GOING_ON, dies_at)
    with pytest.raises(ActorLost):
        back.go_back(FENCE_4, Cause.DEATH)
    assert (back.phase, back.at.fence) == (Phase.REVIVED, 4 if dies_at == "journal.write" else None)
    with pytest.raises(AssertionError, match="from revived to revived"):
        back.enter(Phase.REVIVED)
    calls.clear()
    back.go_back(FENCE_4, Cause.DEATH)
    assert calls == ["journal.begin_generation", "crew.revive 2", *RESTORED]
    assert back.phase is Phase.GOING_ON


@pytest.mark.parametrize(("before", "after"), [pair for pair in product(Phase, Phase) if pair[1] not in NEXT[pair[0]]])
def test_no_other_phase_follows(before: Phase, after: Phase) -> None:
    back, _ = going_back(before)
    with pytest.raises(AssertionError, match="the phase cannot change"):
        back.enter(after)
    assert back.phase is before


class Slow(LoudCrew):
    """A crew that answers a death, and no call that was too slow."""

    def lost(self, error: EsperError, fence: int | None) -> Lost:
        del fence
        if isinstance(error, CallDeadlineExceeded):
            raise error
        return Lost({"manager-0": "kasmina"}, None)


def test_a_death_is_journaled_also_where_its_recovery_fails_for_another_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies() -> None:
        raise ActorLost("manager-0", "killed")

    def is_too_slow(*_: object) -> None:
        raise CallDeadlineExceeded("kasmina", "no answer")

    back, calls = going_back(Phase.GOING_ON)
    back.components.crew = back.deaths.crew = Slow(calls)
    monkeypatch.setattr(back.components.kasmina, "restore", is_too_slow, raising=False)
    with pytest.raises(CallDeadlineExceeded):
        back.outlive(dies)
    assert ([one.actors for one in back.deaths.recoveries], back.deaths.restarts) == ([("manager-0",)], 1)
    assert calls[-1] == "journal.write"
