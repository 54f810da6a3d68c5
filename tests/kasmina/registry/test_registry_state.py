"""Kasmina's state in a checkpoint: a registry restored anywhere goes on as one that was never touched."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from growing import (
    ALIVE,
    BLEND,
    DEAD,
    RUN,
    SPOTLESS,
    a_command,
    a_record,
    a_registry,
    live_and_twin,
    observation_of,
    pairs,
    probed,
    result_of,
    signed,
    slot,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from esper.errors import CommandRejected, DependencyViolationError, EvidenceMissing, StoreCorrupt
from esper.ground.tensors import blob_digest
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, Blueprint, BlueprintRegistry
from esper.kasmina.registry.registrar import KasminaRegistrar
from esper.kasmina.registry.registry_state import RegistryState
from esper.kasmina.registry.roster import Roster
from esper.kasmina.registry.run_facts import RunFacts
from esper.kasmina.registry.seed_record import Graft
from esper.kasmina.registry.seed_registry import SeedRegistry
from esper.leyline.commands import BlendSpec, Candidate, Command, CommandKind, Operation, signed_bytes
from esper.leyline.evidence import (
    HostObservation,
)
from esper.leyline.incubation import Answer, CandidateProbe, ForkResult, IncubationResult
from esper.leyline.reports import GraftPlan, JoinPlan, RatePlan, RemovePlan
from esper.leyline.slots import Kind
from esper.leyline.stages import Stage
from esper.leyline.state import RegistryView
from esper.testing import FakeClock, telling, tiny_config

FENCES = 20


FIELDS = {
    1: (("a", "body", "mlp"), ("b", "body", "low_rank"), ("c", "body", "norm"), ("?", "body", "perpetual_motion")),
    2: (("d", "body", "mlp"),),  # a replica of the first
    3: (("e", "head", "norm"), ("dead", "head", "mlp")),
    5: (("g", "head", "low_rank"), ("h", "body", "norm")),
    12: (("i", "body", "low_rank"), ("j", "head", "mlp")),
    13: (("k", "body", "norm"), ("l", "body", "low_rank")),
}
"""What is germinated at which fence: (seed, slot, blueprint), the later winner first. One of each fate."""
WEAK = {"e"}
"""Firsts of their tournaments that are not good enough."""
BROKEN = {"g"}
"""Seeds that no longer fit once they are in the host, and leak: culled at G3, embargoed, reset."""
COMMANDED = {13: "l"}
"""Seeds that a command culls while their tournament is in flight."""
SCALED = {9: ("a", 0.5)}
"""Seeds whose learning rates a command scales, and the factor."""
HARM_AT = 17
"""The fence at which the host is worse than its twin: all that is not fossilised goes."""


fresh_registry = partial(a_registry, slots=[slot("body"), slot("head")], fences=FENCES)


def plain(value: Any) -> Any:
    """A message, or what holds some, as plain values without generations and times."""
    if isinstance(value, dict):
        left_out = ("generation", "issued_at")
        return {str(name): plain(part) for name, part in value.items() if name not in left_out}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return plain(value.model_dump()) if hasattr(value, "model_dump") else value


def candidates_of(seeds: Iterable[tuple[str, str, str]]) -> tuple[Candidate, ...]:
    return tuple(Candidate(seed_id=seed_id, slot=slot, blueprint_id=name) for seed_id, slot, name in seeds)


class Run:
    """The line around a registry, fence by fence, which asks `pause` before every call; what it does at a fence follows
    from the fence and from what the registry says alone, as everything in a run does."""

    def __init__(
        self,
        pause: Callable[[Run], None] = lambda _: None,
        run_id: str = RUN,
        blueprints: BlueprintRegistry = BLUEPRINTS,
    ) -> None:
        self.clock, self.key, self.generation, self.run_id = FakeClock(), b"key 1", 1, run_id
        self.registry = fresh_registry(clock=self.clock, key=self.key, run_id=run_id, blueprints=blueprints)
        self.pause, self.pauses = pause, 0
        self.told: list[tuple[int, str, Any]] = []
        """(fence, call, what it answered) of everything that was carried out."""
        self.fences: dict[int, str] = {}
        """The state at the end of each fence."""

    def move(self, generation: int) -> None:
        """Go on with a fresh registry that has nothing but the state, and another key."""
        state = self.registry.state()
        self.key = b"key after a move"
        self.registry = fresh_registry(generation=generation, clock=self.clock, key=self.key, run_id=self.run_id)
        self.registry.restore(state, generation)
        self.generation = generation
        again = RegistryState.model_validate_json(self.registry.state())
        assert plain(again) == plain(RegistryState.model_validate_json(state))
        assert again.generation == generation

    def play(self, first: int = 0, last: int = FENCES) -> list[tuple[int, str, Any]]:
        for fence in range(first, last + 1):
            self.hold_fence(fence)
            self.fences[fence] = self.registry.state()
        return self.told

    def hold_fence(self, fence: int) -> None:
        if self.look(fence).due:
            self.ask(fence, "conclude", self.result, fence)
        if self.look(fence).compares_with_twin:
            self.ask(fence, "compare", *live_and_twin(fence, -9.0 if fence == HARM_AT else 1.0))
        while (due := next((seed for seed in self.state(fence).seeds if seed.due), None)) is not None:
            operation = Operation.FOSSILIZE if due.stage is Stage.PROBATIONARY else Operation.ADVANCE
            blend = BLEND if due.stage is Stage.TRAINING else None
            self.command(fence, operation, seed_id=due.seed_id, blend=blend)
        if reset := self.look(fence).resetting:
            self.ask(fence, "reset", dict.fromkeys(reset, SPOTLESS), fence)
        if fence in FIELDS:
            replica_of = "a" if fence == 2 else None
            self.command(fence, Operation.GERMINATE, candidates=candidates_of(FIELDS[fence]), replica_of=replica_of)
        if fence in COMMANDED:
            self.command(fence, Operation.CULL, seed_id=COMMANDED[fence])
        if fence in SCALED:
            seed_id, scale = SCALED[fence]
            scaling = {"kind": CommandKind.OPTIMIZER, "mesh_host_layers": (), "rate_scale": scale}
            self.command(fence, Operation.SCALE_RATE, seed_id=seed_id, **scaling)
        self.look(fence)
        order = self.registry.order()
        self.told.append((fence, "order", plain(order)))
        self.told.append((fence, "weights", self.registry.weights_of(order.plans if order is not None else ())))

    def look(self, fence: int) -> RegistryView:
        """The registry after the pause, as the run tells of it."""
        self.wait()
        view = self.state(fence)
        self.told.append((fence, "view", plain(view)))
        return view

    def ask(self, fence: int, call: str, *args: Any) -> Any:
        """What the registry answers to a call; an argument that is a function is asked for after the pause."""
        self.wait()
        answer = getattr(self.registry, call)(*(arg(fence) if callable(arg) else arg for arg in args))
        self.told.append((fence, call, plain(answer)))
        return answer

    def wait(self) -> None:
        self.clock.move(1.0)
        self.pauses += 1
        self.pause(self)

    def command(self, fence: int, operation: Operation, **fields: Any) -> None:
        """Have a command carried out. One that a newer generation overtakes is asked for again in that."""
        self.wait()
        command = self.signed(fence, operation, **fields)
        plans = self.registry.receive(command, fence)
        weights = self.registry.weights_of(plans)
        self.wait()
        if command.generation != self.generation:
            with pytest.raises(CommandRejected, check=telling(reason="old_generation")):
                self.registry.carry_out(command.command_id, fence, (), None)
            command = self.signed(fence, operation, **fields)
            assert plain(self.registry.receive(command, fence)) == plain(plans)
            assert self.registry.weights_of(plans) == weights
        probes = [self.probe(plan) for plan in plans]
        answer = self.registry.carry_out(command.command_id, fence, probes, self.observation(fence))
        assert {plan.generation for plan in answer.plans} <= {self.generation}
        assert {report.generation for report in answer.field_reports} <= {self.generation}
        self.told += [(fence, "receive", plain(plans)), (fence, "carry_out", plain(answer))]
        self.told += [(fence, "weights", weights), (fence, "weights", weights_with(self.registry, answer))]

    def germinate(self, fence: int, *seeds: tuple[str, str, str]) -> None:
        """Have (seed id, slot, blueprint) germinated."""
        self.command(fence, Operation.GERMINATE, candidates=candidates_of(seeds))

    def signed(self, fence: int, operation: Operation, **fields: Any) -> Command:
        named = f"{fence}/{operation}/{fields.get('seed_id')}"
        mesh = tuple(sorted({c.slot for c in fields.get("candidates") or ()})) or ("body",)
        blend = BLEND if operation is Operation.GERMINATE else None
        ids = {"run_id": self.run_id, "generation": self.generation, "issued_at": self.clock.now()}
        return a_command(operation, named, key=self.key, **ids, **({"mesh_host_layers": mesh, "blend": blend} | fields))

    def probe(self, plan: GraftPlan) -> CandidateProbe:
        return probed([plan], DEAD if plan.seed_id == "dead" else ALIVE)[0]

    def result(self, _fence: int) -> IncubationResult:
        """The order in flight, ended: its first plan won, the second was beaten, all others left at the halving."""
        order = self.registry.order()
        assert order is not None
        ranked = [plan.seed_id for plan in order.plans[:2]]
        return result_of(order, ranked, 2.0 if ranked[0] in WEAK else 8.0)

    def observation(self, fence: int) -> HostObservation:
        return observation_of(self.state(fence), fence, BROKEN)

    def state(self, fence: int) -> RegistryView:
        return self.registry.view(fence)

    def stages(self) -> dict[str, Stage]:
        return self.registry.view(FENCES).stages


@pytest.fixture(scope="module")
def untouched() -> Run:
    """A run whose registry was never restored."""
    run = Run()
    run.play()
    return run


def kept(run: Run) -> RegistryState:
    return RegistryState.model_validate_json(run.registry.state())


# -- the same course ---------------------------------------------------------------------------------------------


def test_the_run_that_is_played_has_every_fate_in_it(untouched):
    reached = {after for _, _, told in untouched.told if isinstance(told, dict) for after in afters(told)}
    assert reached == set(Stage) - {Stage.TERMINATED}
    names = (*"abc?de", "dead", *"ghijkl")
    assert untouched.stages() == dict.fromkeys(names, Stage.DORMANT) | dict.fromkeys("ad", Stage.FOSSILIZED)
    answers = [answer for _, call, answer in untouched.told if call == "carry_out" and len(answer["plans"]) > 1]
    assert [[plan["seed_id"] for plan in answer["plans"]] for answer in answers] == [["k", "i"]]


def afters(answer: dict[str, Any]) -> list[Stage]:
    return [step["after"] for step in answer.get("transitions") or ()]


@pytest.mark.parametrize("generations", [0, 1])
def test_a_manager_moved_between_every_two_calls_answers_as_one_that_stayed(untouched, generations):
    run = Run(pause=lambda run: run.move(run.generation + generations))
    assert run.play() == untouched.told
    assert run.generation == 1 + generations * run.pauses
    assert run.pauses == untouched.pauses
    assert run.registry.order() is None  # no tournament is in flight at the end


def test_a_manager_rolled_back_to_any_fence_answers_from_there_as_it_did(untouched):
    run = Run()
    run.play()
    for fence in reversed(range(FENCES)):
        run.generation += 1
        run.registry.restore(untouched.fences[fence], run.generation)
        run.told = []
        assert run.play(fence + 1) == [told for told in untouched.told if told[0] > fence]


def test_the_state_says_nothing_of_where_it_was_restored(untouched):
    for text in untouched.fences.values():
        registry = fresh_registry(clock=FakeClock(), key=b"another key")
        registry.restore(text, 1)
        assert registry.state() == text


def test_runs_of_other_ids_take_the_same_course(untouched):
    other = Run(run_id="00000000-0000-4000-8000-000000000000")
    other.play()

    def course(run: Run) -> list[Any]:
        text = json.dumps([plain_ids(told) for told in run.told], default=str)
        return json.loads(text.replace(run.run_id, "RUN"))

    assert course(other) == course(untouched)


def plain_ids(value: Any) -> Any:
    """Without report ids, which follow from the run's."""
    if isinstance(value, dict):
        return {name: plain_ids(part) for name, part in value.items() if name != "report_id"}
    return [plain_ids(part) for part in value] if isinstance(value, tuple | list) else value


