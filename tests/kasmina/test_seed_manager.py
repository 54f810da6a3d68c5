"""Whatever is commanded, in whatever order: no seed leaves the table of stages, and a refusal changes nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from esper.errors import CommandRejected, DependencyViolationError, EvidenceMissing
from esper.kasmina.blueprints.catalogue import BLUEPRINTS
from esper.kasmina.registry.registry_state import RegistryState, StoredCommand
from esper.kasmina.registry.run_facts import RunFacts
from esper.kasmina.registry.seed_registry import SeedRegistry
from esper.leyline.commands import BlendSpec, Candidate, Command, CommandKind, Operation, sign
from esper.leyline.decisions import Pair
from esper.leyline.evidence import (
    GradientProbe,
    HostObservation,
    PairedLosses,
    ResetProbe,
    SampleLosses,
    SanityProbe,
    SeedObservation,
)
from esper.leyline.incubation import Answer, CandidateProbe, ForkResult, IncubationResult
from esper.leyline.slots import Kind, SlotSpec
from esper.leyline.stages import Stage
from esper.testing import FakeClock, tiny_config

RUN, KEY = "6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10", b"a key of a test's own, 32 bytes."
ROUND, FENCES = 10, 60
SEEDS = tuple(f"seed-{number}" for number in range(6))
MAY_FOLLOW = {
    Stage.DORMANT: {Stage.GERMINATED},
    Stage.GERMINATED: {Stage.TRAINING, Stage.CULLED},
    Stage.TRAINING: {Stage.BLENDING, Stage.CULLED},
    Stage.BLENDING: {Stage.SHADOWING, Stage.CULLED},
    Stage.SHADOWING: {Stage.PROBATIONARY, Stage.CULLED},
    Stage.PROBATIONARY: {Stage.FOSSILIZED, Stage.CULLED},
    Stage.FOSSILIZED: set(),
    Stage.CULLED: {Stage.EMBARGOED},
    Stage.EMBARGOED: {Stage.RESETTING},
    Stage.RESETTING: {Stage.DORMANT, Stage.TERMINATED},
    Stage.TERMINATED: set(),
}
"""The stages that a command or a fence may bring, written here by hand."""
ONWARD = {Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY, Stage.FOSSILIZED}

BLEND = BlendSpec(mode="RESIDUAL", ramp_steps=20)
SPEC = SlotSpec(
    path="body",
    kind=Kind.NC,
    shape=(8,),
    dtype="torch.float32",
    device="cpu",
    causal=False,
    samples_independent=True,
)
CLEAN = SanityProbe(
    parameters=50,
    parameter_bytes=200,
    parameters_finite=True,
    output_shape=(8,),
    slot_shape=(8,),
    output_dtype="torch.float32",
    causality_leak=None,
    sample_leak=0.0,
)
SPOTLESS = ResetProbe(
    seed_left=False, optimizers_left=0, hooks_left=0, output_equal=True, flags_equal=True, names_equal=True
)


def pairs(z: float, fence: int, shard: str) -> PairedLosses:
    return PairedLosses(
        shard=shard, fence=fence, count=256, grouped=False, mean=0.02 * z, sd=0.32, z=z, control_mean=1.0
    )


class Registry:
    """A registry with all that surrounds it: what is measured is sound, unless a caller says otherwise."""

    def __init__(self) -> None:
        names = [made.name for made in BLUEPRINTS.for_kind(Kind.NC)][:2]
        options = [
            Pair(slot="body", blueprint_id=name, parameters=50, flops=100, risk=0.1, mesh=("body",)) for name in names
        ]
        facts = RunFacts(
            run_id=RUN,
            generation=1,
            run_seed=0,
            batch_size=8,
            fence_steps=tuple(range(0, (FENCES + 1) * ROUND, ROUND)),
            host_parameters=100,
            host_bytes=400,
            host_flops=1_000,
        )
        self.clock, self.fence, self.names = FakeClock(), 1, names
        growth = tiny_config().growth
        self.asked = SeedRegistry(facts, growth, [SPEC], options, BLUEPRINTS, key=KEY, clock=self.clock)
        self._commands = 0

    def command(self, operation: Operation, **changes: Any) -> Command:
        """A signed command with the fields that are given; else complete."""
        self._commands += 1
        fields: dict[str, Any] = {
            "command_id": f"command-{self._commands}",
            "run_id": RUN,
            "generation": 1,
            "issued_at": self.clock.now(),
            "issued_by": "tamiyo",
            "operation": operation,
            "feature_coverage": 1.0,
            "policy_version": "scripted-1",
            "nonce": f"nonce-{self._commands}",
        }
        return signed(Command(**(fields | changes)))

    def commands(self) -> tuple[StoredCommand, ...]:
        return RegistryState.model_validate_json(self.asked.state()).commands

    def send(self, command: Command, *, alive: bool = True, sound: bool = True) -> Answer:
        """Have a command admitted and carried out."""
        plans = self.asked.receive(command, self.fence, checkpoints=range(self.fence))
        gradient = GradientProbe(batches=2, nonfinite=0, norm=float(alive), reachable_host_parameters=())
        probes = [CandidateProbe(seed_id=plan.seed_id, sanity=CLEAN, gradient=gradient, fallbacks=()) for plan in plans]
        if command.operation is Operation.GO_BACK:
            return Answer()  # the line restores everything: the registry has nothing to carry out
        return self.asked.carry_out(command.command_id, self.fence, probes, self.observation(sound=sound))

    def observation(self, *, sound: bool) -> HostObservation:
        seeds = tuple(
            SeedObservation(
                seed_id=seed.seed_id,
                slot=seed.slot,
                stage=seed.stage,
                alpha=seed.alpha,
                alpha_target=1.0,
                calls=3,
                output_shape=(8,) if sound else (7,),
                parameter_bytes=200,
                output_dtype="torch.float32",
                device="cpu",
                path="eager",
                asked_dtype="torch.float32",
                asked_device="cpu",
                asked_path="eager",
                isolated=True,
                isolation_leaks=() if sound else ("body.weight",),
            )
            for seed in self.asked.view(self.fence).seeds
            if seed.alpha is not None
        )
        return HostObservation(fence=self.fence, registered_layers=("body", "head"), seeds=seeds)

    def next_fence(self, *, z: float = 8.0, gain: float = 1.0, clean: bool = True) -> list[Answer]:
        """Go on to the next fence, and do there what needs no command."""
        self.fence += 1
        self.clock.move(1.0)
        answers = []
        order = self.asked.order()
        if order is not None and order.due_fence == self.fence:
            forks = [
                ForkResult(
                    seed_id=plan.seed_id,
                    steps=10,
                    required_steps=10,
                    rank=place + 1,
                    pick=pairs(z - place, self.fence, "pick"),
                    gate=pairs(z, self.fence, "gate") if place == 0 else None,
                    loss_variation=0.1 if place == 0 else None,
                    fallbacks=() if place == 0 else None,
                )
                for place, plan in enumerate(order.plans)
            ]
            ids = {"order_id": order.order_id, "generation": 1, "fence": self.fence}
            result = IncubationResult(forks=tuple(forks), fork_steps=10, flops=10, **ids)
            answers.append(self.asked.conclude(result, self.fence))
        if self.asked.view(self.fence).compares_with_twin:
            noise = [(-1.0) ** place for place in range(256)]
            twin = tuple(2.0 + 0.1 * value + gain * 0.1 / 16 for value in noise)
            live, other = (SampleLosses(shard="gate", fence=self.fence, losses=one) for one in ((2.0,) * 256, twin))
            self.asked.compare(live, other)
        if resetting := self.asked.view(self.fence).resetting:
            probe = SPOTLESS if clean else SPOTLESS.model_copy(update={"hooks_left": 1})
            answers.append(self.asked.reset(dict.fromkeys(resetting, probe), self.fence))
        return answers


def signed(command: Command) -> Command:
    return command.model_copy(update={"signature": sign(command, KEY)})


NAMES = st.sampled_from((*SEEDS, "", "nobody"))
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        slot=st.sampled_from(("body", "body", "body", "elsewhere")),
        blueprint_id=st.sampled_from((*[made.name for made in BLUEPRINTS.for_kind(Kind.NC)][:2], "no_blueprint")),
        seed_id=NAMES,
    ),
    max_size=2,
).map(tuple)
BLENDS = st.sampled_from((BLEND, BLEND, BLEND, None, BLEND.model_copy(update={"mode": "ODD"})))
USUAL: dict[Operation, tuple[str, ...]] = {
    Operation.GERMINATE: ("candidates", "mesh_host_layers", "blend"),
    Operation.ADVANCE: ("seed_id", "mesh_host_layers"),
    Operation.FOSSILIZE: ("seed_id", "mesh_host_layers"),
    Operation.CULL: ("seed_id", "mesh_host_layers"),
    Operation.SCALE_RATE: ("seed_id", "rate_scale"),
    Operation.GO_BACK: ("to_fence",),
}
KINDS = {Operation.SCALE_RATE: CommandKind.OPTIMIZER, Operation.GO_BACK: CommandKind.ROLLBACK}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "seed_id": NAMES,
    "candidates": CANDIDATES,
    "replica_of": st.none() | NAMES,
    "blend": BLENDS,
    "rate_scale": st.none() | st.floats(-1, 20),
    "to_fence": st.none() | st.integers(-1, FENCES),
    "mesh_host_layers": st.sampled_from((("body",), ("body", "body"), ())),
    "confidence_logits": st.sampled_from(((), (1.0,), (1.0, 2.0))),
    "fallback_marks": st.sampled_from(((), ("rule of thumb",))),
    "generation": st.integers(0, 2),
    "nonce": st.sampled_from(("", "nonce-1", "nonce-x")),
    "kind": st.sampled_from(CommandKind),
}


@st.composite
def wishes(draw: st.DrawFn) -> tuple[Operation, dict[str, Any]]:
    """An operation and the fields of its command: those that it uses, some of them strange, and at times another."""
    operation = draw(st.sampled_from(Operation))
    fields = {name: draw(VALUES[name]) for name in USUAL[operation]}
    if operation in KINDS:
        fields["kind"] = KINDS[operation]
    if draw(st.integers(0, 3)) == 0:
        strange = draw(st.sampled_from(sorted(VALUES)))
        fields[strange] = draw(VALUES[strange])
    return operation, fields


class Sequence:
    """A registry, and beside it what its answers said of every seed."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.stages: defaultdict[str, Stage] = defaultdict(lambda: Stage.DORMANT)
        self.onward: Counter[tuple[int, str]] = Counter()

    def command(self, wish: tuple[Operation, dict[str, Any]], *, alive: bool = True, sound: bool = True) -> None:
        command = self.registry.command(wish[0], **wish[1])
        before = self.registry.asked.state()
        with suppress(CommandRejected, DependencyViolationError, EvidenceMissing):
            self._follow(self.registry.send(command, alive=alive, sound=sound))
            return
        if command.command_id not in {one.command.command_id for one in self.registry.commands()}:
            assert self.registry.asked.state() == before  # it was refused

    def germinate(self, place: int) -> None:
        """Command something possible, so that many sequences get far. So does `onwards`."""
        name = self.registry.names[place % len(self.registry.names)]
        candidate = Candidate(slot="body", blueprint_id=name, seed_id=f"seed-{len(self.stages)}")
        self.command((Operation.GERMINATE, {"candidates": (candidate,), "mesh_host_layers": ("body",), "blend": BLEND}))

    def onwards(self, place: int, other: Operation | None, *, sound: bool) -> None:
        growing = [name for name, stage in self.stages.items() if Stage.CULLED in MAY_FOLLOW[stage] or other]
        if not growing:
            return self.germinate(place)
        name = growing[place % len(growing)]
        stage = self.stages[name]
        blend = {"blend": BLEND} if stage is Stage.TRAINING else {}
        operation = Operation.FOSSILIZE if stage is Stage.PROBATIONARY else Operation.ADVANCE
        return self.command(
            (other or operation, {"seed_id": name, "mesh_host_layers": ("body",), **blend}), sound=sound
        )

    def fences(self, rounds: int, *, z: float, gain: float, clean: bool) -> None:
        for _ in range(rounds):
            if self.registry.fence < FENCES - 5:
                for answer in self.registry.next_fence(z=z, gain=gain, clean=clean):
                    self._follow(answer)

    def _follow(self, answer: Answer) -> None:
        for step in answer.transitions:
            assert step.before is self.stages[step.seed_id]
            assert step.after in MAY_FOLLOW[step.before]
            self.stages[step.seed_id] = step.after
            if step.after in ONWARD:
                self.onward[self.registry.fence, step.seed_id] += 1

    def check(self) -> None:
        recorded = self.registry.asked.view(self.registry.fence).stages
        assert recorded == {seed_id: self.stages[seed_id] for seed_id in recorded}
        assert all(times == 1 for times in self.onward.values()), "a seed passed two stages at one fence"


