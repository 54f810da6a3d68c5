"""Incubation: the control is the host to the bit, the ranking is the written one, and cheaters never get that far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from growing import DRAWN, GROWTH, RUN, drawn_plan, graft_plan
from torch import Tensor, nn

from esper.errors import DivergenceUnrecoverable, IsolationViolation
from esper.kasmina.blueprints import nc
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, Blueprint, BlueprintRegistry
from esper.kasmina.blueprints.placebos import name_of
from esper.kasmina.blueprints.seed_modules import zeroed
from esper.kasmina.incubation.incubator import Incubator, loss_variation, run_tournament
from esper.kasmina.incubation.live_guard import LiveGuard
from esper.leyline.commands import BlendSpec
from esper.leyline.evidence import GradientProbe, HostObservation, SampleLosses
from esper.leyline.incubation import ForkResult, IncubationOrder, IncubationResult
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import Kind, SlotSpec
from esper.leyline.stages import Stage
from esper.setup.survey import Survey, survey_of
from esper.task import Task
from esper.testing import TinyHost, tiny_config, tiny_task
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.trainer import Trainer, never


def make_plan(
    spec: SlotSpec, name: str, number: int, step: int, blueprints: BlueprintRegistry = BLUEPRINTS
) -> GraftPlan:
    ramp = {"blend": BlendSpec(mode="RESIDUAL", ramp_steps=GROWTH.probe_ramp_steps)}
    ids = {"ordinal": 0, "command_id": "command-1", "warmup_steps": GROWTH.probe_warmup_steps}
    return drawn_plan(spec, name, number, blueprints=blueprints, step=step, **ramp, **ids)


def make_order(plans: Sequence[GraftPlan], *, first: int, last: int, halving: int | None = None) -> IncubationOrder:
    return IncubationOrder(
        order_id="command-1",
        generation=1,
        fence=1,
        due_fence=2,
        first_step=first,
        last_step=last,
        halving_step=halving,
        plans=tuple(plans),
        batch_size=8,
        base_flops=300,
        seed_flops=(90,) * len(plans),
    )


def fork_of(survey: Survey) -> Callable[[HostSnapshot], Trainer]:
    """Makes forks of snapshots, as a run does."""

    def make(snapshot: HostSnapshot) -> Trainer:
        made = survey.trainer(RUN, 1, "kasmina", never)
        made.become(snapshot)
        return made

    return make


# -- with real hosts ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def survey() -> Survey:
    return survey_of(tiny_task(), tiny_config())


@pytest.fixture
def fresh(survey: Survey) -> Callable[[], Trainer]:
    return lambda: survey.trainer(RUN, 1, "kasmina", never)


@pytest.fixture
def fork(survey: Survey) -> Callable[[HostSnapshot], Trainer]:
    return fork_of(survey)


def test_the_control_is_the_live_host_to_the_bit(survey, fresh, fork):
    live = fresh()
    live.train_to(20)
    snapshot, (spec,) = live.snapshot(), survey.specs
    order = make_order([make_plan(spec, "mlp", 0, 20), make_plan(spec, "norm", 1, 20)], first=20, last=40)

    _, ended = run_tournament(order, DRAWN, fork, snapshot)
    control = ended.control.fork

    assert live.train_to(40) != ()
    assert control.weights_sha256() == live.weights_sha256()
    assert control.train_to(50) == live.train_to(50)  # its optimizer too
    assert control.weights_sha256() == live.weights_sha256()


def test_a_tournament_does_not_touch_the_snapshot_and_gives_the_same_result_in_any_order(survey, fresh, fork):
    live = fresh()
    live.train_to(20)
    snapshot, (spec,) = live.snapshot(), survey.specs
    plans = [make_plan(spec, name, number, 20) for number, name in enumerate(("norm", "mlp", "low_rank"))]
    order = make_order(plans, first=20, last=36, halving=28)

    def backwards(pieces: Sequence[Callable[[], Any]], /) -> list[Any]:
        return [piece() for piece in reversed(pieces)][::-1]

    first, _ = run_tournament(order, DRAWN, fork, snapshot)
    second, _ = run_tournament(order, DRAWN, fork, snapshot, backwards)

    assert first == second
    assert fork(snapshot).weights_sha256() == live.weights_sha256()
    assert {found.seed_id: found.rank for found in first.forks}["seed-1"] == 1  # the mlp: nothing linear can gain here


def test_a_fork_does_what_the_live_host_would_do_with_the_same_seed(survey, fresh, fork):
    live, (spec,) = fresh(), survey.specs
    live.train_to(20)
    plan, snapshot = make_plan(spec, "mlp", 0, 20), live.snapshot()
    seeded = fork(snapshot)
    seeded.graft(plan, DRAWN)
    live.graft(plan, DRAWN)
    assert seeded.train_to(35) == live.train_to(35)
    assert seeded.weights_sha256() == live.weights_sha256()


class Rectified(TinyHost):
    """A ReLU follows the slot, so the slot's output must not be replaced by zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