@pytest.mark.parametrize("names", [("x", "y"), ("y", "x")])
def test_the_order_of_a_removal_does_not_depend_on_ids(names):
    facts = RunFacts(RUN, 1, 0, 8, (0, 10, 20), 100, 400, 1_000)
    roster = Roster(facts, tiny_config().growth, [slot()], [])
    for ordinal, name in enumerate(names):
        graft = Graft(ordinal=ordinal, start_step=10, blend=BlendSpec(mode="RESIDUAL", ramp_steps=5))
        roster.enter(a_record(name).model_copy(update={"stage": Stage.BLENDING, "graft": graft}))
    assert [seed.graft.ordinal for seed in roster.newest_first()] == [1, 0]


# -- the ledger --------------------------------------------------------------------------------------------------


def weights_with(registry: SeedRegistry, answer: Answer) -> dict[str, bytes]:
    """The weights of an answer's grafts and of its order."""
    grafts = [plan for plan in answer.plans if isinstance(plan, GraftPlan)]
    return registry.weights_of([*grafts, *(answer.order.plans if answer.order is not None else ())])


class Recording(Run):
    """A run that remembers every command with its fence, plans, answer and weights, as they were first given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[Command, int, tuple[GraftPlan, ...], Answer, list[dict[str, bytes]]]] = []

    def command(self, fence: int, operation: Operation, **fields: Any) -> None:
        command = self.signed(fence, operation, **fields)
        plans = self.registry.receive(command, fence)
        weights = self.registry.weights_of(plans)
        answer = self.registry.carry_out(
            command.command_id, fence, [self.probe(plan) for plan in plans], self.observation(fence)
        )
        self.given.append((command, fence, plans, answer, [weights, weights_with(self.registry, answer)]))


@pytest.fixture(scope="module")
def recorded() -> Recording:
    run = Recording()
    run.play()
    return run


def as_digested(registry: SeedRegistry, plans: Sequence[GraftPlan]) -> bool:
    """Whether the registry has each plan's weights, and they have the plan's digest."""
    return {digest: blob_digest(blob) for digest, blob in registry.weights_of(plans).items()} == {
        plan.weights_digest: plan.weights_digest for plan in plans
    }


def answers_as_given(registry: SeedRegistry, recorded: Recording) -> bool:
    return all(
        registry.receive(command, fence) == plans
        and registry.carry_out(command.command_id, fence, (), None) == answer
        and [registry.weights_of(plans), weights_with(registry, answer)] == weights
        for command, fence, plans, answer, weights in recorded.given
    )


@pytest.mark.parametrize("moved", [False, True])
def test_every_command_gets_its_answer_again_however_late_and_nothing_comes_of_it(recorded, moved):
    registry, before = recorded.registry, recorded.registry.state()
    if moved:
        registry = fresh_registry(clock=recorded.clock, key=recorded.key)
        registry.restore(before, 1)
    plans = [plan for _, _, _, answer, _ in recorded.given for plan in answer.plans]
    assert {type(plan) for plan in plans} == {GraftPlan, JoinPlan, RatePlan, RemovePlan}
    grafts = [plan for plan in plans if isinstance(plan, GraftPlan)]
    assert len(grafts) == 5  # a, d, g, i, k
    assert as_digested(registry, grafts)
    assert answers_as_given(registry, recorded)
    assert registry.state() == before


def test_signed_bytes_survive_the_state(recorded):
    again = {known.command.command_id: signed_bytes(known.command) for known in kept(recorded).commands}
    assert again == {command.command_id: signed_bytes(command) for command, *_ in recorded.given}


def test_after_a_restore_commands_of_the_older_generation_are_refused_and_leave_no_trace(recorded, told, telemetry):
    registry = fresh_registry(generation=2, clock=recorded.clock, key=recorded.key)
    registry.restore(recorded.registry.state(), 2)
    before = registry.state()
    for command, fence, *_ in recorded.given:
        with pytest.raises(CommandRejected, check=telling(reason="old_generation")):
            registry.receive(command, fence)
        with pytest.raises(CommandRejected, check=telling(reason="old_generation")):
            registry.carry_out(command.command_id, fence, (), None)
        for name in (command.command_id, "another"):
            fields = {"generation": 2, "command_id": name, "issued_at": recorded.clock.now()}
            stolen = signed(command.model_copy(update=fields), recorded.key)
            with pytest.raises(CommandRejected, check=telling(reason="nonce_replayed")):
                registry.receive(stolen, fence)
    assert registry.state() == before
    assert telemetry.counters.total("esper.command.rejections", reason="old_generation") == 2 * len(recorded.given)
    assert {event["name"] for event in told()} == {"command_rejected"}


def test_a_command_that_was_never_carried_out_is_forgotten_once_another_is_admitted():
    run = Run()
    candidates = (Candidate(seed_id="a", slot="body", blueprint_id="mlp"),)
    first = run.signed(1, Operation.GERMINATE, candidates=candidates)
    run.registry.receive(first, 1)
    run.move(2)
    assert [known.command for known in kept(run).commands] == [first]
    other = run.signed(1, Operation.GERMINATE, candidates=candidates).model_copy(update={"command_id": "other"})
    run.registry.receive(signed(other, run.key), 1)  # the nonce of the first, which did nothing
    assert [known.command for known in kept(run).commands] == [signed(other, run.key)]
    run.move(3)


# -- the order in flight -----------------------------------------------------------------------------------------


def test_the_order_in_flight_is_begun_again_in_the_new_generation_and_its_older_result_is_refused():
    run = Run()
    run.play(0, 1)
    order, late = run.registry.order(), run.result(2)
    run.move(4)
    again = run.registry.order()
    plans = tuple(plan.model_copy(update={"generation": 4}) for plan in order.plans)
    assert again == order.model_copy(update={"generation": 4, "plans": plans})
    assert as_digested(run.registry, again.plans)
    before = run.registry.state()
    with pytest.raises(
        EvidenceMissing,
        check=telling(
            gate="G2", evidence="result of the incubation in flight", measured=order.order_id, required=order.order_id
        ),
    ):
        run.registry.conclude(late, 2)
    assert run.registry.state() == before
    run.registry.conclude(run.result(2), 2)
    assert run.registry.order() is None


def test_a_graft_carries_the_new_generation_though_its_fork_was_of_the_old_one():
    run = Run()
    run.play(0, 1)
    run.registry.conclude(run.result(2), 2)
    run.move(3)
    command = run.signed(2, Operation.ADVANCE, seed_id="a", blend=BLEND)
    run.registry.receive(command, 2)
    (plan,) = run.registry.carry_out(command.command_id, 2, (), None).plans
    assert plan.generation == 3
    assert as_digested(run.registry, [plan])


# -- what is kept of weights -------------------------------------------------------------------------------------


def test_weights_are_kept_while_a_host_may_need_them_and_no_longer():
    run = Run()

    def holders() -> list[str]:
        """Seeds of the first tournament whose weights are in the state."""
        weights = kept(run).weights
        return [plan.seed_id for plan in plans if plan.weights_digest in weights]

    command = run.signed(1, Operation.GERMINATE, candidates=candidates_of(FIELDS[1]))
    plans = run.registry.receive(command, 1)
    assert holders() == ["a", "b", "c"]
    probes = [*probed(plans[:2]), *probed(plans[2:], DEAD)]
    run.registry.carry_out(command.command_id, 1, probes, None)
    assert holders() == ["a", "b"]
    run.command(1, Operation.CULL, seed_id="b")
    assert holders() == ["a", "b"]  # its fork runs on, and may have to begin again
    run.registry.conclude(run.result(2), 2)
    assert holders() == ["a"]
    run.command(2, Operation.ADVANCE, seed_id="a", blend=BLEND)
    assert holders() == []


def test_weights_of_candidates_that_wait_for_their_probe_outlast_another_command():
    run = Run()
    run.play(0, 2)
    waiting = run.signed(3, Operation.ADVANCE, seed_id="a")
    run.registry.receive(waiting, 3)
    run.registry.conclude(run.result(3), 3)
    command = run.signed(3, Operation.GERMINATE, candidates=candidates_of([("z", "head", "mlp")]))
    (plan,) = run.registry.receive(command, 3)
    run.registry.carry_out(waiting.command_id, 3, (), run.observation(3))
    assert plan.weights_digest in kept(run).weights
    assert run.registry.carry_out(command.command_id, 3, [run.probe(plan)], None).order.plans == (plan,)


class Large(nn.Module):
    """A seed of 400 kB."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))

    def forward(self, h: Tensor) -> Tensor:
        return h * self.weight.sum()