def mostly(common: Any, *rare: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from((common,) * (4 * len(rare)) + rare)


Action = Callable[[Sequence], None]
WILD = st.builds(
    lambda wish, alive, sound: lambda run: run.command(wish, alive=alive, sound=sound),
    wishes(),
    mostly(True, False),
    mostly(True, False),
)
GERMINATE = st.builds(lambda place: lambda run: run.germinate(place), st.integers(0, 9))
ONWARDS = st.builds(
    lambda place, other, sound: lambda run: run.onwards(place, other, sound=sound),
    st.integers(0, 9),
    mostly(None, Operation.ADVANCE, Operation.FOSSILIZE, Operation.CULL),
    mostly(True, False),
)
ROUNDS = st.builds(
    lambda rounds, z, gain, clean: lambda run: run.fences(rounds, z=z, gain=gain, clean=clean),
    st.integers(1, 3),
    mostly(8.0, 1.0, -8.0),
    mostly(1.0, -9.0),
    mostly(True, False),
)
ACTIONS = st.one_of(WILD, WILD, GERMINATE, ONWARDS, ONWARDS, ONWARDS, ROUNDS, ROUNDS)


@settings(max_examples=20, deadline=None, phases=(Phase.reuse, Phase.generate))  # shrinking takes minutes
@given(actions=st.lists(ACTIONS, min_size=30, max_size=60))
def test_no_sequence_of_commands_reaches_a_stage_against_the_table(actions: list[Action]) -> None:
    run = Sequence()
    for act in actions:
        act(run)
        run.check()


# -- a command that was changed on its way -----------------------------------------------------------------------


def at_germination(registry: Registry) -> Command:
    candidate = Candidate(slot="body", blueprint_id=registry.names[0], seed_id="a")
    return registry.command(Operation.GERMINATE, candidates=(candidate,), mesh_host_layers=("body",), blend=BLEND)


def at_graft(registry: Registry) -> Command:
    registry.send(at_germination(registry))
    registry.next_fence()
    return registry.command(Operation.ADVANCE, seed_id="a", blend=BLEND, mesh_host_layers=("body",))


def after_ramp(registry: Registry) -> Command:
    registry.send(at_graft(registry))
    for _ in range(2):
        registry.next_fence()
    return registry.command(Operation.ADVANCE, seed_id="a", mesh_host_layers=("body",))


def at_the_end(registry: Registry) -> Command:
    registry.send(after_ramp(registry))
    registry.next_fence()
    registry.send(registry.command(Operation.ADVANCE, seed_id="a", mesh_host_layers=("body",)))
    for _ in range(2):
        registry.next_fence()
    return registry.command(Operation.FOSSILIZE, seed_id="a", mesh_host_layers=("body",))


def cull(registry: Registry) -> Command:
    registry.send(at_graft(registry))
    return registry.command(Operation.CULL, seed_id="a", mesh_host_layers=("body",))


def scale_rate(registry: Registry) -> Command:
    registry.send(at_graft(registry))
    return registry.command(Operation.SCALE_RATE, kind=CommandKind.OPTIMIZER, seed_id="a", rate_scale=0.5)


def go_back(registry: Registry) -> Command:
    registry.send(at_graft(registry))
    return registry.command(Operation.GO_BACK, kind=CommandKind.ROLLBACK, to_fence=1)


MOMENTS = (at_germination, at_graft, after_ramp, at_the_end, cull, scale_rate, go_back)
NO_EFFECT: dict[str, Any] = {
    "command_id": "another",
    "nonce": "another",
    "issued_by": "another",
    "policy_version": "another-2",
    "feature_coverage": 0.5,
    "traceparent": "another",
}
"""Fields that name or explain a command, with another sound value."""
WRONG: dict[str, Any] = {
    "command_id": " ",
    "run_id": "another",
    "generation": 2,
    "issued_by": "",
    "policy_version": "",
    "nonce": "",
    "seed_id": "nobody",
    "candidates": (Candidate(slot="elsewhere", blueprint_id="mlp", seed_id="b"),),
    "replica_of": "nobody",
    "blend": BlendSpec(mode="ODD", ramp_steps=20),
    "rate_scale": -0.5,
    "to_fence": 50,
    "mesh_host_layers": ("body", "body"),
    "confidence_logits": (1.0, 2.0),
    "signature": "0" * 64,
}
"""Values that no command may have at any of these moments."""


def test_every_field_is_changed_somewhere() -> None:
    elsewhere = {"issued_at", "kind", "operation", "fallback_marks"}
    assert NO_EFFECT.keys() | WRONG.keys() | elsewhere == Command.model_fields.keys()


def effect(answer: Answer, registry: Registry) -> Any:
    """What an answer changes, without the ids that name its command."""
    names = {"command_id", "policy_version", "report_id", "order_id"}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items() if key not in names}
        return [plain(part) for part in value] if isinstance(value, list | tuple) else value

    return plain(answer.model_dump()), plain(registry.asked.view(registry.fence).model_dump())


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("field", NO_EFFECT)
def test_a_field_that_only_names_or_explains_a_command_changes_no_effect(
    moment: Callable[[Registry], Command], field: str
) -> None:
    effects = []
    for changes in ({}, {field: NO_EFFECT[field]}):
        registry = Registry()
        command = signed(moment(registry).model_copy(update=changes))
        effects.append(effect(registry.send(command), registry))
    assert effects[0] == effects[1]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_wrong_value_of_any_field_is_refused_and_changes_nothing(moment: Callable[[Registry], Command]) -> None:
    registry = Registry()
    sound = moment(registry)
    before = registry.asked.state()
    for field, value in WRONG.items():
        command = sound.model_copy(update={field: value})
        for sent in (command, signed(command)) if field != "signature" else (command,):
            with pytest.raises((CommandRejected, DependencyViolationError)):
                registry.send(sent)
            assert registry.asked.state() == before
    registry.send(sound)


@settings(max_examples=40, deadline=None)
@given(moment=st.sampled_from(MOMENTS), data=st.data())
def test_a_command_that_was_changed_after_it_was_signed_is_refused(
    moment: Callable[[Registry], Command], data: st.DataObject
) -> None:
    registry = Registry()
    command = moment(registry)
    field = data.draw(st.sampled_from(sorted(VALUES)))
    value = data.draw(VALUES[field].filter(lambda value: value != getattr(command, field)))
    before = registry.asked.state()
    with pytest.raises(CommandRejected, match="signature_invalid"):
        registry.send(command.model_copy(update={field: value}))
    assert registry.asked.state() == before