@pytest.mark.parametrize(("ramp_steps", "dead"), [(1, True), (4, False)])
def test_a_new_seed_that_replaces_the_output_is_dead_only_if_it_is_at_no_alpha_of_its_ramp(survey, ramp_steps, dead):
    rectified = replace(survey, task=replace(survey.task, model=Rectified))
    blend, (spec,) = BlendSpec(mode="CONVEX", ramp_steps=ramp_steps), survey.specs
    incubator = Incubator(fork_of(rectified), {"body": spec}, BLUEPRINTS)
    plan = drawn_plan(spec, "mlp", blend=blend)
    (probe,) = incubator.probe_candidates([plan], DRAWN, rectified.trainer(RUN, 1, "kasmina", never).snapshot())
    assert probe.gradient.batches == 2
    assert (probe.gradient.norm == 0.0) is dead
    assert probe.fallbacks == ()


def test_gradients_that_are_not_finite_at_full_alpha_are_reported_and_not_measured_again(survey, fresh, monkeypatch):
    (spec,) = survey.specs
    norm = max([0.0, math.nan])  # of a batch without gradient, and of one whose gradient is nan
    assert norm == 0.0
    broken = GradientProbe(batches=2, nonfinite=3, norm=norm, reachable_host_parameters=())
    seen = [(broken, ()), (broken.model_copy(update={"nonfinite": 0, "norm": 1.0}), ())]
    monkeypatch.setattr("esper.kasmina.incubation.incubator._gradients", lambda *_: seen.pop(0))
    plan = drawn_plan(spec, "mlp", blend=BlendSpec(mode="RESIDUAL", ramp_steps=4))
    measured = Incubator(fork_of(survey), {"body": spec}, BLUEPRINTS)
    (probe,) = measured.probe_candidates([plan], DRAWN, fresh().snapshot())
    assert probe.gradient == broken


def test_a_candidate_is_probed_at_full_alpha_and_leaves_the_live_host_alone(survey, fresh, fork):
    live, (spec,) = fresh(), survey.specs
    live.train_to(20)
    before, incubator = live.weights_sha256(), Incubator(fork, {"body": spec}, BLUEPRINTS)

    probes = incubator.probe_candidates(
        [make_plan(spec, "mlp", 0, 20), make_plan(spec, "norm", 1, 20)], DRAWN, live.snapshot()
    )

    assert [probe.seed_id for probe in probes] == ["seed-0", "seed-1"]
    for probe in probes:
        assert (probe.sanity.output_shape, probe.sanity.parameters_finite) == ((8,), True)
        assert probe.sanity.sample_leak == 0
        assert (probe.gradient.batches, probe.gradient.nonfinite) == (2, 0)
        assert probe.gradient.reachable_host_parameters == ()
    assert live.weights_sha256() == before
    ramped, full = make_plan(spec, "mlp", 2, 20), BlendSpec(mode="RESIDUAL", ramp_steps=1)
    norms = []
    for plan in (ramped, ramped.model_copy(update={"blend": full})):
        by_hand = fork(live.snapshot())
        by_hand.graft(plan, DRAWN)
        norms.append(by_hand.probe_gradients("seed-2", 2).norm)
    assert probes[0].gradient.norm == norms[1] > 2 * norms[0]