def large_blueprints(widths: list[int]) -> BlueprintRegistry:
    blueprints = BlueprintRegistry()
    blueprints.add(Blueprint("large", (Kind.NC,), 0.1, lambda _spec: Large(widths[0])))
    return blueprints


def test_weights_that_are_drawn_again_and_come_out_otherwise_are_no_answer():
    widths = [10]
    run = Run(blueprints=large_blueprints(widths))
    command = run.signed(1, Operation.GERMINATE, candidates=candidates_of([("a", "body", "large")]))
    plans = run.registry.receive(command, 1)
    weights = run.registry.weights_of(plans)
    run.registry.carry_out(command.command_id, 1, probed(plans), None)
    run.registry.conclude(run.result(2), 2)
    run.command(2, Operation.ADVANCE, seed_id="a", blend=BLEND)

    kept(run)
    assert run.registry.receive(command, 2) == plans
    assert run.registry.weights_of(plans) == weights
    widths[0] = 11
    with pytest.raises(
        DependencyViolationError, check=telling(subject="plan for seed a", missing="weights are not those digested")
    ):
        run.registry.weights_of(run.registry.receive(command, 2))


def test_a_graft_gets_the_weights_that_were_kept_for_it_and_no_others_are_drawn():
    widths = [10]
    run = Run(blueprints=large_blueprints(widths))
    run.germinate(1, ("a", "body", "large"))
    weights = run.registry.weights_of(run.registry.order().plans)
    run.registry.conclude(run.result(2), 2)
    widths[0] = 11  # as on another machine, where the same stream may give other weights
    command = run.signed(2, Operation.ADVANCE, seed_id="a", blend=BLEND)
    changed = KasminaRegistrar(run.registry).advance(command, 2, run.observation(2))
    assert changed.weights == weights


