"""The supervisor, without Ray: which actors restart, in which order and how often, and which errors never restart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import ValidationError

from actors.supervision import ChildSpec, Life, Restarted, RestartPlan, State, Strategy, Supervisor
from esper import errors
from esper.config.supervision_settings import NO_SWITCH, FailurePolicy, SupervisionConfig
from esper.errors import (
    ActorDoubtful,
    ActorLost,
    ConfigError,
    DependencyViolationError,
    EsperError,
    EvidenceMissing,
    FaultInjected,
    PlacementUnavailable,
    PolicyFailed,
    RestartIntensityExceeded,
    TrainerRankLost,
)
from esper.testing import FakeClock, telling

RANKS = ("rank-0", "rank-1", "rank-2")
COMPANY = (
    ChildSpec("emergency", "emergency", "emergency"),
    *(ChildSpec(name, "tolaria", "tolaria", Strategy.ONE_FOR_ALL) for name in RANKS),
    ChildSpec("tamiyo", "tamiyo", "tamiyo"),
    *(ChildSpec(name, "kasmina", "managers") for name in ("manager-0", "manager-1")),
)
NAMES = tuple(spec.name for spec in COMPANY)


class Stage:
    """A supervisor with its clock, and a loop that carries out its plans; every start succeeds."""

    def __init__(self, policy: dict[str, str] | None = None, **limits: float) -> None:
        self.clock = FakeClock()
        self.supervisor = Supervisor(
            COMPANY,
            SupervisionConfig.model_validate(limits),
            FailurePolicy.model_validate(policy or {}),
            self.clock,
        )
        self.settle()

    def settle(self) -> list[RestartPlan]:
        """Carry out plans until every child is up; returns them."""
        plans = []
        while True:
            if (plan := self.supervisor.take_plan()) is not None:
                plans.append(plan)
            elif starting := self.supervisor.starting():
                self.supervisor.started(starting[0])
            else:
                return plans

    def life(self, name: str) -> Life:
        """The life of a child that is up, as the plans gave it."""
        before = [record for record in self.supervisor.records if record.name == name]
        return Life(name, 1 + len(before))

    def die(self, name: str, error: EsperError | None = None) -> list[RestartPlan]:
        """A child, which died alone so far, is lost; returns the plans by which all are up again."""
        self.supervisor.died(self.life(name), error or lost(name))
        return self.settle()

    def states(self) -> set[State]:
        return {self.supervisor.state(name) for name in NAMES}


def restarts(supervisor: Supervisor) -> Counter[str]:
    """Number of deaths that were answered by a restart, by role."""
    return Counter(record.role for record in supervisor.records)


def lost(name: str) -> ActorLost:
    return (TrainerRankLost if name in RANKS else ActorLost)(name, "its process is gone")


def lives(names: Iterable[str], incarnation: int) -> tuple[Life, ...]:
    return tuple(Life(name, incarnation) for name in names)


# -- which children restart -------------------------------------------------------------------------------------


def test_at_first_all_children_are_started_in_order_and_none_is_ended() -> None:
    supervisor = Supervisor(COMPANY, SupervisionConfig(), FailurePolicy(), FakeClock())
    assert {supervisor.state(name) for name in NAMES} == {State.DOWN}
    assert supervisor.take_plan() == RestartPlan(stop=(), start=lives(NAMES, 1))
    assert (supervisor.take_plan(), supervisor.starting()) == (None, lives(NAMES, 1))
    for life in reversed(supervisor.starting()):
        supervisor.started(life)
    assert {supervisor.state(name) for name in NAMES} == {State.UP}
    assert (supervisor.records, supervisor.starting(), supervisor.lives()) == ([], (), lives(NAMES, 1))


# -- a restart under way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [PlacementUnavailable("tamiyo", "not up within 60 s"), PolicyFailed("own", 3), ValueError("as it is")]
)
def test_a_start_that_fails_without_a_death_stops_the_run_with_its_error(error: Exception) -> None:
    stage = Stage(policy={"PolicyFailed": "restart"})
    supervisor = stage.supervisor
    supervisor.died(Life("tamiyo", 1), lost("tamiyo"))
    supervisor.take_plan()
    with pytest.raises(type(error)) as failed:
        supervisor.start_failed(Life("tamiyo", 2), error)
    assert failed.value is error
    assert not error.__suppress_context__
    with pytest.raises(type(error)):
        supervisor.take_plan()
    assert Life("tamiyo", 2) in supervisor.stop()  # a child that waits for room must be ended too


def test_an_error_of_a_constructor_whose_group_restarts_does_not_stop_the_run() -> None:
    stage = Stage()
    supervisor = stage.supervisor
    supervisor.died(Life("rank-0", 1), lost("rank-0"))
    supervisor.take_plan()
    supervisor.start_failed(Life("rank-0", 2), lost("rank-0"))
    supervisor.start_failed(Life("rank-1", 2), ConnectionError("rank 0 has gone"))
    assert stage.settle() == [RestartPlan(stop=lives(("rank-2", "rank-1"), 2), start=lives(RANKS, 3))]
    supervisor.start_failed(Life("rank-1", 2), ConnectionError("rank 0 has gone"))
    assert stage.states() == {State.UP}


# -- how often ---------------------------------------------------------------------------------------------------


def never_stuck(stage: Stage, name: str, times: int) -> None:
    """A child dies so often, with a fence passed in between."""
    for fence in range(1, times + 1):
        stage.supervisor.fence_passed(fence)
        stage.die(name)


@pytest.mark.parametrize("deaths", range(4))
def test_so_many_deaths_are_restarted_and_one_more_stops_the_run(deaths: int) -> None:
    stage, last = Stage(deaths=deaths, without_progress=9), lost("tamiyo")
    never_stuck(stage, "tamiyo", deaths)
    assert restarts(stage.supervisor)["tamiyo"] == deaths
    limit = telling(f"death {deaths + 1}", "600 s", "supervision.deaths", f"{deaths}", role="tamiyo")
    with pytest.raises(RestartIntensityExceeded, check=limit) as stopped:
        stage.die("tamiyo", last)
    assert stopped.value.__cause__ is last


@pytest.mark.parametrize(("third_s", "too_many"), [(10.0, True), (10.001, False)])
def test_a_death_counts_until_the_window_has_slid_past_it(third_s: float, too_many: bool) -> None:
    stage = Stage(deaths=2, within_s=10.0, without_progress=9)
    stage.die("tamiyo")
    stage.clock.seconds = 9.0
    stage.die("tamiyo")
    stage.clock.seconds = third_s
    if not too_many:
        stage.die("tamiyo")
        stage.clock.seconds = 19.0  # the second is 10 s ago and counts still
    with pytest.raises(RestartIntensityExceeded, check=telling("death 3", "within 10", role="tamiyo")):
        stage.die("tamiyo")


def test_a_planned_stop_during_a_restart_forgets_a_death_whose_restart_was_not_begun() -> None:
    stage = Stage()
    for name in ("rank-1", "tamiyo"):
        stage.supervisor.died(Life(name, 1), lost(name))
        if name == "rank-1":
            stage.supervisor.take_plan()
    stage.supervisor.stop()
    assert restarts(stage.supervisor) == {"tolaria": 1}
    assert stage.supervisor.take_plan() is None
    assert restarts(stage.supervisor) == {"tolaria": 1}


def test_the_same_fence_three_times_stops_the_run_and_names_it() -> None:
    stage, last = Stage(deaths=9), lost("tamiyo")
    stage.supervisor.fence_passed(7)
    stage.die("tamiyo")
    stage.die("tamiyo")
    limit = telling("death 3", "fence 7", "supervision.without_progress", role="tamiyo")
    with pytest.raises(RestartIntensityExceeded, check=limit) as stopped:
        stage.die("tamiyo", last)
    assert stopped.value.__cause__ is last


def test_a_run_that_must_stop_hands_out_no_plan_and_answers_every_death_with_the_same_error() -> None:
    stage = Stage(deaths=0)
    supervisor = stage.supervisor
    with pytest.raises(RestartIntensityExceeded) as first:
        supervisor.died(Life("tamiyo", 1), lost("tamiyo"))
    for again in (
        supervisor.take_plan,
        lambda: supervisor.died(Life("tamiyo", 1), lost("tamiyo")),
        lambda: supervisor.died(Life("rank-0", 1), lost("rank-0")),
        lambda: supervisor.start_failed(Life("manager-0", 1), ValueError("later")),
    ):
        with pytest.raises(RestartIntensityExceeded) as then:
            again()
        assert then.value is first.value
    assert supervisor.records == []
    assert [life.name for life in supervisor.stop()] == ["manager-1", "manager-0", "rank-2", "rank-1", "emergency"]


# -- verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [EvidenceMissing("G2", "pairs"), PolicyFailed("own", 3), ActorDoubtful("tamiyo", "?"), ValueError("foreign")],
)
def test_an_error_of_a_child_reaches_its_caller_unchanged_and_restarts_nothing(error: Exception) -> None:
    stage = Stage()
    with pytest.raises(type(error)) as raised:
        stage.supervisor.died(Life("tamiyo", 1), error)
    assert raised.value is error
    assert not error.__suppress_context__
    assert (stage.settle(), stage.states(), stage.supervisor.records) == ([], {State.UP}, [])


def test_a_declared_error_is_a_death_of_the_child_that_raised_it_which_is_ended_first() -> None:
    stage = Stage(policy={"PolicyFailed": "restart"}, deaths=1)
    plan = RestartPlan(stop=(Life("tamiyo", 1),), start=(Life("tamiyo", 2),))
    assert stage.die("tamiyo", PolicyFailed("own", 3)) == [plan]
    with pytest.raises(RestartIntensityExceeded, check=telling("death 2", role="tamiyo")):
        stage.die("tamiyo", PolicyFailed("own", 3))


@pytest.mark.parametrize(("name", "declared"), [("tamiyo", "ActorLost"), ("rank-0", "TrainerRankLost")])
def test_a_death_that_is_declared_to_be_raised_stops_the_run_as_it_is(name: str, declared: str) -> None:
    stage, death = Stage(policy={declared: "raise"}), lost(name)
    for again in (lambda: stage.supervisor.died(Life(name, 1), death), stage.supervisor.take_plan):
        with pytest.raises(ActorLost) as raised:
            again()
        assert raised.value is death
    assert Life(name, 1) not in stage.supervisor.stop()


def test_the_death_of_a_rank_and_of_another_actor_are_declared_apart() -> None:
    assert Stage(policy={"TrainerRankLost": "raise"}).die("tamiyo")
    assert Stage(policy={"ActorLost": "raise"}).die("rank-0")


# -- the planned stop --------------------------------------------------------------------------------------------


def test_a_planned_stop_ends_all_in_reverse_order_and_counts_no_death() -> None:
    stage = Stage(deaths=0)
    assert stage.supervisor.stop() == lives(reversed(NAMES), 1)
    for name in NAMES:
        stage.supervisor.died(Life(name, 1), lost(name))
        stage.supervisor.start_failed(Life(name, 1), PlacementUnavailable(name, "ended while it started"))
        stage.supervisor.started(Life(name, 1))
    assert (stage.states(), stage.supervisor.take_plan()) == ({State.STOPPED}, None)
    assert stage.supervisor.stop() == ()


# -- records of restarts ----------------------------------------------------------------------------------------


def test_every_restart_is_recorded_with_its_cause_and_fence() -> None:
    stage = Stage()
    stage.clock.move(2.5)
    stage.supervisor.fence_passed(4)
    stage.die("rank-1")
    stage.clock.move(1.0)
    stage.die("tamiyo")
    assert stage.supervisor.records == [
        Restarted("rank-1", "tolaria", 1, "TrainerRankLost", "rank-1: its process is gone", 4),
        Restarted("tamiyo", "tamiyo", 1, "ActorLost", "tamiyo: its process is gone", 4),
    ]


@pytest.mark.parametrize(
    "specs",
    [
        (ChildSpec("a", "x", "a"), ChildSpec("a", "y", "b")),
        (ChildSpec("a", "x", "g"), ChildSpec("b", "x", "g", Strategy.ONE_FOR_ALL)),
    ],
)
def test_children_that_cannot_be_told_apart_are_refused(specs: tuple[ChildSpec, ...]) -> None:
    with pytest.raises(ValueError, match="names of children must differ, and a group must have one strategy"):
        Supervisor(specs, SupervisionConfig(), FailurePolicy(), FakeClock())


# -- settings ----------------------------------------------------------------------------------------------------


def tree(base: type[EsperError]) -> Iterator[str]:
    yield base.__name__
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def complaint(**given: str) -> str:
    with pytest.raises(ConfigError) as refused:
        FailurePolicy.model_validate(given)
    return str(refused.value)


def test_every_error_either_may_be_declared_or_has_a_reason_why_not() -> None:
    assert {*tree(EsperError), "RestartIntensityExceeded"} == {*FailurePolicy.model_fields, *NO_SWITCH}
    assert not FailurePolicy.model_fields.keys() & NO_SWITCH.keys()


def test_by_default_only_deaths_are_restarted() -> None:
    assert {name for name, answer in FailurePolicy() if answer == "restart"} == {"ActorLost", "TrainerRankLost"}


@pytest.mark.parametrize("name", sorted(NO_SWITCH))
@pytest.mark.parametrize("answer", ["raise", "restart"])
def test_an_error_without_a_switch_is_refused_with_the_reason(name: str, answer: str) -> None:
    said = complaint(**{name: answer})
    assert said == f"failure_policy.{name} = {answer!r}: it always raises: {NO_SWITCH[name]}"


def test_an_unknown_class_is_refused_with_the_nearest() -> None:
    assert complaint(ActorLots="restart") == (
        "failure_policy.ActorLots = 'restart': no such class; the nearest is ActorLost"
    )
    assert complaint(ValueError="restart").startswith("failure_policy.ValueError = 'restart': no such class")


@pytest.mark.parametrize("answer", ["retry", "Restart", "", True, None])
def test_restart_and_raise_are_the_only_answers(answer: object) -> None:
    with pytest.raises(ValidationError, match="'raise' or 'restart'"):
        FailurePolicy.model_validate({"ActorLost": answer})


def test_a_users_subclass_follows_the_nearest_class_of_ours() -> None:
    class Lost(ActorLost):
        pass

    class Strict(DependencyViolationError, FaultInjected):
        pass

    policy = FailurePolicy(FaultInjected="restart")
    assert policy.restarts(Lost("tamiyo", "gone"))
    assert not policy.restarts(Strict.__new__(Strict))
    assert not policy.restarts(ValueError("foreign"))


def test_no_refusal_is_ever_restarted_whatever_is_declared() -> None:
    policy = FailurePolicy.model_validate(dict.fromkeys(FailurePolicy.model_fields, "restart"))
    restarted = {
        name for name in tree(EsperError) if policy.restarts(getattr(errors, name).__new__(getattr(errors, name)))
    }
    assert restarted == set(FailurePolicy.model_fields)
    assert not policy.restarts(RestartIntensityExceeded("tamiyo", "too often"))


def test_what_was_declared_can_be_told() -> None:
    assert FailurePolicy().declared() == {}
    declared = {"ActorLost": "raise", "PolicyFailed": "restart"}
    assert FailurePolicy.model_validate({**declared, "FaultInjected": "raise"}).declared() == declared


@pytest.mark.parametrize("wrong", [{"deaths": -1}, {"within_s": 0.0}, {"without_progress": 0}, {"death": 1}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SupervisionConfig.model_validate(wrong)


# -- any order of events -----------------------------------------------------------------------------------------

UNITS = {spec.name: "tolaria" if spec.name in RANKS else spec.name for spec in COMPANY}
WINDOW_S = 10.0


class SupervisionMachine(RuleBasedStateMachine):
    """The supervisor beside a plain world of processes, and of each unit the times and fences of all its deaths.

    When a run must stop, the next one begins with the same limits.
    """

    @initialize(deaths=st.integers(0, 4), without_progress=st.integers(1, 5))
    def begin(self, deaths: int, without_progress: int) -> None:
        self.limits = SupervisionConfig(deaths=deaths, within_s=WINDOW_S, without_progress=without_progress)
        self.clock = FakeClock()
        self.supervisor = Supervisor(COMPANY, self.limits, FailurePolicy(FaultInjected="restart"), self.clock)
        self.fences = [0]
        self.deaths: dict[str, list[tuple[float, int]]] = {unit: [] for unit in UNITS.values()}
        self.to_start = set(UNITS.values())
        self.starts, self.restarts = Counter[str](), Counter[str]()
        self.processes: dict[str, Life] = {}
        self.up: set[str] = set()
        self.past: list[Life] = []

    def one_too_many(self, unit: str) -> str | None:
        """Judged from all deaths that there ever were."""
        times_s, fences = zip(*self.deaths[unit], strict=True)
        if sum(self.clock.seconds - time_s <= WINDOW_S for time_s in times_s) > self.limits.deaths:
            return "supervision.deaths"
        if fences.count(max(self.fences)) >= self.limits.without_progress:
            return "supervision.without_progress"
        return None

    def report(self, life: Life, error: EsperError, *, at_start: bool = False) -> None:
        """Tell of what happened to the present process of a child."""
        tell = self.supervisor.start_failed if at_start else self.supervisor.died
        unit = UNITS[life.name]
        if unit in self.to_start:
            tell(life, error)
            return
        self.to_start.add(unit)
        self.deaths[unit].append((self.clock.seconds, max(self.fences)))
        if (key := self.one_too_many(unit)) is None:
            tell(life, error)
            return
        with pytest.raises(RestartIntensityExceeded, match=key) as stopped:
            tell(life, error)
        assert stopped.value.__cause__ is error
        self.stop_for(stopped.value)

    def stop_for(self, verdict: RestartIntensityExceeded) -> None:
        with pytest.raises(RestartIntensityExceeded) as again:
            self.supervisor.take_plan()
        assert again.value is verdict
        for life in list(self.processes.values())[:2]:
            with pytest.raises(RestartIntensityExceeded) as again:
                self.supervisor.died(self.end(life.name), lost(life.name))
            assert again.value is verdict
        self.stop()
        self.begin(self.limits.deaths, self.limits.without_progress)

    def stop(self) -> None:
        assert list(self.supervisor.stop()) == [self.processes[n] for n in reversed(NAMES) if n in self.processes]
        assert (self.supervisor.take_plan(), self.supervisor.stop()) == (None, ())

    def end(self, name: str) -> Life:
        self.up.discard(name)
        self.past.append(self.processes.pop(name))
        return self.past[-1]

    def some_process(self, data: st.DataObject) -> Life | None:
        if not self.processes:
            return None
        found: Life = data.draw(st.sampled_from(sorted(self.processes.values())))
        return found

    @rule()
    def carry_out_the_plan(self) -> None:
        plan = self.supervisor.take_plan()
        names = [name for name in NAMES if UNITS[name] in self.to_start]
        if plan is None:
            assert names == []
            return
        assert list(plan.stop) == [self.processes[name] for name in reversed(names) if name in self.processes]
        for life in plan.stop:
            self.end(life.name)
        self.starts.update(self.to_start)
        self.restarts.update(unit for unit in self.to_start if self.starts[unit] > 1)
        self.to_start.clear()
        assert list(plan.start) == [Life(name, self.starts[UNITS[name]]) for name in names]
        for life in plan.start:
            assert life.name not in self.processes, "it is in two restarts at once"
            self.processes[life.name] = life

    @rule(data=st.data())
    def come_up(self, data: st.DataObject) -> None:
        if life := self.some_process(data):
            self.supervisor.started(life)
            self.up.add(life.name)

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        if life := self.some_process(data):
            at_start = life.name not in self.up
            self.report(self.end(life.name), lost(life.name), at_start=at_start)

    @rule(data=st.data())
    def raise_what_is_declared(self, data: st.DataObject) -> None:
        if life := self.some_process(data):
            self.report(life, FaultInjected("tamiyo.decide"))

    @rule(data=st.data())
    def raise_what_is_not(self, data: st.DataObject) -> None:
        if life := self.some_process(data):
            error = EvidenceMissing("G2", "pairs")
            with pytest.raises(EvidenceMissing) as raised:
                self.supervisor.died(life, error)
            assert raised.value is error

    @rule(data=st.data())
    def see_an_end_again(self, data: st.DataObject) -> None:
        if self.past:
            life = data.draw(st.sampled_from(self.past))
            self.supervisor.died(life, lost(life.name))
            self.supervisor.started(life)

    @rule(seconds=st.sampled_from((0.5, 3.0, 9.5, 10.0, 10.5)))
    def wait(self, seconds: float) -> None:
        self.clock.move(seconds)

    @rule(further=st.integers(-2, 1))
    def pass_a_fence(self, further: int) -> None:
        self.fences.append(max(0, self.fences[-1] + further))
        self.supervisor.fence_passed(self.fences[-1])

    @invariant()
    def every_child_is_what_the_world_says(self) -> None:
        for name in NAMES:
            there = State.UP if name in self.up else State.STARTING
            assert self.supervisor.state(name) is (there if name in self.processes else State.DOWN)

    @invariant()
    def each_distinct_death_is_answered_by_one_restart(self) -> None:
        told = Counter(UNITS[record.name] for record in self.supervisor.records)
        assert told == self.restarts
        for unit, deaths in self.deaths.items():
            owed = unit in self.to_start and self.starts[unit] > 0
            assert self.restarts[unit] + owed == len(deaths)

    def teardown(self) -> None:
        self.carry_out_the_plan()
        for life in self.supervisor.starting():
            self.supervisor.started(life)
        assert {self.supervisor.state(name) for name in NAMES} == {State.UP}
        self.stop()


TestSupervisionMachine: Any = SupervisionMachine.TestCase
TestSupervisionMachine.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