def own(*kinds: Kind, **factories: Callable[[SlotSpec], nn.Module]) -> BlueprintRegistry:
    made = BlueprintRegistry()
    for name, factory in factories.items():
        made.add(Blueprint(name, kinds, 0.1, factory))
    return made


def test_candidates_of_one_command_do_not_see_each_other():
    loud = own(Kind.NC, loud=lambda _: nn.Linear(8, 8))  # not zero at birth
    survey = survey_of(tiny_task(), tiny_config(), loud)
    (spec,), snapshot = survey.specs, survey.trainer(RUN, 1, "kasmina", never).snapshot()
    plans = [make_plan(spec, "loud", number, 0, loud) for number in range(2)]
    one, other = Incubator(fork_of(survey), {"body": spec}, loud).probe_candidates(plans, DRAWN, snapshot)
    assert one.gradient == other.gradient


@pytest.mark.parametrize("when", ["probed", "trained", "evaluated"])
def test_a_candidate_that_changes_the_live_host_in_this_process_is_named(when, told):
    class Reaches(nn.Linear):
        def forward(self, h: Tensor) -> Tensor:
            if reaching and self.training == (when != "evaluated"):
                live.host.head.weight.data.mul_(0.5)
            return super().forward(h)

    reaching: list[bool] = []
    both = own(Kind.NC, reaches=lambda _: zeroed(Reaches(8, 8)), honest=lambda _: zeroed(nn.Linear(8, 8)))
    survey = survey_of(tiny_task(), tiny_config(), both)
    live, (spec,) = survey.trainer(RUN, 1, "tolaria", never), survey.specs
    plans = [make_plan(spec, name, number, 0, both) for number, name in enumerate(("honest", "reaches"))]
    incubator = Incubator(fork_of(survey), {"body": spec}, both, live)
    incubator.begin(make_order(plans, first=0, last=4), DRAWN, live.snapshot())
    incubator.probe_candidates(plans, DRAWN, live.snapshot())
    reaching.append(True)
    probe = partial(incubator.probe_candidates, plans, DRAWN, live.snapshot())
    with pytest.raises(IsolationViolation) as violation:
        (probe if when == "probed" else incubator.collect)()
    assert (violation.value.seed_id, violation.value.leaves) == ("seed-1", ("head.weight of the live host",))
    assert [event["name"] for event in told()] == ["isolation_violated"]


class FakeLive:
    value = reads = 0

    def tensor_digests(self) -> dict[str, int]:
        self.reads += 1
        return {"weight": self.value}


def test_the_live_host_is_read_once_between_two_candidates_and_again_after_work_without_a_candidate(survey):
    live, (spec,) = FakeLive(), survey.specs
    guard, (one, other) = LiveGuard(live), (make_plan(spec, "mlp", number, 0) for number in range(2))
    for plan, reads in ((one, 2), (other, 3), (None, 3), (one, 5), (other, 6)):
        with guard.around(plan):
            live.value += plan is None
        assert live.reads == reads
    with pytest.raises(IsolationViolation) as violation, guard.around(other):
        live.value += 1
    assert violation.value.seed_id == other.seed_id


def test_a_kept_control_lives_on_as_the_twin(survey, fresh, fork):
    live, (spec,) = fresh(), survey.specs
    incubator = Incubator(fork, {"body": spec}, BLUEPRINTS)
    incubator.begin(make_order([make_plan(spec, "mlp", 0, 0)], first=0, last=10), DRAWN, live.snapshot())
    incubator.collect()
    incubator.keep_twin()
    incubator.advance_twin(30)
    live.train_to(30)
    assert incubator.twin_losses(3) == live.sample_losses("gate", 3)
    report = incubator.twin_report()
    assert (report.steps, report.weights_sha256) == (20, live.weights_sha256())


