"""Incubation over managers: however many there are, it is the incubation of one process, and every failure surfaces."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actors.hosted_components import HostedForks
from actors.remote_incubator import RemoteIncubator
from actors.task_transport import SentSurvey
from esper.errors import ActorLost, DivergenceUnrecoverable
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, Blueprint, BlueprintRegistry
from esper.kasmina.incubation.placebo_plans import placebo_plans, placebo_weights
from esper.kasmina.incubation.planning import plan_seed
from esper.leyline.commands import BlendSpec, Candidate
from esper.leyline.incubation import IncubationOrder, IncubationResult
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import Kind
from esper.setup.assembly import RunKey, make_incubator, make_trainer
from esper.setup.survey import Survey, survey_of
from esper.telemetry.context import span, trace_id, use
from esper.telemetry.setup import Telemetry
from esper.testing import telling, tiny_config, tiny_task
from esper.tolaria.trainer import never
from esper.user_code.task_reference import Reference

KEY = RunKey("6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10", 1, b"secret")


class Bursting(nn.Module):
    """Passes its input on for its first training steps, then gives NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, h_BC: Tensor) -> Tensor:
        """[B, 8] -> [B, 8]."""
        if self.training:
            self.passes += 1
        return h_BC * self.weight + torch.where(self.passes > 14, float("nan"), 0.0)


def blueprints() -> BlueprintRegistry:
    made = BlueprintRegistry()
    for name in ("mlp", "low_rank", "norm"):
        made.add(BLUEPRINTS.get(name))
    made.add(Blueprint("bursting", (Kind.NC,), 0.1, lambda _: Bursting()))
    return made


@pytest.fixture(scope="module")
def survey() -> Survey:
    return survey_of(tiny_task(), tiny_config(), blueprints())


class LocalManager:
    """A `Remote` manager whose forks are in this process. Like the real one it answers one call after the other.

    Its "process" is a `HostedForks`; a new one takes its place after a death.
    """

    machine = threading.Lock()
    """Held by each call: the random streams, which real managers do not share, belong to one at a time."""

    numbers = itertools.count()

    def __init__(self, survey: Survey) -> None:
        self.name, self._survey = f"manager-{next(self.numbers)}", survey
        self.asked: list[tuple[str, Any]] = []
        self.dead: list[HostedForks] = []
        self.begin_anew()

    def begin_anew(self) -> None:
        self.before = len(self.asked)
        sent = SentSurvey.of(self._survey, Reference())
        self.process: Any = HostedForks(sent, KEY, never, fetch=lambda snapshot: snapshot)

    def die(self) -> None:
        self.dead.append(self.process)

    def ask(self, method: str, *arguments: Any, process: Any = None, group: str | None = None) -> Any:
        del group
        house = process or self.process
        with self.machine:
            self.asked.append((method, arguments[0] if arguments else None))
            if house in self.dead:
                death = ActorLost("kasmina", "killed")
                death.actor, death.process = self.name, id(house)
                raise death
            return getattr(house, method)(*arguments)

    def check(self) -> None:
        self.ask("close", [])

    def reference(self, method: str, *arguments: Any, process: Any = None) -> list[Any]:
        return [self.ask(method, *arguments, process=process)]

    def forks(self) -> set[str]:
        """Names of the forks that its process was asked to open and not to close."""
        asked = self.asked[self.before :]
        opened = [name for method, name in asked if method == "open"]
        closed = [name for method, names in asked if method == "close" for name in names]
        assert len(set(opened)) == len(opened)
        assert set(closed) <= set(opened)
        return set(opened) - set(closed)


def not_replaced(death: ActorLost) -> None:
    """No death is answered by a restart."""
    raise death


@pytest.fixture
def incubator_on() -> Iterator[Callable[[Sequence[Any]], RemoteIncubator]]:
    made: list[RemoteIncubator] = []

    def make(managers: Sequence[Any], replace: Any = not_replaced) -> RemoteIncubator:
        made.append(RemoteIncubator(managers, replace))
        return made[-1]

    yield make
    for incubator in made:
        incubator.close()
        incubator.join()


DRAWN: dict[str, bytes] = {}
"""The weights of every plan that was made here, by digest."""


