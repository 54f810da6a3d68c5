"""The registry: whole lives of seeds, and that what cannot be judged or is not meant changes nothing."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import pytest
from growing import (
    ALIVE,
    CLEAN,
    CONTROLLED,
    FORKED,
    SPOTLESS,
    a_registry,
    live_and_twin,
    observation_of,
    pairs,
    probed,
    result_of,
)

from esper.errors import (
    DependencyViolationError,
    EvidenceMissing,
    SeedBuildFailed,
    StageConflict,
    StoreCorrupt,
)
from esper.ground.tensors import blob_digest, from_bytes
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, Blueprint, BlueprintRegistry
from esper.kasmina.incubation.rungs import tournaments_of
from esper.kasmina.registry.registry_state import RegistryState
from esper.leyline.commands import BlendSpec, Candidate, Command, Operation
from esper.leyline.evidence import (
    HostObservation,
    PairedLosses,
)
from esper.leyline.incubation import Answer, CandidateProbe, IncubationOrder, PlaceboResult
from esper.leyline.reports import AdoptPlan, ConfidencePlan, Gate, GraftPlan, JoinPlan, Outcome, RatePlan, RemovePlan
from esper.leyline.slots import Kind
from esper.leyline.stages import Stage
from esper.leyline.state import RegistryView
from esper.telemetry import events
from esper.testing import FakeClock, fail_with, telling, tiny_config


class Life:
    """A registry driven by hand. Rounds of 10 steps; a ramp of 30; fence 20 ends the run."""

    def __init__(self, make_command: Any, spec: Any, blueprints: BlueprintRegistry = BLUEPRINTS, **growth: Any):
        self.clock, self._make_command, self._commands = FakeClock(), make_command, 0
        self.growth = tiny_config(**{f"growth__{name}": value for name, value in growth.items()}).growth
        self.registry = a_registry(clock=self.clock, slots=[spec], growth=self.growth, blueprints=blueprints)

    def order(self, operation: Operation, **changes: Any) -> Command:
        self._commands += 1
        return self._make_command(operation, name=str(self._commands), issued_at=self.clock.now(), **changes)

    def obey(self, fence: int, operation: Operation, **changes: Any) -> Answer:
        """Have a command carried out that needs no evidence."""
        command = self.order(operation, **changes)
        self.registry.receive(command, fence)
        return self.registry.carry_out(command.command_id, fence, (), None)

    def cull(self, fence: int, seed_id: str) -> Answer:
        return self.obey(fence, Operation.CULL, seed_id=seed_id)

    def germinate(
        self, fence: int, *seeds: tuple[str, str], probes: dict[str, CandidateProbe] | None = None, **changes: Any
    ) -> Answer:
        """Germinate (seed id, blueprint) pairs; `probes` replaces what a clean candidate would have shown."""
        candidates = tuple(Candidate(slot="body", blueprint_id=name, seed_id=seed_id) for seed_id, name in seeds)
        command = self.order(Operation.GERMINATE, candidates=candidates, **changes)
        born = {probe.seed_id: probe for probe in probed(self.registry.receive(command, fence))}
        return self.registry.carry_out(command.command_id, fence, tuple((born | (probes or {})).values()), None)

    def train(self, fence: int, seed_id: str, name: str = "mlp", *, z: float = 8.0, **changes: Any) -> None:
        """From nothing at `fence` to the end of its tournament, alone, at the next."""
        order = self.germinate(fence, (seed_id, name), **changes).order
        self.registry.conclude(result_of(order, [seed_id], z), fence + 1)

    def observation(self, fence: int, **changes: Any) -> HostObservation:
        return observation_of(self.state(fence), fence, **changes)

    def advance(self, fence: int, seed_id: str, observation: HostObservation | None = None, **changes: Any) -> Answer:
        stage = self.stage(seed_id)
        operation = Operation.FOSSILIZE if stage is Stage.PROBATIONARY else Operation.ADVANCE
        blend = self.seeds(fence)[seed_id].blend if stage is Stage.TRAINING else None
        command = self.order(operation, **({"seed_id": seed_id, "blend": blend} | changes))
        assert self.registry.receive(command, fence) == ()
        return self.registry.carry_out(command.command_id, fence, (), observation or self.observation(fence))

    def win(self, fence: int, seed_id: str, name: str = "mlp", **changes: Any) -> Answer:
        """From nothing at `fence` into the host at the next."""
        self.train(fence, seed_id, name, **changes)
        return self.advance(fence + 1, seed_id)

    def shadow(self) -> None:
        """Seed "a" from nothing at fence 1 to its stage SHADOWING at fence 5."""
        self.win(1, "a")
        self.advance(5, "a")

    def compare(self, fence: int, gain: float) -> PairedLosses:
        return self.registry.compare(*live_and_twin(fence, gain))

    def seeds(self, fence: int) -> dict[str, Any]:
        return {seed.seed_id: seed for seed in self.state(fence).seeds}

    def state(self, fence: int) -> RegistryView:
        return self.registry.view(fence)

    def stage(self, seed_id: str) -> Stage:
        return self.state(0).stages[seed_id]


@pytest.fixture
def begin(make_command, body_spec):
    """Begin a run; keywords are fields of [growth]."""
    return partial(Life, make_command, body_spec)


@pytest.fixture
def life(begin):
    return begin()


def steps(answer: Answer) -> list[tuple[str, Stage, Stage, str]]:
    return [(step.seed_id, step.before, step.after, step.cause) for step in answer.transitions]


def failed(answer: Answer) -> list[tuple[Gate, tuple[str, ...]]]:
    return [(report.gate, report.reasons) for report in answer.gates if not report.passed]


def test_rates_are_scaled_once_for_each_command_and_seen_by_the_policy(life):
    life.win(1, "a")
    before = life.seeds(3)["a"]
    answer = life.obey(3, Operation.SCALE_RATE, seed_id="a", rate_scale=0.25)
    (plan,) = answer.plans
    assert isinstance(plan, RatePlan)
    assert (plan.seed_id, plan.rate_scale, plan.fence, plan.generation) == ("a", 0.25, 3, 1)
    assert answer == Answer(plans=(plan,))
    assert life.seeds(3)["a"] == before.model_copy(update={"rate_scale": 0.25})
    assert life.registry.carry_out(plan.command_id, 4, (), None) is answer


# -- the life of a winner ----------------------------------------------------------------------------------------


def test_the_whole_life_of_a_winner(life, told):
    born = life.germinate(1, ("a", "mlp"))
    assert steps(born) == [
        ("a", Stage.DORMANT, Stage.GERMINATED, "G0"),
        ("a", Stage.GERMINATED, Stage.TRAINING, "G1"),
    ]
    assert [report.gate for report in born.gates] == [Gate.G0, Gate.G1]
    assert (born.order.fence, born.order.due_fence, born.order.first_step, born.order.last_step) == (1, 2, 10, 20)
    assert life.state(1).incubating
    assert not life.state(1).due
    assert life.state(2).due
    assert not life.seeds(2)["a"].due  # there is no result yet

    assert life.registry.conclude(result_of(born.order, "a"), 2) == Answer()
    assert life.seeds(2)["a"].due
    assert not life.state(2).incubating
    accepted = life.advance(2, "a", mesh_host_layers=("body", "head"))
    assert steps(accepted) == [("a", Stage.TRAINING, Stage.BLENDING, "G2")]
    (graft,) = accepted.plans
    assert isinstance(graft, GraftPlan)
    assert (graft.start_step, graft.ordinal, graft.isolated, graft.blend.ramp_steps) == (20, 0, True, 30)
    assert graft.weights_digest == born.order.plans[0].weights_digest
    assert graft.weights_digest == blob_digest(life.registry.weights_of([graft])[graft.weights_digest])
    assert accepted.keep_twin
    assert life.state(0).has_twin
    assert not life.state(0).compares_with_twin

    assert [life.seeds(fence)["a"].due for fence in (2, 3, 4, 5)] == [False, False, False, True]
    blended = life.advance(5, "a")
    assert steps(blended) == [("a", Stage.BLENDING, Stage.SHADOWING, "G3")]
    (join,) = blended.plans
    assert isinstance(join, JoinPlan)
    assert life.seeds(5)["a"].required_mesh == ("body", "head")
    assert life.state(0).compares_with_twin

    life.compare(6, -2.9)  # no harm that can be told from chance
    assert steps(life.advance(6, "a")) == [("a", Stage.SHADOWING, Stage.PROBATIONARY, "G4")]
    life.compare(7, 1.0)
    assert not life.seeds(7)["a"].due
    life.compare(8, 1.0)
    joined = life.advance(8, "a")
    assert steps(joined) == [("a", Stage.PROBATIONARY, Stage.FOSSILIZED, "G4")]
    assert joined.plans == ()
    (report,) = joined.field_reports
    assert (report.outcome, report.reasons, report.window_fences) == (Outcome.SUCCESS, (), (1, 8))
    assert (report.gain, report.z, report.pick_gain) == (0.16, 8.0, 0.16)
    assert not any(life.seeds(fence)["a"].due for fence in range(8, 20))
    assert not life.state(0).compares_with_twin
    assert life.state(8).added_parameters == 50
    assert life.state(0).step_flops == 1_100
    assert told() == []


def test_an_adopted_seed_goes_on_with_the_plan_of_its_fork(begin):
    life = begin(entry="adopt")
    born = life.germinate(1, ("a", "mlp"))
    (forked,) = born.order.plans
    assert born.order.adopts
    assert (forked.isolated, forked.blend.ramp_steps, forked.start_step) == (False, 30, 10)
    life.registry.conclude(result_of(born.order, "a"), 2)
    accepted = life.advance(2, "a", mesh_host_layers=("body", "head"))
    (plan,) = accepted.plans
    assert isinstance(plan, AdoptPlan)
    assert (plan.graft, plan.before_sha256, plan.after_sha256) == (forked, CONTROLLED, FORKED)
    assert accepted.keep_twin
    assert [life.seeds(fence)["a"].due for fence in (2, 3, 4)] == [False, False, True]  # the ramp began at step 10
    assert (life.seeds(3)["a"].ordinal, life.seeds(3)["a"].alpha, life.seeds(4)["a"].alpha) == (0, 20 / 30, 1.0)
    assert life.advance(4, "a").plans == ()
    life.compare(5, -9.0)
    (report,) = life.advance(5, "a").gates
    assert (report.passed, [note.split(" over ")[0] for note in report.notes]) == (True, ["z against the twin -8.98"])


def test_a_fork_is_not_adopted_by_a_host_that_changed_meanwhile_nor_without_its_digests(begin):
    life = begin(entry="adopt", due_rounds=2, twin=False)
    order = life.germinate(1, ("a", "mlp")).order
    life.registry.conclude(result_of(order, "a"), 3)
    life.advance(3, "a")
    order = life.germinate(4, ("b", "mlp")).order
    life.obey(5, Operation.SCALE_RATE, seed_id="a", rate_scale=0.5)
    life.registry.conclude(result_of(order, "b"), 6)
    answer = life.advance(6, "b")
    assert failed(answer) == [(Gate.G2, ("host_changed",))]
    assert answer.plans == ()
    order = life.germinate(6, ("c", "mlp")).order
    bare = result_of(order, "c")
    forks = tuple(fork.model_copy(update={"control_sha256": None}) for fork in bare.forks)
    life.registry.conclude(bare.model_copy(update={"forks": forks}), 8)
    before = life.registry.state()
    with pytest.raises(EvidenceMissing, match="digests of the weights"):
        life.advance(8, "c")
    assert life.stage("c") is Stage.TRAINING
    assert json.loads(life.registry.state())["roster"] == json.loads(before)["roster"]


def test_the_best_of_a_refused_tournament_train_on_and_are_judged_again_until_one_is_accepted(begin):
    life = begin(entry="adopt", beside=2)
    order = life.germinate(1, ("a", "mlp"), ("b", "norm"), ("c", "low_rank")).order
    assert order.keeps == 2
    lost = life.registry.conclude(result_of(order, ["a", "b"], z=1.0), 2)
    assert {step.seed_id for step in lost.transitions} == {"c"}
    refused = life.advance(2, "a")
    assert failed(refused) == [(Gate.G2, ("no_improvement",))]
    again = refused.order
    assert (refused.transitions, refused.field_reports) == ((), ())
    assert [plan.seed_id for plan in again.plans] == ["a", "b"]
    assert (again.fence, again.due_fence, again.goes_on_from, again.last_step) == (1, 3, order.last_step, 30)
    assert life.state(2).incubating
    assert (life.state(2).tests_used, life.seeds(2)["a"].due) == (5, False)
    with pytest.raises(StageConflict, match="from fence 3 on"):
        life.advance(2, "a")
    life.registry.restore(life.registry.state(), 1)
    assert life.registry.order() == again
    life.registry.conclude(result_of(again, ["b", "a"]), 3)
    assert {seed_id for seed_id, seed in life.seeds(3).items() if seed.due} == {"b"}
    accepted = life.advance(3, "b")
    (plan,) = accepted.plans
    assert (plan.graft.fence, plan.graft.start_step, plan.fence) == (1, 10, 3)
    assert [(step.seed_id, step.after) for step in accepted.transitions][:2] == [
        ("b", Stage.BLENDING),
        ("a", Stage.CULLED),
    ]
    assert life.germinate(3, ("d", "mlp")).order.keeps == 0


@pytest.mark.parametrize(("z", "fields"), [(-9.0, {}), (1.0, {"max_tests": 2}), (1.0, {"beside": 0})])
def test_a_harmful_seed_and_one_without_a_test_left_do_not_train_on(begin, z, fields):
    life = begin(**{"entry": "adopt", "beside": 2, **fields})
    order = life.germinate(1, ("a", "mlp"), ("b", "norm")).order
    life.registry.conclude(result_of(order, ["a", "b"], z), 2)
    refused = life.advance(2, "a")
    assert refused.order is None
    assert {life.stage(seed_id) for seed_id in ("a", "b")} == {Stage.EMBARGOED}


@pytest.mark.parametrize(
    ("until", "isolated", "joined_at"),
    [("none", False, None), ("blended", True, Stage.SHADOWING), ("fossilized", True, Stage.FOSSILIZED)],
)
def test_isolation_ends_where_the_config_says(begin, until, isolated, joined_at):
    life = begin(isolate_until=until, twin=False)
    assert life.win(1, "a").plans[0].isolated is isolated
    for fence in (5, 6, 8):
        answer = life.advance(fence, "a")
        joins = [plan for plan in answer.plans if isinstance(plan, JoinPlan)]
        assert bool(joins) == (answer.transitions[-1].after is joined_at)


def test_a_seed_is_grafted_with_the_blend_that_its_fork_had(begin):
    life = begin(twin=False)
    blend = BlendSpec(mode="CHANNEL", ramp_steps=30, alpha_target=0.8, schedule="cosine", channels=(0.5,) * 8)
    born = life.germinate(1, ("a", "mlp"), blend=blend)
    (forked,) = born.order.plans
    assert forked.blend == blend.model_copy(update={"ramp_steps": life.growth.probe_ramp_steps})
    life.registry.conclude(result_of(born.order, "a"), 2)
    with pytest.raises(DependencyViolationError, match="another blend than the seed's own"):
        life.advance(2, "a", blend=BlendSpec(mode="RESIDUAL", ramp_steps=30))
    assert life.seeds(2)["a"].stage is Stage.TRAINING
    (graft,) = life.advance(2, "a").plans
    assert graft.blend == blend


def test_a_confidence_follows_the_logits_of_each_command_beyond_the_hysteresis(begin):
    life = begin(twin=False)
    half, near, sure = (0.2, 0.0), (0.21, 0.0), (1.2, 0.0)  # confidences 0.5, 0.51 and 0.982
    blend = BlendSpec(mode="CONFIDENCE", ramp_steps=30)
    born = life.germinate(1, ("a", "mlp"), blend=blend, confidence_logits=half)
    assert born.order.plans[0].confidence == 0.5
    life.registry.conclude(result_of(born.order, "a"), 2)
    (graft,) = life.advance(2, "a", confidence_logits=near).plans
    assert graft.confidence == 0.5

    (raised,) = life.advance(5, "a", life.observation(5, alpha_target=0.5), confidence_logits=sure).plans
    assert isinstance(raised, ConfidencePlan)
    assert (raised.confidence, raised.joins) == (pytest.approx(0.982, abs=1e-3), True)
    assert life.advance(6, "a", confidence_logits=sure).plans == ()
    (lowered,) = life.advance(8, "a", confidence_logits=half).plans
    assert (lowered.confidence, lowered.joins) == (0.5, False)

    assert life.seeds(8)["a"].alpha == 0.5
    stored = RegistryState.model_validate_json(life.registry.state())
    assert stored.roster.seeds[0].graft.confidence == 0.5
    assert [plan for one in stored.commands for plan in one.answer.as_given().plans] == [graft, raised, lowered]


# -- the life of a replica ---------------------------------------------------------------------------------------


def test_the_whole_life_of_a_replica_that_does_no_harm(life):
    winner = life.win(1, "a")
    born = life.germinate(2, ("b", "mlp"), replica_of="a")
    life.registry.conclude(result_of(born.order, "b", -1.0), 3)
    accepted = life.advance(3, "b")

    (report,) = accepted.gates
    measured = {check.name: check.measured for check in report.checks}
    assert measured["own_z"] == -1.0
    assert measured["z"] == 8.0  # the winner's
    assert not accepted.keep_twin  # there is one already
    assert (winner.plans[0].ordinal, accepted.plans[0].ordinal) == (0, 1)
    assert accepted.plans[0].weights_digest != winner.plans[0].weights_digest  # drawn anew, at another fence
    for fence in (5, 6, 7, 8):
        life.compare(fence, 0.0)
        for seed in life.seeds(fence).values():
            if seed.due:
                life.advance(fence, seed.seed_id)
    assert (life.stage("a"), life.stage("b")) == (Stage.FOSSILIZED, Stage.PROBATIONARY)
    life.compare(9, 0.0)
    assert life.advance(9, "b").field_reports[0].z == -1.0  # its own, not the winner's


@pytest.mark.parametrize(
    ("replica_of", "z", "reason", "outcome"),
    [(None, 3.0, "no_improvement", Outcome.NEUTRAL), ("a", -3.1, "harmful", Outcome.REGRESSION)],
)
def test_a_first_that_is_not_good_enough_and_a_replica_that_does_harm_are_not_grafted(
    life, replica_of, z, reason, outcome
):
    if replica_of:
        life.win(1, replica_of)
    life.train(2, "b", z=z, replica_of=replica_of)
    answer = life.advance(3, "b")
    assert failed(answer) == [(Gate.G2, (reason,))]
    assert (answer.plans, answer.keep_twin, life.state(0).has_twin) == ((), False, bool(replica_of))
    assert answer.field_reports[0].outcome is outcome
    assert life.state(3).slots[0].occupied == bool(replica_of)


# -- the lives of losers -----------------------------------------------------------------------------------------


def test_losers_of_a_tournament_go_straight_to_their_reset(life, told):
    born = life.germinate(1, ("a", "mlp"), ("b", "low_rank"), ("c", "norm"))
    answer = life.registry.conclude(result_of(born.order, "ab"), 2)

    assert failed(answer) == [(Gate.G2, ("outperformed",)), (Gate.G2, ("not_enough_steps",))]
    assert steps(answer) == [
        ("b", Stage.TRAINING, Stage.CULLED, "G2"),
        ("b", Stage.CULLED, Stage.EMBARGOED, "G2"),
        ("c", Stage.TRAINING, Stage.CULLED, "G2"),
        ("c", Stage.CULLED, Stage.EMBARGOED, "G2"),
    ]
    assert [report.outcome for report in answer.field_reports] == [Outcome.NEUTRAL, Outcome.NEUTRAL]
    assert answer.plans == ()
    assert life.state(2).slots[0].embargoed == ()  # they were never in the host
    assert life.state(2).resetting == {"b": "body", "c": "body"}
    done = life.registry.reset({"b": SPOTLESS, "c": SPOTLESS}, 2)
    assert [step.after for step in done.transitions] == [Stage.RESETTING, Stage.DORMANT] * 2
    assert [(report.gate, report.passed) for report in done.gates] == [(Gate.G5, True)] * 2
    assert [(event["name"], event["severity"]) for event in told()] == [("gate_failure", "WARNING")] * 2
    assert life.stage("a") is Stage.TRAINING


def test_a_candidate_that_fails_its_probe_is_not_trained_and_the_others_are(life):
    mixing = CandidateProbe(seed_id="b", sanity=CLEAN.model_copy(update={"sample_leak": 0.3}), gradient=None)
    dead = CandidateProbe(seed_id="c", sanity=CLEAN, gradient=ALIVE.model_copy(update={"norm": 0.0}), fallbacks=())
    answer = life.germinate(
        1, ("a", "mlp"), ("b", "low_rank"), ("c", "norm"), ("d", "perpetual_motion"), probes={"b": mixing, "c": dead}
    )

    assert failed(answer) == [
        (Gate.G0, ("samples_mixed",)),
        (Gate.G1, ("gradient_dead",)),
        (Gate.G0, ("unknown_blueprint",)),
    ]
    assert [plan.seed_id for plan in answer.order.plans] == ["a"]
    assert life.state(1).tests_used == 1
    assert [life.stage(name) for name in "bcd"] == [Stage.DORMANT, Stage.EMBARGOED, Stage.DORMANT]
    assert [report.outcome for report in answer.field_reports] == [Outcome.ABORTED] * 3
    life.registry.conclude(result_of(answer.order, "a"), 2)
    assert life.advance(2, "a").transitions[0].after is Stage.BLENDING


def test_every_seed_counts_against_the_budget(begin):
    life = begin(parameter_budget=1.0)  # of 100 parameters; a seed has 50
    life.win(1, "a")
    life.win(2, "b", "norm")
    answer = life.germinate(3, ("c", "low_rank"))
    assert failed(answer) == [(Gate.G0, ("budget_exceeded",))]


# -- culled in the host ------------------------------------------------------------------------------------------


def test_a_mesh_with_a_layer_that_is_gone_culls_at_g3(life, told):
    life.train(1, "a")
    life.advance(2, "a", mesh_host_layers=("body", "attic"))

    answer = life.advance(5, "a")

    assert failed(answer) == [(Gate.G3, ("mesh_incomplete",))]
    assert [step.after for step in answer.transitions] == [Stage.CULLED, Stage.EMBARGOED]
    (removal,) = answer.plans
    assert isinstance(removal, RemovePlan)
    assert (removal.seed_id, removal.fence) == ("a", 5)
    assert answer.field_reports[0].outcome is Outcome.ABORTED
    coverage, failure = told()
    assert (coverage["name"], coverage["severity"]) == ("mesh_coverage_missing", "ERROR")
    assert coverage["fields"] == {
        "seed_id": "a",
        "missing": ["attic"],
        "required": ["body", "attic"],
        "available": ["body", "head"],
    }
    assert (failure["name"], failure["severity"]) == ("gate_failure", "WARNING")


def test_the_mesh_that_counts_is_the_one_recorded_and_not_the_commands(life):
    life.win(1, "a")
    assert life.advance(5, "a", mesh_host_layers=("attic",)).gates[0].passed


def test_an_embargo_binds_its_pair_for_its_rounds_and_g5_ends_it(life):
    life.train(1, "a")
    life.advance(2, "a", mesh_host_layers=("attic",))
    life.advance(5, "a")

    assert [life.state(fence).slots[0].embargoed for fence in (5, 6, 7)] == [("mlp",), ("mlp",), ()]
    assert [life.state(fence).resetting for fence in (5, 6, 7)] == [{}, {}, {"a": "body"}]
    assert life.registry.reset({}, 6) == Answer()
    done = life.registry.reset({"a": SPOTLESS}, 7)
    assert steps(done) == [
        ("a", Stage.EMBARGOED, Stage.RESETTING, "embargo over"),
        ("a", Stage.RESETTING, Stage.DORMANT, "G5"),
    ]
    assert life.state(7).slots[0].occupied == 0
    assert life.state(0).step_flops == 1_000


@pytest.mark.parametrize(
    ("shape", "reasons"), [((5, 8), []), ((6, 7), ["interface_broken"]), ((8,), ["interface_broken"])], ids=str
)
def test_a_slot_may_have_another_length_at_each_fence_and_no_other_channels(make_command, body_spec, shape, reasons):
    spec = body_spec.model_copy(update={"kind": Kind.NTC, "shape": (6, 8)})
    life = Life(make_command, spec)
    seen = CLEAN.model_copy(update={"output_shape": (6, 8), "slot_shape": (6, 8)})
    life.win(1, "a", probes={"a": CandidateProbe(seed_id="a", sanity=seen, gradient=ALIVE, fallbacks=())})
    answer = life.advance(5, "a", life.observation(5, output_shape=shape))
    assert [reason for report in answer.gates for reason in report.reasons] == reasons


def test_a_seed_that_left_something_behind_is_terminated_and_closes_its_slot(life, told):
    life.win(1, "a")
    life.advance(5, "a", life.observation(5, output_shape=(7,)))
    answer = life.registry.reset({"a": SPOTLESS.model_copy(update={"hooks_left": 1})}, 7)
    assert failed(answer) == [(Gate.G5, ("reset_incomplete",))]
    assert life.stage("a") is Stage.TERMINATED
    assert [(step.before, step.after) for step in answer.transitions] == [
        (Stage.EMBARGOED, Stage.RESETTING),
        (Stage.RESETTING, Stage.TERMINATED),
    ]
    assert told()[-1]["fields"]["hooks_left"] == 1
    assert told()[-1]["severity"] == "CRITICAL"
    (slot,) = life.state(7).slots
    assert slot.closed
    with pytest.raises(StageConflict, match="slot body takes no further seed"):
        life.germinate(7, ("b", "mlp"))


@pytest.mark.parametrize("concluded", [True, False])
def test_a_candidate_is_not_grafted_into_a_slot_that_closed_while_its_tournament_was_in_flight(life, concluded):
    life.win(1, "a")
    life.advance(5, "a", life.observation(5, output_shape=(7,)))
    result = result_of(life.germinate(6, ("b", "norm"), ("c", "low_rank")).order, "bc")
    if concluded:
        life.registry.conclude(result, 7)  # "b" has won, and its graft is not commanded yet
    answer = life.registry.reset({"a": SPOTLESS.model_copy(update={"hooks_left": 1}), "c": SPOTLESS}, 7)
    culled = ["b"] if concluded else ["b", "c"]
    assert [step[0] for step in steps(answer) if step[2] is Stage.CULLED] == culled
    assert [(r.seed_id, r.outcome, r.reasons) for r in answer.field_reports] == [
        (seed_id, Outcome.ABORTED, ("slot_closed",)) for seed_id in culled
    ]
    assert answer.plans == ()
    if not concluded:
        assert life.registry.conclude(result, 8) == Answer()
    assert not any(seed.due for seed in life.seeds(8).values())
    assert not life.state(8).incubating
    with pytest.raises(StageConflict):
        life.advance(8, "b")


def test_a_host_worse_than_its_twin_sheds_all_that_is_not_fossilised_newest_first(life):
    life.shadow()
    for fence in (6, 7, 8):
        life.compare(fence, 1.0)
        if life.seeds(fence)["a"].due:
            life.advance(fence, "a")
    assert life.stage("a") is Stage.FOSSILIZED
    life.win(8, "b", "norm")  # in the host at 9
    life.win(9, "c", "low_rank")  # at 10
    life.win(10, "d", "norm")  # at 11
    waiting = life.germinate(11, ("e", "mlp"))
    life.advance(12, "b")
    life.compare(13, -3.1)

    answer = life.advance(13, "b")

    assert failed(answer) == [(Gate.G4, ("worse_than_twin",))]
    assert [(plan.seed_id, type(plan)) for plan in answer.plans] == [
        ("d", RemovePlan),
        ("c", RemovePlan),
        ("b", RemovePlan),
    ]
    assert [step[0] for step in steps(answer)] == ["d", "d", "c", "c", "b", "b"]
    assert {report.outcome for report in answer.field_reports} == {Outcome.REGRESSION}
    assert len(answer.gates) == 1
    assert life.stage("a") is Stage.FOSSILIZED
    assert life.stage("e") is Stage.TRAINING
    assert life.state(13).slots[0].embargoed == ("low_rank", "norm")
    assert life.state(waiting.order.due_fence).due


def test_small_harms_of_several_rounds_add_up(begin):
    life = begin(probation_rounds=3)
    life.shadow()
    life.compare(6, -1.8)
    assert life.advance(6, "a").gates[0].passed
    for fence in (7, 8, 9):
        life.compare(fence, -1.8)
    assert failed(life.advance(9, "a")) == [(Gate.G4, ("worse_than_twin",))]


def test_a_seed_that_ran_elsewhere_than_asked_is_culled_for_good_reason(life, telemetry, told):
    life.shadow()
    life.compare(6, 1.0)
    answer = life.advance(6, "a", life.observation(6, path="compiled"))
    assert failed(answer) == [(Gate.G4, ("fallback_status",))]
    assert [(event["name"], event["severity"]) for event in told()] == [
        ("fallback_status_rejected", "CRITICAL"),
        ("gate_failure", "CRITICAL"),
    ]
    assert telemetry.counters.total("esper.fallbacks", source="status") == 1


@pytest.mark.parametrize(
    ("seen", "reason", "violations"),
    [
        ({"isolation_leaks": ("body.weight",)}, "isolation_violated", 1),
        ({"stage": Stage.BLENDING}, "stage_mismatch", 0),
    ],
)
def test_a_leak_in_the_live_host_and_evidence_of_another_stage_cull(life, told, seen, reason, violations):
    life.shadow()
    life.compare(6, 1.0)
    assert failed(life.advance(6, "a", life.observation(6, **seen))) == [(Gate.G4, (reason,))]
    assert told()[-1]["severity"] == "CRITICAL"
    assert life.state(6).isolation_violations == violations


@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.BLENDING])
def test_a_command_may_cull(life, stage):
    if stage is Stage.TRAINING:
        life.germinate(1, ("a", "mlp"))
    else:
        life.win(1, "a")
    answer = life.cull(3, "a")
    assert [step.after for step in answer.transitions] == [Stage.CULLED, Stage.EMBARGOED]
    assert bool(answer.plans) == (stage is Stage.BLENDING)
    assert answer.field_reports[0].reasons == ("commanded",)


def test_the_result_of_a_seed_that_was_culled_meanwhile_is_kept_and_revives_nothing(life):
    born = life.germinate(1, ("a", "mlp"), ("b", "norm"))
    life.cull(1, "b")
    assert life.registry.conclude(result_of(born.order, "ab"), 2) == Answer()
    assert life.stage("b") is Stage.EMBARGOED


# -- fallback marks ----------------------------------------------------------------------------------------------


def test_a_fallback_mark_stops_every_candidate_of_a_germination_at_its_gate(life, telemetry, told):
    answer = life.germinate(1, ("a", "mlp"), fallback_marks=("policy: rule of thumb",))
    assert failed(answer) == [(Gate.G0, ("fallback_requested",))]
    assert (answer.order, answer.transitions, life.state(1).incubating) == (None, (), False)
    assert life.stage("a") is Stage.DORMANT
    assert [(event["name"], event["severity"]) for event in told()] == [
        ("tamiyo_fallback_requested", "CRITICAL"),
        ("gate_failure", "CRITICAL"),
    ]
    assert telemetry.counters.total("esper.fallbacks", source="command") == 1


@pytest.mark.parametrize("fence", [2, 5, 6, 8])
def test_a_fallback_mark_on_the_way_culls_the_seed_at_once(life, told, fence):
    life.train(1, "a")
    for earlier in (2, 5, 6, 7):
        if earlier > 5:
            life.compare(earlier, 1.0)
        if earlier < fence and earlier != 7:
            life.advance(earlier, "a")
    answer = life.advance(fence, "a", fallback_marks=("policy: rule of thumb",))
    assert failed(answer)[0][1] == ("fallback_requested",)
    assert [step.after for step in answer.transitions] == [Stage.CULLED, Stage.EMBARGOED]
    assert answer.field_reports[0].reasons == ("fallback_requested",)
    assert [event["name"] for event in told()] == ["tamiyo_fallback_requested", "gate_failure"]


# -- what changes nothing ----------------------------------------------------------------------------------------


def everything(life: Life) -> list[RegistryView]:
    """All that a registry shows of itself."""
    return [life.state(fence) for fence in range(20)]


def missing(gate: str, evidence: str, measured: object, required: object) -> Any:
    told = telling(gate=gate, evidence=evidence, measured=measured, required=required)
    return pytest.raises(EvidenceMissing, check=told)


def test_the_result_of_another_order_is_refused(life):
    born = life.germinate(1, ("a", "mlp"), ("b", "norm"))
    right, before = result_of(born.order, "ab"), everything(life)
    for wrong in (
        right.model_copy(update={"order_id": "command-0"}),
        right.model_copy(update={"generation": 0}),
        right.model_copy(update={"forks": right.forks[:1]}),
        right.model_copy(update={"forks": (right.forks[0], right.forks[1].model_copy(update={"rank": None}))}),
    ):
        with pytest.raises(EvidenceMissing, check=telling(gate="G2")):
            life.registry.conclude(wrong, 2)
        assert everything(life) == before
    life.registry.conclude(right, 2)
    with missing("G2", "result of the incubation in flight", "command-1", None):
        life.registry.conclude(right, 2)


def test_a_gate_that_cannot_judge_changes_nothing_and_may_be_asked_again(life, told):
    life.shadow()
    before = everything(life)
    command = life.order(Operation.ADVANCE, seed_id="a", blend=None)
    life.registry.receive(command, 6)
    for lost, *names in (
        ({}, "fences compared with the twin", 0, 1),
        ({"seed_id": "b"}, "observation of the seed", None, "a"),
        ({"stage": None}, "stage at which the seed was observed", None, "SHADOWING"),
        ({"calls": 0, "path": None}, "performance of the seed", 0, "a call since the last fence"),
        ({"isolation_leaks": None}, "audit of isolation", None, "a"),
    ):
        with missing("G4", *names):
            life.registry.carry_out(command.command_id, 6, (), life.observation(6, **lost))
    with missing("G3 and G4", "observation of the host", None, "one at this fence"):
        life.registry.carry_out(command.command_id, 6, (), None)
    assert everything(life) == before
    assert told() == []

    life.compare(6, 0.0)
    answer = life.registry.carry_out(command.command_id, 6, (), life.observation(6))
    assert answer.transitions[0].after is Stage.PROBATIONARY


def test_a_germination_without_its_probes_and_its_result_changes_nothing(life):
    before = everything(life)
    command = life.order(Operation.GERMINATE)
    (plan,) = life.registry.receive(command, 1)
    with missing("G0", "sanity probe of a known blueprint", None, "a probe in a known slot"):
        life.registry.carry_out(command.command_id, 1, (), None)
    (probe,) = probed([plan])
    with missing("G1", "gradient probe", None, "a measurement"):
        life.registry.carry_out(command.command_id, 1, [probe.model_copy(update={"gradient": None})], None)
    assert everything(life) == before

    life.registry.carry_out(command.command_id, 1, [probe], None)
    before = everything(life)
    with missing("G2", "result of the seed's incubation", None, "a concluded tournament"):
        life.advance(2, plan.seed_id)
    assert everything(life) == before


def test_a_reset_that_was_not_compared_changes_nothing(life):
    order = life.germinate(1, ("a", "mlp"), ("b", "norm"), ("c", "low_rank")).order
    life.registry.conclude(result_of(order, "a"), 2)
    before = everything(life)
    with missing("G5", "comparison with an unseeded host", None, "a measurement"):
        life.registry.reset({"b": SPOTLESS}, 2)
    assert everything(life) == before
    assert len(life.registry.reset({"b": SPOTLESS, "c": SPOTLESS}, 2).gates) == 2


@pytest.mark.usefixtures("telemetry")
def test_an_event_is_written_before_the_transition_that_follows_from_it(life, monkeypatch):
    life.win(1, "a")
    before = everything(life)
    monkeypatch.setattr(events, "_log", lambda *_: fail_with(RuntimeError("killed while it was written")))
    with pytest.raises(RuntimeError, match="killed"):
        life.advance(5, "a", life.observation(5, alpha=0.5))
    assert everything(life) == before


def test_a_blueprint_that_cannot_be_built_fails_before_anything_is_recorded(begin):
    def broken(spec: Any) -> Any:
        raise RuntimeError(f"not in {spec.path}")

    blueprints = BlueprintRegistry()
    blueprints.add(Blueprint("broken", (Kind.NC,), 0.1, broken))
    life = begin(blueprints)
    before = everything(life)
    with pytest.raises(SeedBuildFailed):
        life.germinate(1, ("a", "broken"))
    assert everything(life) == before


# -- what an order says ------------------------------------------------------------------------------------------


def test_an_order_is_halved_only_where_there_are_enough_forks_and_steps(begin):
    life = begin(halving_step=4)
    assert life.germinate(1, ("a", "mlp"), ("b", "norm")).order.halving_step is None
    life = begin(halving_step=4)
    assert life.germinate(1, ("a", "mlp"), ("b", "norm"), ("c", "low_rank")).order.halving_step == 14
    life = begin(halving_step=10)
    assert life.germinate(1, ("a", "mlp"), ("b", "norm"), ("c", "low_rank")).order.halving_step is None


def test_an_order_may_span_rounds_or_end_before_they_do(begin):
    two = begin(due_rounds=2).germinate(1, ("a", "mlp")).order
    assert (two.due_fence, two.first_step, two.last_step) == (3, 10, 30)
    short = begin(probe_steps=6).germinate(1, ("a", "mlp")).order
    assert (short.due_fence, short.first_step, short.last_step) == (2, 10, 16)


def test_a_floor_of_parameters_widens_every_budget_that_is_relative_to_the_host(begin):
    small = {"parameter_budget": 0.1, "memory_budget": 0.1, "cost_budget": 0.05}  # the seed is half of the host
    refused = begin(**small).germinate(1, ("a", "mlp"))
    assert failed(refused) == [(Gate.G0, ("budget_exceeded",))]
    life = begin(**small, parameter_floor=50)
    assert life.state(1).parameter_budget == 50
    life.shadow()
    life.compare(6, 1.0)
    (report,) = life.advance(6, "a", life.observation(6, parameter_bytes=200)).gates
    assert {check.name: check.at_most for check in report.checks if check.at_most is not None} == {
        "cost_ratio": 0.5, "memory_ratio": 0.5
    }  # fmt: skip
    assert report.passed
    assert failed(life.germinate(7, ("b", "norm"))) == [(Gate.G0, ("budget_exceeded",))]  # one floor for all seeds


def placebo_results(order: IncubationOrder, *gains: float | None) -> tuple[PlaceboResult, ...]:
    def gate(gain: float) -> PairedLosses:
        return pairs(1.0, order.due_fence).model_copy(update={"mean": gain})

    return tuple(
        PlaceboResult(kind="bias", slot=plan.slot, picks=(), gate=gate(gain) if gain is not None else None)
        for plan, gain in zip(order.placebos, gains, strict=True)
    )


def test_placebos_are_in_the_order_and_in_no_record_and_each_tournament_has_the_limit_of_its_own(begin):
    life = begin(placebos=3, copies=1)
    order = life.germinate(1, ("a", "mlp"), ("b", "norm")).order
    assert [plan.blueprint_id for plan in order.placebos] == [
        "placebo:constant:0",
        "placebo:frozen_linear:1",
        "placebo:constant:2",
    ]
    assert len({plan.weights_digest for plan in (*order.plans, *order.placebos)}) == 5
    assert set(life.registry.weights_of(order.placebos)) == {plan.weights_digest for plan in order.placebos}
    assert {seed.seed_id for seed in life.state(1).seeds} == {"a", "b"}
    assert life.state(1).tests_used == 2
    result = result_of(order, ["a", "b"])  # a gain of 0.16
    with pytest.raises(EvidenceMissing, match="results of placebos"):
        life.registry.conclude(result, 2)
    life.registry.conclude(result.model_copy(update={"placebos": placebo_results(order, 0.1, -0.1, None)}), 2)
    refused = life.advance(2, "a")
    assert failed(refused) == [(Gate.G2, ("within_placebo",))]
    kept = life.registry.state()
    life.registry.restore(kept, 2)
    assert json.loads(kept)["placebo_gains"] == [0.1, -0.1, math.inf]
    assert json.loads(life.registry.state())["placebo_gains"] == [0.1, -0.1, math.inf]
    life = begin(placebos=3)
    candidates = tournaments_of(life.growth, range(0, 210, 10))  # one in each tournament
    for fence, gain in ((1, 0.06), (4, 0.0), (7, 0.06)):
        order = life.germinate(fence, (f"a{fence}", "mlp")).order
        placebos = placebo_results(order, gain, -gain, 0.0)
        result = result_of(order, [f"a{fence}"]).model_copy(update={"placebos": placebos})
        life.registry.conclude(result, fence + 1)
        (report,) = life.advance(fence + 1, f"a{fence}").gates
        (basis,) = [check.placebos for check in report.checks if check.placebos is not None]
        assert (basis.count, basis.tests) == (3, candidates)
        assert (basis.mean, basis.rms) == (0.0, pytest.approx(gain * (4 / 3) ** 0.5))
        assert report.passed == (gain == 0.0) == (basis.limit < 0.16)  # the gain is 0.16


def test_a_later_look_has_the_limit_of_all_candidates_of_its_tournament(begin):
    life = begin(entry="adopt", beside=2, placebos=3, max_tournaments=1)
    order, limits = life.germinate(1, ("a", "mlp"), ("b", "norm"), ("c", "low_rank")).order, []
    for fence in (2, 3):
        result = result_of(order, ["a", "b"]).model_copy(update={"placebos": placebo_results(order, 0.1, -0.1, 0.0)})
        life.registry.conclude(result, fence)
        judged = life.advance(fence, "a")
        order = judged.order
        limits += [check.placebos for check in judged.gates[0].checks if check.placebos is not None]
    assert limits[1].tests % 3 == 0
    assert limits[0].tests == math.ceil(limits[1].tests / 10)  # a look has a tenth of the chance
    assert limits[0].factor < limits[1].factor


def test_after_a_placebo_diverged_no_refused_seed_trains_on(begin):
    life = begin(entry="adopt", beside=2, placebos=2)
    order = life.germinate(1, ("a", "mlp"), ("b", "norm")).order
    result = result_of(order, ["a", "b"]).model_copy(update={"placebos": placebo_results(order, 0.0, None)})
    life.registry.conclude(result, 2)
    refused = life.advance(2, "a")
    assert failed(refused)[0] == (Gate.G2, ("within_placebo",))
    assert refused.order is None
    assert {life.stage(seed_id) for seed_id in ("a", "b")} == {Stage.EMBARGOED}


def test_a_placebo_that_diverges_closes_its_own_tournament_and_no_later_one(begin):
    life = begin(placebos=2)
    for fence, gains, reasons in ((1, (0.0, None), ("within_placebo",)), (4, (0.0, 0.0), ())):
        order = life.germinate(fence, (f"a{fence}", "mlp")).order
        result = result_of(order, [f"a{fence}"]).model_copy(update={"placebos": placebo_results(order, *gains)})
        life.registry.conclude(result, fence + 1)
        (report,) = life.advance(fence + 1, f"a{fence}").gates
        assert report.reasons == reasons


def test_weights_follow_from_seed_place_and_fence_and_not_from_the_run_or_its_ids(begin):
    def weights(fence: int, seed_id: str, name: str = "mlp") -> dict[str, Any]:
        life = begin()
        (plan,) = life.germinate(fence, (seed_id, name)).order.plans
        return from_bytes(life.registry.weights_of([plan])[plan.weights_digest])

    def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
        return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)

    assert same(weights(1, "a"), weights(1, "z"))
    assert not same(weights(1, "a"), weights(2, "a"))
    assert not same(weights(1, "a"), weights(1, "a", "low_rank"))


def test_plans_of_a_fork_are_not_isolated_and_ramp_as_the_probe_does(life):
    (plan,) = life.germinate(1, ("a", "mlp")).order.plans
    assert (plan.isolated, plan.start_step, plan.blend.ramp_steps) == (False, 10, life.growth.probe_ramp_steps)
    assert plan.warmup_steps == life.growth.probe_warmup_steps


def test_after_a_removal_the_seeds_that_stay_are_not_judged_by_what_it_cost_the_host(begin):
    life = begin()
    life.shadow()
    life.win(5, "b", "norm")
    life.compare(6, 2.0)
    life.cull(6, "b")
    life.compare(7, -9.0)  # the dip right after the removal
    assert not life.seeds(7)["a"].due
    life.compare(8, 2.0)
    assert life.advance(8, "a").gates[0].passed


def test_a_checkpoint_stores_the_vector_of_a_blend_once_however_many_seeds_have_it(begin):
    vector = tuple((place + 0.123456789) / 9 for place in range(8))
    blend = BlendSpec(mode="CHANNEL", ramp_steps=30, channels=vector)
    life = begin()
    answer = life.germinate(1, ("a", "mlp"), ("b", "norm"), ("c", "low_rank"), blend=blend)
    life.registry.conclude(result_of(answer.order, "ab"), 2)
    life.advance(2, "a")
    state = life.registry.state()
    assert state.count(str(vector[0])) == 1
    again = begin()
    again.registry.restore(state, 1)
    assert again.registry.state() == state
    assert {seed.blend for seed in again.seeds(2).values()} == {blend}
    for damaged in (state.replace('"vectors":{"', '"vectors":{"0'), state.replace('"vectors":{', '"vectors":[{')):
        with pytest.raises(StoreCorrupt):
            begin().registry.restore(damaged, 1)