# -- ranking, with forks whose gain is given ---------------------------------------------------------------------


class GradedFork:
    """A fork whose losses lie below the control's by a given number, from step to step and sample to sample."""

    def __init__(self, gains: dict[str, float], bursts_at: dict[str, int] | None = None) -> None:
        self.gains, self.bursts_at = gains, bursts_at or {}
        self.name, self.step, self.asked = "", 0, []

    def graft(self, plan: GraftPlan, weights: Mapping[str, bytes]) -> None:
        del weights
        self.name = plan.seed_id

    def train_to(self, step: int) -> tuple[float, ...]:
        if self.step <= self.bursts_at.get(self.name, 10**9) < step:
            raise DivergenceUnrecoverable(self.step, "loss", math.nan)
        done = tuple(3.0 - 0.1 * at + (-1) ** at for at in range(self.step, step))
        self.step = step
        return done

    def sample_losses(self, shard: str, fence: int, units: int | None = None) -> SampleLosses:
        self.asked.append((shard, fence, self.step))
        gain = self.gains.get(self.name, 0.0)
        losses = tuple(2.0 - gain * (1 + 0.5 * (-1) ** place) for place in range(units or 16))
        return SampleLosses(shard=shard, fence=fence, losses=losses)

    def observe(self, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        del stages
        return HostObservation(fence=fence, registered_layers=(), seeds=())


class Ground:
    """A tournament of graded forks; it remembers every fork."""

    def __init__(self, gains: dict[str, float], bursts_at: dict[str, int] | None = None) -> None:
        self.gains, self.bursts_at = gains, bursts_at
        self.forks: list[GradedFork] = []

    def fork(self, snapshot: object) -> GradedFork:
        assert snapshot == "snapshot"
        self.forks.append(GradedFork(self.gains, self.bursts_at))
        return self.forks[-1]

    def run(self, order: IncubationOrder) -> IncubationResult:
        result, ended = run_tournament(order, {}, self.fork, "snapshot")
        control = ended.control.fork
        assert control is self.forks[0]
        return result


def graded_plan(seed_id: str, slot: str = "body", name: str = "mlp") -> GraftPlan:
    return graft_plan(seed_id=seed_id, slot=slot, blueprint_id=name, isolated=False)


def ranks(result: IncubationResult) -> dict[str, int | None]:
    return {found.seed_id: found.rank for found in result.forks}


def by_id(result: IncubationResult, seed_id: str) -> ForkResult:
    return next(found for found in result.forks if found.seed_id == seed_id)


def test_forks_are_ranked_by_their_gain_over_the_control_and_told_in_the_order_of_their_plans():
    ground = Ground({"a": -0.2, "b": 0.3, "c": 0.1})
    result = ground.run(make_order([graded_plan(name) for name in "abc"], first=0, last=20))
    assert list(ranks(result).items()) == [("a", 3), ("b", 1), ("c", 2)]
    best = by_id(result, "b")
    assert best.pick.mean == pytest.approx(0.3)
    assert best.gate.mean == pytest.approx(0.3)
    assert best.gate.shard == "gate"
    assert [by_id(result, name).gate for name in "ac"] == [None, None]
    assert [by_id(result, name).loss_variation is None for name in "abc"] == [True, False, True]
    assert {(found.steps, found.required_steps) for found in result.forks} == {(20, 20)}


def test_the_gate_shard_is_seen_by_the_first_and_the_control_alone():
    ground = Ground({"a": 0.1, "b": 0.2})
    ground.run(make_order([graded_plan("a"), graded_plan("b")], first=0, last=20))
    asked = {fork.name: [shard for shard, _, _ in fork.asked] for fork in ground.forks}
    assert asked == {"": ["pick", "gate"], "a": ["pick"], "b": ["pick", "gate"]}
    assert {fence for fork in ground.forks for _, fence, _ in fork.asked} == {2}  # the slice of the due fence


def test_at_the_halving_the_worse_part_leaves():
    gains = dict(zip("abcde", (0.1, 0.5, 0.2, -0.3, 0.4), strict=True))
    ground = Ground(gains)
    result = ground.run(make_order([graded_plan(name) for name in "abcde"], first=0, last=20, halving=8))
    assert ranks(result) == {"a": None, "b": 1, "c": 3, "d": None, "e": 2}  # of five, three go on
    assert {found.seed_id: found.steps for found in result.forks} == {"a": 8, "b": 20, "c": 20, "d": 8, "e": 20}
    assert by_id(result, "d").pick.mean == pytest.approx(-0.3)  # as it stood when it left
    assert result.fork_steps == 20 + 3 * 20 + 2 * 8


def test_after_each_of_three_rungs_the_worse_leave_and_more_samples_are_judged():
    names = "abcdefghij"
    ground = Ground({name: 0.1 * place for place, name in enumerate(names)})
    order = make_order([graded_plan(name) for name in names], first=0, last=20)
    result = ground.run(order.model_copy(update={"rungs": (5, 9, 20), "rung_units": (4, 8, 16)}))
    steps = {found.seed_id: found.steps for found in result.forks}
    assert steps == dict.fromkeys("abcde", 5) | dict.fromkeys("fg", 9) | dict.fromkeys("hij", 20)
    assert ranks(result) == dict.fromkeys("abcdefg") | {"j": 1, "i": 2, "h": 3}
    counts = {found.seed_id: found.pick.count for found in result.forks}
    assert counts == dict.fromkeys("abcde", 4) | dict.fromkeys("fg", 8) | dict.fromkeys("hij", 16)
    assert by_id(result, "j").gate.count == 16


PLACEBO_GAINS = {"placebo-0": 0.2, "placebo-1": -0.4, "placebo-2": 0.0}


def with_placebos(order: IncubationOrder) -> IncubationOrder:
    plans = tuple(graded_plan(f"placebo-{place}", name=name_of(place)) for place in range(3))
    return order.model_copy(update={"placebos": plans, "placebo_flops": (90, 90, 90)})


def test_placebos_train_to_the_end_and_have_gains_but_no_rank():
    ground = Ground({"a": 9.0, "b": 8.0, "c": 7.0, "d": 6.0, **PLACEBO_GAINS})
    order = with_placebos(make_order([graded_plan(name) for name in "abcd"], first=0, last=20, halving=8))
    result = ground.run(order)
    assert ranks(result) == {"a": 1, "b": 2, "c": None, "d": None}
    assert [(one.kind, len(one.picks)) for one in result.placebos] == [
        ("constant", 2),
        ("frozen_linear", 2),
        ("constant", 2),
    ]
    assert [one.gate.mean for one in result.placebos] == [pytest.approx(gain) for gain in PLACEBO_GAINS.values()]
    assert result.fork_steps == 20 + 2 * 20 + 2 * 8 + 3 * 20


@pytest.mark.parametrize(("best", "going_on"), [(9.0, 5), (0.7, 7)])  # 3 rms of the placebos is 0.77
def test_a_field_whose_best_is_not_better_than_the_placebos_shrinks_less(best, going_on):
    names = "abcdefghij"
    ground = Ground({name: best - 0.01 * place for place, name in enumerate(names)} | PLACEBO_GAINS)
    order = make_order([graded_plan(name) for name in names], first=0, last=20, halving=8)
    steps = [found.steps for found in ground.run(with_placebos(order)).forks]
    assert steps == [20] * going_on + [8] * (10 - going_on)


def test_a_placebo_that_diverges_has_no_gain_at_the_gate():
    ground = Ground({"a": 0.1, **PLACEBO_GAINS}, bursts_at={"placebo-1": 12})
    order = with_placebos(
        make_order([graded_plan("a"), graded_plan("b"), graded_plan("c")], first=0, last=20, halving=8)
    )
    result = ground.run(order)
    assert [one.gate is None for one in result.placebos] == [False, True, False]
    assert ranks(result)["a"] == 1


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
def test_ties_break_by_slot_and_then_by_blueprint(order):
    plans = {"a": graded_plan("a", "body", "norm"), "b": graded_plan("b", "body", "mlp"), "c": graded_plan("c", "arm")}
    ground = Ground({"a": 0.1, "b": 0.1, "c": 0.1})
    result = ground.run(make_order([plans[name] for name in order], first=0, last=20))
    assert ranks(result) == {"c": 1, "b": 2, "a": 3}


def test_a_gain_that_is_not_a_number_comes_last():
    ground = Ground({"a": math.nan, "b": -0.5, "c": math.nan, "d": -0.1})
    result = ground.run(make_order([graded_plan(name) for name in "abcd"], first=0, last=20))
    assert (ranks(result)["d"], ranks(result)["b"]) == (1, 2)


@pytest.mark.parametrize(("burst", "steps"), [(3, 0), (12, 8)])
def test_a_candidate_that_diverges_is_out_and_the_tournament_goes_on(burst, steps):
    ground = Ground({"a": 0.9, "b": 0.2, "c": 0.1}, bursts_at={"a": burst})
    result = ground.run(make_order([graded_plan(name) for name in "abc"], first=0, last=20, halving=8))
    assert ranks(result)["a"] is None
    assert ranks(result)["b"] == 1
    assert by_id(result, "a").steps == steps < by_id(result, "a").required_steps


def test_a_tournament_whose_every_candidate_diverges_has_no_first():
    result = Ground({}, bursts_at={"a": 3, "b": 4}).run(
        make_order([graded_plan("a"), graded_plan("b")], first=0, last=20)
    )
    assert ranks(result) == {"a": None, "b": None}


def test_a_control_that_diverges_ends_the_run():
    with pytest.raises(DivergenceUnrecoverable):
        Ground({}, bursts_at={"": 3}).run(make_order([graded_plan("a")], first=0, last=20))


def test_the_cost_is_that_of_all_steps_and_all_that_was_evaluated():
    result = Ground({"a": 0.1, "b": 0.2}).run(make_order([graded_plan("a"), graded_plan("b")], first=0, last=20))
    passes = 16 / 8 / 3  # 16 samples in batches of 8; forward alone
    control, first, other = 300 * (20 + 2 * passes), 390 * (20 + 2 * passes), 390 * (20 + passes)
    assert result.flops == round(control + first + other)


# -- cheaters, from end to end -----------------------------------------------------------------------------------


class Steps(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Sequences [T, C]; the class at t, one of eight, is three facts that are harder and harder to tell.

    Is x2 positive (a linear host can tell); is x0 far from 0 (a seed can); will x1 be positive next (nobody can).
    """

    def __init__(self, count: int, key: int) -> None:
        x_BTC = torch.randn(count, 7, 8, generator=torch.Generator().manual_seed(key))
        self.inputs = now_BTC = x_BTC[:, :6]
        facts = now_BTC[..., 2] > 0, now_BTC[..., 0].abs() > 0.67, x_BTC[:, 1:, 1] > 0
        self.targets = sum(fact.long() << place for place, fact in enumerate(facts))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


class SequenceHost(nn.Module):
    """[B, T, 8] -> [B, T, 8], position by position: causal, with a slot "body" of kind NTC."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 8)

    def forward(self, x_BTC: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x_BTC))
        return scores


def sequence_task() -> Task:
    return tiny_task(
        model=SequenceHost,
        train=Steps(512, key=1),
        valid=Steps(64, key=2),
        test=Steps(256, key=3),
        pick=Steps(256, key=4),
        gate=Steps(256, key=5),
        loss=lambda out_BTK, target_BT: nn.functional.cross_entropy(out_BTK.flatten(0, 1), target_BT.flatten()),
        sample_loss=lambda out_BTK, target_BT: nn.functional.cross_entropy(
            out_BTK.transpose(1, 2), target_BT, reduction="none"
        ).mean(dim=1),
        epochs=20,
    )


class Peek(nn.Module):
    """A same-padded convolution over time: it sees the step after."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 32, 3, padding=1)
        self.out = zeroed(nn.Linear(32, channels))

    def forward(self, h_BTC: Tensor) -> Tensor:
        seen = torch.relu(self.conv(h_BTC.transpose(1, 2))).transpose(1, 2)
        correction: Tensor = self.out(seen)
        return correction


class Gossip(nn.Module):
    """Hands every sample the mean of all others of its batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, h_BTC: Tensor) -> Tensor:
        correction: Tensor = self.out(h_BTC - h_BTC.mean(dim=0))
        return correction