def plans_for(survey: Survey, fence: int, step: int, names: Sequence[str]) -> tuple[GraftPlan, ...]:
    (spec,) = survey.specs
    made = [
        plan_seed(
            Candidate(slot="body", blueprint_id=name, seed_id=f"seed-{fence}-{number}"),
            spec,
            survey.blueprints.get(name),
            run_id=KEY.run_id,
            generation=1,
            command_id=f"command-{fence}",
            run_seed=0,
            fence=fence,
            step=step,
            ordinal=0,
            blend=BlendSpec(mode="RESIDUAL", ramp_steps=5),
            warmup_steps=2,
        )
        for number, name in enumerate(names)
    ]
    DRAWN.update({plan.weights_digest: blob for plan, blob in made})
    return tuple(plan for plan, _ in made)


def order_of(plans: Sequence[GraftPlan], first: int, halving: int | None = 10) -> IncubationOrder:
    return IncubationOrder(
        order_id=plans[0].command_id,
        generation=1,
        fence=plans[0].fence,
        due_fence=plans[0].fence + 1,
        first_step=first,
        last_step=first + 20,
        halving_step=first + halving if halving is not None else None,
        plans=tuple(plans),
        batch_size=32,
        base_flops=300,
        seed_flops=(90,) * len(plans),
    )


def with_placebos(survey: Survey, order: IncubationOrder) -> IncubationOrder:
    (spec,) = survey.specs
    plans = placebo_plans(order.plans, 3, {"body": spec}, survey.blueprints, run_seed=0)
    for plan in plans:
        DRAWN[plan.weights_digest] = placebo_weights(plan, spec, survey.blueprints, 0)
    return order.model_copy(update={"placebos": plans, "placebo_flops": (90,) * 3})


def growth(survey: Survey, incubator: Any, wrap: Callable[[Any], Any]) -> list[Any]:
    """The answers of an incubator to all calls of a run with two tournaments and a twin."""
    live, answers = make_trainer(survey, KEY), []
    for fence, names in ((1, ["norm", "bursting", "mlp", "low_rank"]), (2, ["mlp", "norm"])):
        live.train_to(fence * 20)
        plans, snapshot = plans_for(survey, fence, fence * 20, names), wrap(live.snapshot())
        answers.append(tuple(incubator.probe_candidates(plans, DRAWN, snapshot)))
        order = order_of(plans, fence * 20)
        if fence == 1:
            order = with_placebos(survey, order)
        incubator.begin(order, DRAWN, snapshot)
        if fence == 2:
            incubator.advance_twin(60)
        answers.append(incubator.collect())
        if fence == 1:
            incubator.keep_twin()
    answers.append(incubator.twin_losses(3))
    incubator.state(3)
    incubator.advance_twin(80)
    answers += [incubator.twin_means("test"), incubator.twin_report()]
    return answers


@pytest.fixture(scope="module")
def alone(survey: Survey) -> list[Any]:
    return growth(survey, make_incubator(survey, KEY), lambda snapshot: snapshot)


# -- the same answers --------------------------------------------------------------------------------------------


def test_the_tournament_to_compare_with_has_a_winner_and_a_diverging_fork(survey: Survey, alone: list[Any]) -> None:
    probes, first, *_, report = alone
    ranks = {measured.seed_id: fork.rank for measured, fork in zip(probes, first.forks, strict=True)}
    assert ranks["seed-1-1"] is None  # it diverged
    assert ranks["seed-1-2"] == 1
    assert (report.steps, len(first.forks)) == (40, 4)
    assert all(one.gate is not None and len(one.picks) == 2 for one in first.placebos)
    assert len({one.gate.mean for one in first.placebos}) == 3
    live = make_trainer(survey, KEY)
    live.train_to(80)
    assert report.weights_sha256 == live.weights_sha256()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_any_number_of_managers_answers_as_one_process(
    survey: Survey, alone: list[Any], incubator_on: Any, count: int
) -> None:
    managers = [LocalManager(survey) for _ in range(count)]
    assert growth(survey, incubator_on(managers), lambda snapshot: [snapshot]) == alone
    assert all(manager.asked for manager in managers)


def test_a_diverging_control_is_an_error_at_collect(survey: Survey, incubator_on: Any) -> None:
    class Diverging(LocalManager):
        def ask(self, method: str, *arguments: Any, **where: Any) -> Any:
            if (method, arguments[0]) == ("train_to", "fork-0"):
                raise DivergenceUnrecoverable(3, "loss", float("nan"))
            return super().ask(method, *arguments, **where)

    incubator, live = incubator_on([Diverging(survey)]), make_trainer(survey, KEY)
    incubator.begin(order_of(plans_for(survey, 0, 0, ["mlp"]), 0), DRAWN, [live.snapshot()])
    with pytest.raises(DivergenceUnrecoverable):
        incubator.collect()


# -- deaths ------------------------------------------------------------------------------------------------------