# -- figures -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(width=64), min_size=4, max_size=4), st.lists(st.floats(), max_size=3))
def test_every_figure_comes_back_as_it_was(figures, zs):
    mean, sd, z, variation = figures
    measured = pairs(1.0, 2).model_copy(update={"mean": mean, "sd": sd, "z": z})
    fork = ForkResult(
        seed_id="a", steps=10, required_steps=10, rank=1, pick=measured, gate=measured, loss_variation=variation
    )
    run = Run()
    run.germinate(1, ("a", "body", "mlp"))
    registry = run.registry
    ids = {"order_id": registry.order().order_id, "generation": 1, "fence": 2}
    registry.conclude(IncubationResult(forks=(fork,), fork_steps=10, flops=10, **ids), 2)
    state = RegistryState.model_validate_json(registry.state())
    (seed,) = state.roster.seeds
    seed = seed.model_copy(update={"twin_zs": tuple(zs)})
    state = state.model_copy(update={"roster": state.roster.model_copy(update={"seeds": (seed,)})})
    text = state.model_dump_json()

    registry.restore(text, 1)

    assert registry.state() == text
    (again,) = RegistryState.model_validate_json(text).roster.seeds
    assert list(map(repr, again.twin_zs)) == list(map(repr, map(float, zs)))
    assert repr(again.result) == repr(fork)