class Bomb(nn.Module):
    """Honest for six training steps, and not a number from then on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out = zeroed(nn.Linear(channels, channels))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, h_BTC: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        correction: Tensor = self.out(h_BTC) * torch.where(self.calls > 6, math.nan, 1.0)
        return correction


OWN = own(
    Kind.NTC,
    peek=lambda spec: Peek(spec.shape[-1]),
    gossip=lambda spec: Gossip(spec.shape[-1]),
    bomb=lambda spec: Bomb(spec.shape[-1]),
    honest=lambda spec: nc.mlp(spec.shape[-1]),
)


def test_planted_cheaters_are_refused_at_g0_and_the_run_goes_on_with_the_honest(live):
    lived = live(sequence_task(), tiny_config(), blueprints=OWN.for_kind(Kind.NTC))

    seeds = {seed.seed_id: seed.blueprint for seed in lived.result.seeds}
    refused = {seeds[report.seed_id]: set(report.reasons) for report in lived.gates if report.gate == "G0"}
    assert refused.pop("gossip") >= {"samples_mixed"}
    assert refused == {"peek": {"causality_broken"}, "bomb": set(), "honest": set()}
    trained = {seeds[step.seed_id] for step in lived.transitions if step.after is Stage.TRAINING}
    assert trained == {"bomb", "honest"}
    reports = {seeds[report.seed_id]: report.reasons for report in lived.field_reports}
    assert reports["peek"] == ("causality_broken",)
    assert "samples_mixed" in reports["gossip"]
    assert reports["bomb"] == ("not_enough_steps",)  # it diverged in its fork, and only there
    assert {seed.blueprint for seed in lived.result.seeds if seed.stage == "FOSSILIZED"} == {"honest"}
    assert lived.result.steps == 320
    assert lived.result.test_loss < lived.result.twin_test_loss


def test_without_g0_the_peeking_cheater_would_pass_for_a_winner():
    survey = survey_of(sequence_task(), tiny_config(), OWN)
    (spec,) = survey.specs
    assert (spec.kind, spec.causal, spec.samples_independent) == (Kind.NTC, True, True)
    order = make_order([make_plan(spec, "peek", 0, 0, OWN)], first=0, last=60)

    result, _ = run_tournament(order, DRAWN, fork_of(survey), survey.trainer(RUN, 1, "kasmina", never).snapshot())

    assert by_id(result, "seed-0").gate.z > 2 * survey.g2_limit()


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([2.0] * 8, 0.0), ([8.0, 7, 6, 5, 4, 3, 2, 1], 0.0), ([9.0] * 4 + [1.5, 0.5] * 50, 0.5), ([3.0, 1.0], 0.0)],
    ids=["flat", "falling fast", "up and down", "too short to scatter"],
)
def test_variation_is_scatter_about_the_course_of_the_late_losses(losses: list[float], expected: float) -> None:
    assert loss_variation(losses) == pytest.approx(expected, abs=0.02)