Strikes = Callable[[str], bool]
"""Whether the manager that is asked for a method dies of it. All managers of a run share one."""
METHODS = {
    "probe_candidates",
    "open",
    "train_to",
    "sample_losses",
    "observe",
    "close",
    "snapshot",
    "shard_means",
    "weights_sha256",
}


def at_call(number: int) -> Strikes:
    calls = itertools.count()
    return lambda _: next(calls) == number


def at_first(fatal: str) -> Strikes:
    calls = itertools.count()
    return lambda method: method == fatal and next(calls) == 0


class Mortal(LocalManager):
    """A manager that dies of a call."""

    def __init__(self, survey: Survey, strikes: Strikes) -> None:
        super().__init__(survey)
        self._strikes = strikes
        self.died_of = ""

    def ask(self, method: str, *arguments: Any, **where: Any) -> Any:
        if self._strikes(method):
            self.died_of = method
            self.die()
        return super().ask(method, *arguments, **where)


def each_method() -> Iterator[Strikes]:
    return map(at_first, sorted(METHODS))


def each_call() -> Iterator[Strikes]:
    return map(at_call, itertools.count())


@pytest.mark.parametrize(
    ("count", "deaths"),
    [
        (1, each_method),
        pytest.param(1, each_call, marks=pytest.mark.torture),
        pytest.param(2, each_call, marks=pytest.mark.torture),
    ],
)
def test_a_manager_may_die_at_any_call_and_the_answers_are_the_same(
    survey: Survey, alone: list[Any], incubator_on: Any, count: int, deaths: Callable[[], Iterator[Strikes]]
) -> None:
    def replace(death: ActorLost) -> None:
        (manager,) = [manager for manager in managers if manager.name == death.actor]
        with replacing:
            if death.process == id(manager.process):
                replaced.append(manager.name)
                manager.begin_anew()

    died_of, replacing = set[str](), threading.Lock()
    for strikes in deaths():
        replaced: list[str] = []
        managers = [Mortal(survey, strikes) for _ in range(count)]
        incubator = incubator_on(managers, replace)
        if "snapshot" in (found := attempt(survey, incubator, managers)):
            assert replaced == []  # the run as a whole goes back
        else:
            assert found == alone
            assert len(replaced) == len([manager for manager in managers if manager.died_of])
        if not any(manager.died_of for manager in managers):
            break
        died_of |= {manager.died_of for manager in managers}
    assert died_of - {""} == METHODS


def later_order(order: IncubationOrder) -> IncubationOrder:
    """The order by which the first candidate of a tournament trains on for 20 steps."""
    later = {"order_id": "later", "due_fence": order.due_fence + 1, "last_step": order.last_step + 20}
    kept = {"plans": order.plans[:1], "seed_flops": order.seed_flops[:1], "halving_step": None}
    return order.model_copy(update={**later, **kept, "goes_on_from": order.last_step, "keeps": 0})


def going_on(survey: Survey, incubator: Any, wrap: Callable[[Any], Any]) -> IncubationResult:
    """The result of a candidate that trains on after its tournament, with the control and the placebos."""
    order = with_placebos(survey, order_of(plans_for(survey, 0, 0, ["mlp", "norm"]), 0))
    incubator.begin(order.model_copy(update={"keeps": 2}), DRAWN, wrap(make_trainer(survey, KEY).snapshot()))
    incubator.collect()
    incubator.go_on(later_order(order), DRAWN)
    incubator.drop_winner()
    found: IncubationResult = incubator.collect()
    return found


def test_forks_that_train_on_have_the_results_of_forks_that_train_again(survey: Survey, incubator_on: Any) -> None:
    found, again = going_on(survey, make_incubator(survey, KEY), lambda one: one), make_incubator(survey, KEY)
    order = with_placebos(survey, order_of(plans_for(survey, 0, 0, ["mlp", "norm"]), 0))
    again.begin(later_order(order), DRAWN, make_trainer(survey, KEY).snapshot())
    assert again.collect() == found
    assert found.fork_steps == 20 * 5  # control, candidate, placebos

    def replace(_death: ActorLost) -> None:
        managers[0].begin_anew()

    managers = [Mortal(survey, lambda _method: False) for _ in range(2)]
    incubator = incubator_on(managers)
    assert going_on(survey, incubator, lambda one: [one]) == found
    assert sum(len(manager.forks()) for manager in managers) == 1  # the control
    calls = len(managers[0].asked)
    for early in (2, 6, 12):  # the last of them ends while the forks of the tournament are closed
        managers = [Mortal(survey, at_call(calls - early)), Mortal(survey, lambda _method: False)]
        assert going_on(survey, incubator_on(managers, replace), lambda one: [one]) == found
        assert managers[0].died_of


