"""Commands: signed over every field, named by what they ask for, and never built with an id that is missing."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

import pytest
from deciding import make_decision, make_pair, make_seed, make_state

from esper.errors import DependencyViolationError
from esper.leyline.commands import Command, Operation, signed_bytes
from esper.leyline.stages import Stage
from esper.tamiyo.command_builder import CommandBuilder
from esper.telemetry import Telemetry, span, trace_id
from esper.testing import EPOCH, FakeClock, telling

KEY = b"a key of a test's own, 32 bytes."


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def builder(clock: FakeClock) -> CommandBuilder:
    return CommandBuilder(KEY, clock, ramp_steps=75)


DECISION = make_decision(make_pair("mlp", mesh=("body", "head")), make_pair("norm"), replica_of="winner")


def signature_of(command: Command, key: bytes = KEY) -> str:
    return hmac.new(key, signed_bytes(command), hashlib.sha256).hexdigest()


def test_a_germination_names_its_candidates_its_mesh_and_its_run(builder: CommandBuilder) -> None:
    state = make_state()
    command = builder.germinate(state, DECISION)

    assert command.operation is Operation.GERMINATE
    assert [(c.slot, c.blueprint_id) for c in command.candidates] == [("body", "mlp"), ("body", "norm")]
    assert len({c.seed_id for c in command.candidates}) == 2
    assert command.mesh_host_layers == ("body", "head")  # of all candidates, each layer once
    assert (command.run_id, command.generation, command.issued_at) == (state.run_id, 2, EPOCH)
    assert (command.replica_of, command.policy_version, command.issued_by) == ("winner", "scripted-1", "tamiyo")
    assert (command.blend, command.fallback_marks, command.feature_coverage) == (None, (), 1.0)


def test_the_signature_holds_for_the_key_and_for_every_field(builder: CommandBuilder) -> None:
    command = builder.germinate(make_state(), DECISION)

    assert command.signature == signature_of(command)
    assert command.signature != signature_of(command, b"another key")
    for field, other in [("generation", 3), ("run_id", "x"), ("candidates", ()), ("nonce", "x"), ("replica_of", None)]:
        assert signature_of(command.model_copy(update={field: other})) != command.signature, field


def test_a_step_done_again_makes_the_same_ids(builder: CommandBuilder, clock: FakeClock) -> None:
    first = builder.germinate(make_state(), DECISION)
    clock.move(30)
    again = builder.germinate(make_state(), DECISION)
    signed = {"issued_at", "signature"}

    assert again.model_dump(exclude=signed) == first.model_dump(exclude=signed)
    assert (again.issued_at - first.issued_at).total_seconds() == 30


def test_what_differs_is_named_differently(builder: CommandBuilder) -> None:
    training, other = make_seed("seed-1", stage=Stage.TRAINING), make_seed("seed-2", stage=Stage.TRAINING)
    commands = [
        builder.germinate(make_state(), DECISION),
        builder.germinate(make_state(fence=6), DECISION),
        builder.germinate(make_state(run_id="00000000-0000-4000-8000-000000000000"), DECISION),
        builder.advance(make_state(), training, "v"),
        builder.advance(make_state(), other, "v"),
        builder.advance(make_state(), make_seed("seed-1", stage=Stage.PROBATIONARY), "v"),
    ]

    names = [name for command in commands for name in (command.command_id, command.nonce)]
    assert len(set(names)) == len(names) == 12


@pytest.mark.parametrize(
    ("stage", "operation", "ramp"),
    [
        (Stage.TRAINING, Operation.ADVANCE, 75),
        (Stage.BLENDING, Operation.ADVANCE, None),
        (Stage.SHADOWING, Operation.ADVANCE, None),
        (Stage.PROBATIONARY, Operation.FOSSILIZE, None),
    ],
)
def test_a_seeds_next_step_follows_from_its_stage(
    builder: CommandBuilder, stage: Stage, operation: Operation, ramp: int | None
) -> None:
    command = builder.advance(make_state(), make_seed("seed-1", stage=stage), "v-7")

    assert (command.operation, command.seed_id, command.policy_version) == (operation, "seed-1", "v-7")
    assert (command.blend.ramp_steps if command.blend is not None else None) == ramp
    assert command.candidates == ()
    assert command.signature == signature_of(command)


def test_a_seed_needs_its_tournaments_mesh_until_it_is_accepted_and_then_its_own(builder: CommandBuilder) -> None:
    wide = {"required_mesh": ("body", "head", "other")}

    accepted = builder.advance(make_state(), make_seed(stage=Stage.TRAINING, **wide), "v")
    later = builder.advance(make_state(), make_seed(stage=Stage.BLENDING, **wide), "v")
    assert accepted.mesh_host_layers == ("body",)
    assert later.mesh_host_layers == ("body", "head", "other")


def test_a_state_without_a_run_id_makes_no_command(builder: CommandBuilder, told: Callable[[], list[str]]) -> None:
    with pytest.raises(DependencyViolationError, check=telling(subject="command GERMINATE", missing="run id missing")):
        builder.germinate(make_state(run_id=""), DECISION)
    with pytest.raises(DependencyViolationError, check=telling(subject="command ADVANCE", missing="run id missing")):
        builder.advance(make_state(run_id=""), make_seed(stage=Stage.BLENDING), "v")
    assert told() == ["dependency_violation"] * 2


def test_a_command_carries_the_trace_it_was_made_in(builder: CommandBuilder, telemetry: Telemetry) -> None:
    assert builder.germinate(make_state(), DECISION).traceparent == ""
    assert telemetry.enabled
    with span("tamiyo decide"):
        assert builder.germinate(make_state(), DECISION).traceparent.split("-")[1] == trace_id()