# -- what is no state --------------------------------------------------------------------------------------------


def refusal(text: str, untouched: Run, *, generation: int = 1) -> str:
    """Why a registry in mid-run refuses a text; nothing of that changes."""
    run = Run()
    run.registry.restore(untouched.fences[8], 1)
    with pytest.raises(StoreCorrupt) as caught:
        run.registry.restore(text, generation)
    assert caught.value.path == "kasmina's state"
    assert run.registry.state() == untouched.fences[8]
    return caught.value.reason


@pytest.mark.parametrize(
    "text", ["", "{}", "null", "[]", "12", "not json", "\0", "[" * 100_000], ids=lambda text: repr(text[:9])
)
def test_what_is_no_state_at_all_is_refused(untouched, text):
    assert refusal(text, untouched)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_state_that_was_cut_is_refused(untouched, data):
    text = untouched.fences[13]
    assert "JSON" in refusal(text[: data.draw(st.integers(0, len(text) - 1))], untouched)


def changed(state: str, change: Callable[[Any], object]) -> str:
    whole = json.loads(state)
    change(whole)
    return json.dumps(whole)


@pytest.mark.parametrize("field", sorted(RegistryState.model_fields.keys() - RegistryState.LATER))
def test_a_state_that_lacks_a_field_or_has_an_unknown_one_is_refused(untouched, field):
    lacking = changed(untouched.fences[13], lambda state: state.pop(field))
    assert refusal(lacking, untouched) == f"{field}: is missing"
    more = changed(untouched.fences[13], lambda state: state.update({f"{field}2": 1}))
    assert refusal(more, untouched) == f"{field}2: is not known"