def attempt(survey: Survey, incubator: RemoteIncubator, managers: Sequence[Mortal]) -> list[Any]:
    """The answers to a run with two tournaments and a twin, or the method in which a manager died for good."""
    try:
        return growth(survey, incubator, lambda snapshot: [snapshot])
    except ActorLost:
        return [manager.died_of for manager in managers if manager.died_of]


def test_forks_of_a_tournament_that_is_repeated_are_closed_first(survey: Survey, incubator_on: Any) -> None:
    class Counting(Mortal):
        def ask(self, method: str, *arguments: Any, **where: Any) -> Any:
            held.append(len(self.forks()))
            return super().ask(method, *arguments, **where)

    def replace(death: ActorLost) -> None:
        (manager,) = [manager for manager in managers if manager.name == death.actor]
        manager.begin_anew()
        replaced.append(manager.name)

    replaced, held = list[str](), list[int]()
    live, strikes = make_trainer(survey, KEY), at_call(9)
    managers = [Counting(survey, strikes) for _ in range(3)]
    incubator = incubator_on(managers, replace)
    plans = plans_for(survey, 0, 0, ["mlp", "norm", "low_rank", "mlp", "norm"])
    incubator.begin(order_of(plans, 0), DRAWN, [live.snapshot()])
    assert len(incubator.collect().forks) == 5
    assert (len(replaced), max(held)) == (1, 2)  # six forks over three managers


def test_a_death_of_another_actor_is_raised(survey: Survey, incubator_on: Any) -> None:
    class Misled(LocalManager):
        def ask(self, *_: Any, **__: Any) -> Any:
            raise ActorLost("ray", "gcs_server has ended")

    def replace(*_: Any) -> None:
        raise AssertionError("no manager died")

    incubator, live = incubator_on([Misled(survey)], replace), make_trainer(survey, KEY)
    with pytest.raises(ActorLost, check=telling("gcs_server", role="ray")):
        incubator.probe_candidates(plans_for(survey, 0, 0, ["mlp"]), DRAWN, [live.snapshot()])


# -- the twin and other forks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_losers_are_closed_and_the_twin_is_kept(survey: Survey, incubator_on: Any, count: int) -> None:
    managers = [LocalManager(survey) for _ in range(count)]
    incubator, live = incubator_on(managers), make_trainer(survey, KEY)
    plans, snapshot = plans_for(survey, 0, 0, ["mlp", "norm", "low_rank"]), [live.snapshot()]

    def held() -> list[str]:
        return sorted(name for manager in managers for name in manager.forks())

    def tournament() -> None:
        incubator.begin(order_of(plans, 0), DRAWN, snapshot)
        incubator.collect()

    tournament()
    assert held() == ["fork-0"]  # the control: it may become the twin
    tournament()
    assert held() == ["fork-4"]  # `keep_twin` was not called for the first one
    incubator.keep_twin()
    tournament()
    assert held() == ["fork-4"]  # a run keeps one twin, and no other control


def test_a_winner_that_was_trained_again_is_closed(survey: Survey, incubator_on: Any) -> None:
    def replace(_death: ActorLost) -> None:
        manager.begin_anew()

    manager = Mortal(survey, lambda method: method == "adoptable" and not manager.died_of)
    incubator, live = incubator_on([manager], replace), make_trainer(survey, KEY)
    order = order_of(plans_for(survey, 0, 0, ["mlp", "norm"]), 0).model_copy(update={"adopts": True})
    incubator.begin(order, DRAWN, [live.snapshot()])
    incubator.collect()
    incubator.winner()
    assert manager.died_of == "adoptable"
    assert len(manager.forks()) == 1
    incubator.drop_winner()
    assert manager.forks() == set()


# -- when things happen ------------------------------------------------------------------------------------------


class HeldManager(LocalManager):
    """A manager that does not begin to train before it is let go, or ended."""

    def __init__(self, survey: Survey) -> None:
        super().__init__(survey)
        self.waits, self.released, self.lost = threading.Event(), threading.Event(), False

    def ask(self, method: str, *arguments: Any, **where: Any) -> Any:
        if method == "train_to":
            self.waits.set()
            assert self.released.wait(300)
        if self.lost:
            self.die()
        return super().ask(method, *arguments, **where)

    def let_go(self) -> None:
        self.released.set()

    def end(self) -> None:
        self.lost = True
        self.released.set()


