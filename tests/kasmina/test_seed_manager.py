"""Whatever is commanded, in whatever order: no seed leaves the table of stages, and a refusal changes nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from growing import (
    ALIVE,
    DEAD,
    SPOTLESS,
    a_command,
    a_registry,
    live_and_twin,
    observation_of,
    probed,
    result_of,
    signed,
)
from growing import BLEND as RAMP
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from esper.errors import CommandRejected, DependencyViolationError, EvidenceMissing
from esper.kasmina.blueprints.catalogue import BLUEPRINTS
from esper.kasmina.registry.registry_state import RegistryState, StoredCommand
from esper.leyline.commands import BlendSpec, Candidate, Command, CommandKind, Operation
from esper.leyline.incubation import Answer
from esper.leyline.slots import Kind
from esper.leyline.stages import Stage
from esper.testing import FakeClock

FENCES = 60
NAMES_OF_TWO = [made.name for made in BLUEPRINTS.for_kind(Kind.NC)][:2]
BLEND = RAMP.model_copy(update={"ramp_steps": 20})
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


class Registry:
    """A registry with all that surrounds it: what is measured is sound, unless a caller says otherwise."""

    def __init__(self) -> None:
        self.clock, self.fence, self.names = FakeClock(), 1, NAMES_OF_TWO
        self.asked = a_registry(clock=self.clock, fences=FENCES)
        self._commands = 0

    def command(self, operation: Operation, **changes: Any) -> Command:
        """A signed command with the fields that are given; else complete."""
        self._commands += 1
        return a_command(operation, self._commands, **({"issued_at": self.clock.now()} | changes))

    def commands(self) -> tuple[StoredCommand, ...]:
        return RegistryState.model_validate_json(self.asked.state()).commands

    def send(self, command: Command, *, alive: bool = True, sound: bool = True) -> Answer:
        """Have a command admitted and carried out."""
        plans = self.asked.receive(command, self.fence, checkpoints=range(self.fence))
        if command.operation is Operation.GO_BACK:
            return Answer()  # the line restores everything: the registry has nothing to carry out
        view = self.asked.view(self.fence)
        seen = observation_of(view, self.fence, () if sound else view.stages)
        return self.asked.carry_out(command.command_id, self.fence, probed(plans, ALIVE if alive else DEAD), seen)

    def next_fence(self, *, z: float = 8.0, gain: float = 1.0, clean: bool = True) -> list[Answer]:
        """Go on to the next fence, and do there what needs no command."""
        self.fence += 1
        self.clock.move(1.0)
        answers = []
        order = self.asked.order()
        if order is not None and order.due_fence == self.fence:
            result = result_of(order, [plan.seed_id for plan in order.plans], z)
            answers.append(self.asked.conclude(result, self.fence))
        if self.asked.view(self.fence).compares_with_twin:
            self.asked.compare(*live_and_twin(self.fence, gain))
        if resetting := self.asked.view(self.fence).resetting:
            probe = SPOTLESS if clean else SPOTLESS.model_copy(update={"hooks_left": 1})
            answers.append(self.asked.reset(dict.fromkeys(resetting, probe), self.fence))
        return answers


NAMES = st.sampled_from((*SEEDS, "", "nobody"))
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        slot=st.sampled_from(("body", "body", "body", "elsewhere")),
        blueprint_id=st.sampled_from((*NAMES_OF_TWO, "no_blueprint")),
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