def seed(state: Any, seed_id: str) -> Any:
    return next(found for found in state["roster"]["seeds"] if found["seed_id"] == seed_id)


def of_another_nonce_owner(state: Any) -> None:
    state["commands"][1]["command"]["nonce"] = state["commands"][0]["command"]["nonce"]


def other_weights(state: Any) -> None:
    digest = next(iter(state["weights"]))
    state["weights"][digest] = base64.urlsafe_b64encode(b"other weights").decode()


BREACHES: dict[str, tuple[Callable[[Any], object], str]] = {
    "a seed twice": (lambda s: s["roster"]["seeds"].append(s["roster"]["seeds"][0]), "a seed is listed twice"),
    "a command twice": (lambda s: s["commands"].append(s["commands"][0]), "a command is listed twice"),
    "a nonce twice": (of_another_nonce_owner, "a nonce is listed twice"),
    "a strange slot": (lambda s: seed(s, "a").update(slot="attic"), "slot attic"),
    "a strange command": (lambda s: seed(s, "a").update(command_id="x"), "command x is named but missing"),
    "a replica of none": (lambda s: seed(s, "d").update(replica_of="x"), "seed x is named but missing"),
    "an order of none": (lambda s: s["order"].update(order_id="x"), "command x is named but missing"),
    "a fork of none": (lambda s: s["order"]["plans"][0].update(seed_id="x"), "seed x is named but missing"),
    "another's order": (lambda s: s["order"].update(generation=0), "order in flight is of generation 0"),
    "no weights": (lambda s: s.update(weights={}), "is named but missing"),
    "other weights": (other_weights, "weights are not those digested"),
    "an unknown stage": (lambda s: seed(s, "a").update(stage="ASLEEP"), "roster.seeds.0.stage"),
    "a count below 0": (lambda s: s.update(tests_used=-1), "tests_used"),
    "text for a number": (lambda s: seed(s, "a").update(flops="1"), "roster.seeds.0.flops"),
    "another run": (lambda s: s.update(run_id="x"), "of run x"),
    "a slot too few": (lambda s: s["roster"]["ordinals"].pop("head"), "slot head"),
    "a slot too many": (lambda s: s["roster"]["ordinals"].update(attic=0), "of slots ['attic'"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_state_that_does_not_hold_together_is_refused(untouched, breach):
    change, reason = BREACHES[breach]
    assert reason in refusal(changed(untouched.fences[13], change), untouched)


def test_a_plan_of_no_known_kind_is_refused(untouched):
    def relabel(state: Any) -> None:
        answers = [known["answer"] for known in state["commands"] if known["answer"]["plans"]]
        answers[0]["plans"][0]["kind"] = "hope"

    told = refusal(changed(untouched.fences[13], relabel), untouched)
    assert all(name in told for name in ("answer.plans.0", "'kind'", "'graft'"))


def test_a_state_of_a_later_generation_is_refused(untouched):
    assert refusal(untouched.fences[13], untouched, generation=0) == "of generation 1, which is after 0"