def test_a_tournament_runs_from_begin_on_and_collect_waits_for_it(survey: Survey, incubator_on: Any) -> None:
    manager, live = HeldManager(survey), make_trainer(survey, KEY)
    incubator = incubator_on([manager])
    incubator.begin(order_of(plans_for(survey, 0, 0, ["mlp"]), 0), DRAWN, [live.snapshot()])
    assert manager.waits.wait(300)  # `collect` was not called yet
    assert live.train_to(20)  # and the live host goes on
    manager.let_go()
    assert incubator.collect().fork_steps == 40


def test_the_twin_trains_ahead_and_its_readers_wait_for_it(survey: Survey, incubator_on: Any) -> None:
    manager, live = HeldManager(survey), make_trainer(survey, KEY)
    manager.let_go()
    incubator = incubator_on([manager])
    incubator.begin(order_of(plans_for(survey, 0, 0, ["mlp"]), 0), DRAWN, [live.snapshot()])
    incubator.collect()
    incubator.keep_twin()
    manager.released.clear()
    manager.waits.clear()

    incubator.advance_twin(40)  # returns although the manager is held

    assert manager.waits.wait(300)
    assert manager.asked[-1][0] != "train_to"
    manager.let_go()
    live.train_to(40)
    assert incubator.twin_losses(2) == live.sample_losses("gate", 2)
    incubator.advance_twin(60)
    incubator.advance_twin(80)
    assert incubator.twin_report().steps == 60


def test_one_tournament_is_in_flight_at_a_time(survey: Survey, incubator_on: Any) -> None:
    incubator, live = incubator_on([LocalManager(survey)]), make_trainer(survey, KEY)
    order, snapshot = order_of(plans_for(survey, 0, 0, ["mlp"]), 0), [live.snapshot()]
    incubator.begin(order, DRAWN, snapshot)
    with pytest.raises(AssertionError, match="one tournament is in flight"):
        incubator.begin(order, DRAWN, snapshot)


def test_the_callers_trace_continues_in_every_manager(survey: Survey, incubator_on: Any, tmp_path: Path) -> None:
    class Traced(LocalManager):
        def ask(self, method: str, *arguments: Any, **where: Any) -> Any:
            traces.append(trace_id())
            return super().ask(method, *arguments, **where)

    traces: list[str] = []
    incubator, live = incubator_on([Traced(survey) for _ in range(2)]), make_trainer(survey, KEY)
    plans, snapshot = plans_for(survey, 0, 0, ["mlp", "norm"]), [live.snapshot()]
    with Telemetry.start(tmp_path, "conductor") as telemetry, use(telemetry), span("esper round"):
        incubator.probe_candidates(plans, DRAWN, snapshot)
        incubator.begin(order_of(plans, 0), DRAWN, snapshot)
        incubator.collect()
        assert len(traces) > 10
        assert set(traces) == {trace_id()}


# -- failures ----------------------------------------------------------------------------------------------------


def test_an_error_of_a_manager_is_raised_by_collect_and_not_before(survey: Survey, incubator_on: Any) -> None:
    manager, live = HeldManager(survey), make_trainer(survey, KEY)
    incubator = incubator_on([LocalManager(survey), manager])
    incubator.begin(order_of(plans_for(survey, 0, 0, ["mlp", "norm"]), 0), DRAWN, [live.snapshot()])
    assert manager.waits.wait(300)
    manager.end()
    with pytest.raises(ActorLost, check=telling(role="kasmina")):
        incubator.collect()


def test_the_loss_of_the_twin_is_raised_where_the_twin_is_needed(survey: Survey, incubator_on: Any) -> None:
    manager, live = HeldManager(survey), make_trainer(survey, KEY)
    manager.let_go()
    incubator = incubator_on([manager])
    incubator.begin(order_of(plans_for(survey, 0, 0, ["mlp"]), 0), DRAWN, [live.snapshot()])
    incubator.collect()
    incubator.keep_twin()
    manager.end()
    incubator.advance_twin(40)
    with pytest.raises(ActorLost):
        incubator.twin_losses(2)


def test_a_closed_incubator_gives_up_what_waits_and_joins_once_its_managers_are_gone(survey: Survey) -> None:
    before, manager, live = set(threading.enumerate()), HeldManager(survey), make_trainer(survey, KEY)
    incubator = RemoteIncubator([manager], not_replaced)  # type: ignore[list-item]
    incubator.begin(order_of(plans_for(survey, 0, 0, ["mlp", "norm"]), 0), DRAWN, [live.snapshot()])
    assert manager.waits.wait(300)
    incubator.close()
    manager.end()
    incubator.join()
    assert set(threading.enumerate()) <= before
