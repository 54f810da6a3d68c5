"""Admission: every refusal by its reason, class, event and count; what is known; what cannot be forged."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from growing import BLEND, signed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.errors import CommandRejected, DependencyViolationError, StageConflict
from esper.kasmina.registry.admission import AdmittedCommand, admit
from esper.kasmina.registry.admission_rules import OPTIONAL, RULES
from esper.kasmina.registry.ledger import Ledger
from esper.leyline.commands import BlendSpec, Candidate, Command, CommandKind, Operation, sign, signed_bytes
from esper.leyline.stages import IN_HOST, Stage
from esper.testing import EPOCH

SOUND = Candidate(slot="body", blueprint_id="mlp", seed_id="seed-9")
OTHER_RUN = "00000000-0000-0000-0000-000000000000"


# -- who and when: CommandRejected -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "changes", "age_s"),
    [
        ("nonce_replayed", {"nonce": "nonce-0"}, 0),
        ("nonce_replayed", {"command_id": "command-0"}, 0),
        ("stale", {}, 60.001),
        ("future", {}, -5.001),
        ("wrong_run", {"run_id": OTHER_RUN}, 0),
        ("old_generation", {"generation": 0}, 0),
        ("old_generation", {"generation": 2}, 0),
    ],
)
def test_a_command_that_is_not_fresh_or_not_for_this_run_is_rejected(
    refused, make_command, telemetry, reason, changes, age_s
):
    command = make_command(name="2", **changes)
    error, event = refused(command, CommandRejected, now=EPOCH + timedelta(seconds=age_s))
    assert (error.reason, error.command_id) == (reason, command.command_id)
    assert (event["name"], event["severity"]) == ("command_rejected", "CRITICAL")
    assert event["fields"] == {"command_id": command.command_id, "reason": reason}
    assert telemetry.counters.total("esper.command.rejections", reason=reason) == 1


@pytest.mark.parametrize(
    ("reason", "signature"),
    [
        ("signature_missing", lambda _: ""),
        ("signature_invalid", lambda _: "0" * 64),
        ("signature_invalid", lambda _: "señal de otro"),
        ("signature_invalid", lambda command: sign(command, b"another key")),
        ("signature_invalid", lambda command: command.signature.upper()),
    ],
)
def test_a_command_without_a_true_signature_is_rejected_before_anything_else(refused, make_command, reason, signature):
    command = make_command(run_id=OTHER_RUN, nonce="nonce-0")
    error, event = refused(command.model_copy(update={"signature": signature(command)}), CommandRejected)
    assert error.reason == reason
    assert (event["name"], event["severity"]) == ("command_rejected", "CRITICAL")


@pytest.mark.parametrize("age_s", [60.0, 0.0, -5.0])
def test_a_command_at_the_very_limits_of_its_age_is_admitted(make_command, ledger, key, age_s):
    command = make_command(name="2")
    assert admit(command, ledger, key=key, now=EPOCH + timedelta(seconds=age_s)).command is command


def test_the_signature_survives_a_journey_as_json(make_command, ledger, key):
    command = make_command(name="2", issued_at=EPOCH.astimezone(timezone(timedelta(hours=-3))), feature_coverage=0.1)
    arrived = Command.model_validate_json(command.model_dump_json())
    assert signed_bytes(arrived) == signed_bytes(command)
    admit(arrived, ledger, key=key, now=EPOCH)


# -- whether it can be done: StageConflict -----------------------------------------------------------------------


WRITTEN = {
    Operation.ADVANCE: {Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING},
    Operation.FOSSILIZE: {Stage.PROBATIONARY},
    Operation.CULL: {Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY},
    Operation.SCALE_RATE: {Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY, Stage.FOSSILIZED},
}


@pytest.mark.parametrize("operation", WRITTEN)
@pytest.mark.parametrize("stage", Stage)
def test_an_operation_is_admitted_from_its_stages_alone(refused, make_command, ledger, key, operation, stage):
    here = replace(ledger, stages={"seed-1": stage})
    blends = {} if (operation, stage) == (Operation.ADVANCE, Stage.TRAINING) else {"blend": None}
    command = make_command(operation, name="2", **blends)
    if stage in WRITTEN[operation]:
        admit(command, here, key=key, now=EPOCH)
        return
    error, event = refused(command, StageConflict, ledger=here)
    assert error.reason == "stage_conflict"
    assert all(name in error.detail for name in ("seed-1", operation, stage))
    assert (event["name"], event["severity"]) == ("command_rejected", "ERROR")


def at(stage: Stage, earliest: int = 5) -> dict[str, Any]:
    return {"stages": {"seed-1": stage}, "earliest": {"seed-1": earliest}}


TWICE = (SOUND, SOUND.model_copy(update={"seed_id": "seed-1"}))
TOO_EARLY = "seed-1 may pass to its next stage from fence 6 on"


@pytest.mark.parametrize(
    ("operation", "changes", "here", "said"),
    [
        (Operation.ADVANCE, {"blend": None}, at(Stage.SHADOWING, 6), TOO_EARLY),
        (Operation.FOSSILIZE, {}, at(Stage.PROBATIONARY, 6), TOO_EARLY),
        (Operation.GERMINATE, {"candidates": TWICE}, {}, "seed-1"),
        (Operation.GERMINATE, {}, {"order_in_flight": "command-0"}, "command-0"),
        (Operation.GERMINATE, {}, {"closed": frozenset({"body"})}, "slot body takes no further seed"),
        *(
            (Operation.GERMINATE, {"replica_of": "seed-1"}, at(stage), f"seed-1 is {stage}")
            for stage in Stage
            if stage not in IN_HOST
        ),
        *(
            (
                *(Operation.GO_BACK, {"to_fence": fence}, {"checkpoints": there}),
                f"this fence has no checkpoint; give one of `state.checkpoints`: {listed}",
            )
            for fence, there, listed in (
                (-1, (0, 3), "0, 3"),
                (1, (0, 3), "0, 3"),
                (5, (0, 3), "0, 3"),
                (0, (), "none"),
            )
        ),
    ],
)
def test_what_cannot_be_done_now_is_refused(refused, make_command, ledger, operation, changes, here, said):
    command = make_command(operation, name="2", **changes)
    error, event = refused(command, StageConflict, ledger=replace(ledger, **here))
    assert said in str(error)
    assert (event["name"], event["severity"]) == ("command_rejected", "ERROR")


TOO_MANY = tuple(f"layer-{place}" for place in range(129))


@pytest.mark.parametrize(
    ("operation", "changes", "here"),
    [
        (Operation.CULL, {}, at(Stage.BLENDING, 6)),
        (Operation.SCALE_RATE, {}, at(Stage.BLENDING, 6)),
        *((Operation.GERMINATE, {"replica_of": "seed-1"}, at(stage)) for stage in IN_HOST),
        *((Operation.GO_BACK, {"to_fence": fence}, {}) for fence in (0, 3, 4)),
        (Operation.GERMINATE, {"mesh_host_layers": TOO_MANY[:128]}, {}),
        (Operation.ADVANCE, {"blend": None}, at(Stage.BLENDING)),
        (Operation.GERMINATE, {"fallback_marks": ("rule of thumb",)}, {}),  # for a gate to refuse
    ],
)
def test_what_can_be_done_is_admitted(make_command, ledger, key, told, operation, changes, here):
    command = make_command(operation, name="2", **changes)
    assert admit(command, replace(ledger, **here), key=key, now=EPOCH).command == command
    assert told() == []


# -- whether it is complete: DependencyViolationError ------------------------------------------------------------


def candidate(**changes: str) -> dict[str, Any]:
    return {"candidates": (SOUND.model_copy(update=changes),)}


@pytest.mark.parametrize(
    ("operation", "changes", "missing"),
    [
        (Operation.GERMINATE, {"command_id": ""}, "command id missing"),
        (Operation.GERMINATE, {"run_id": ""}, "run id missing"),
        (Operation.GERMINATE, {"candidates": ()}, "candidates missing"),
        (Operation.GERMINATE, candidate(seed_id=""), "seed id missing"),
        (Operation.GERMINATE, candidate(blueprint_id=""), "blueprint id missing"),
        (Operation.GERMINATE, candidate(slot=""), "slot id missing"),
        (Operation.GERMINATE, candidate(slot="tail"), "slot not known"),
        (Operation.GERMINATE, {"candidates": (SOUND, SOUND)}, "seed id repeated"),
        (
            Operation.GERMINATE,
            {"candidates": (SOUND, SOUND.model_copy(update={"seed_id": "seed-8"})), "replica_of": "seed-1"},
            "a replica is one candidate",
        ),
        (Operation.GERMINATE, {"replica_of": "seed-7"}, "the seed to repeat is not known"),
        (Operation.GERMINATE, candidate(blueprint_id="norm") | {"replica_of": "seed-1"}, "a replica of another pair"),
        (Operation.ADVANCE, {"seed_id": ""}, "seed id missing"),
        (Operation.ADVANCE, {"seed_id": "seed-7"}, "seed not known"),
        (Operation.ADVANCE, {"mesh_host_layers": ()}, "mesh_host_layers missing"),
        (Operation.ADVANCE, {"mesh_host_layers": ("body", "")}, "mesh_host_layers has an empty name"),
        (Operation.ADVANCE, {"mesh_host_layers": ("body", "head", "body")}, "mesh_host_layers repeats a layer"),
        (Operation.ADVANCE, {"mesh_host_layers": TOO_MANY}, "mesh_host_layers too long"),
        (Operation.CULL, {"seed_id": ""}, "seed id missing"),
        (Operation.CULL, {"seed_id": " "}, "seed id missing"),
        (Operation.CULL, {"nonce": ""}, "nonce missing"),
        (Operation.CULL, {"nonce": " "}, "nonce missing"),
        (Operation.CULL, {"issued_by": ""}, "issuer missing"),
        (Operation.CULL, {"policy_version": ""}, "policy version missing"),
        (Operation.CULL, candidate() | {"blend": BLEND}, "blend, candidates given, not used by CULL"),
        (Operation.FOSSILIZE, {"seed_id": "seed-7"}, "seed not known"),
        (Operation.CULL, {"kind": CommandKind.OPTIMIZER}, "kind of another operation"),
        (Operation.SCALE_RATE, {"kind": CommandKind.SEED}, "kind of another operation"),
        (Operation.SCALE_RATE, {"seed_id": ""}, "seed id missing"),
        (Operation.SCALE_RATE, {"seed_id": "seed-7"}, "seed not known"),
        (Operation.GO_BACK, {"to_fence": None}, "to_fence missing"),
        (Operation.GO_BACK, {"kind": CommandKind.OPTIMIZER}, "kind of another operation"),
        (Operation.SCALE_RATE, {"rate_scale": None}, "rate_scale missing"),
        (Operation.SCALE_RATE, {"rate_scale": -0.1}, "rate_scale outside [0, 16]"),
        (Operation.SCALE_RATE, {"rate_scale": 16.1}, "rate_scale outside [0, 16]"),
        (Operation.SCALE_RATE, {"rate_scale": math.nan}, "rate_scale outside [0, 16]"),
    ],
)
def test_a_command_that_lacks_something_is_no_command(refused, make_command, telemetry, operation, changes, missing):
    command = make_command(operation, name="2", **changes)
    error, event = refused(command, DependencyViolationError)
    assert error.missing.startswith(missing)
    assert (event["name"], event["severity"]) == ("command_validation_failed", "ERROR")
    assert event["fields"] == {"command_id": command.command_id, "missing": error.missing}
    assert telemetry.counters.total("esper.command.rejections", reason="malformed") == 1


SET: dict[str, Any] = {
    "seed_id": "seed-1",
    "candidates": (SOUND,),
    "replica_of": "seed-1",
    "blend": BLEND,
    "confidence_logits": (1.0, 2.0),
    "rate_scale": 1.0,
    "to_fence": 3,
    "mesh_host_layers": ("body",),
    "fallback_marks": ("rule of thumb",),
}
"""A sound value of each field that an operation may leave unused."""


USES = {
    Operation.GERMINATE: {"candidates", "replica_of", "blend", "mesh_host_layers", "fallback_marks"},
    Operation.ADVANCE: {"seed_id", "blend", "mesh_host_layers", "fallback_marks"},
    Operation.FOSSILIZE: {"seed_id", "mesh_host_layers", "fallback_marks"},
    Operation.CULL: {"seed_id", "mesh_host_layers"},
    Operation.SCALE_RATE: {"seed_id", "rate_scale"},
    Operation.GO_BACK: {"to_fence"},
}
"""The fields that each operation uses for a seed with a residual blend, written here by hand."""


def test_every_field_that_may_stay_unused_has_a_sound_value():
    assert SET.keys() == OPTIONAL
    assert USES.keys() == RULES.keys() == set(Operation)


@pytest.mark.parametrize(("operation", "field"), [(o, f) for o in Operation for f in SET if f not in USES[o]])
def test_a_field_that_the_operation_does_not_use_is_refused(refused, make_command, ledger, operation, field):
    stages = RULES[operation].stages
    here = replace(ledger, stages={"seed-1": stages[0]}) if stages else ledger
    command = make_command(operation, name="2", **{field: SET[field]})
    error, _ = refused(command, DependencyViolationError, ledger=here)
    assert error.missing == f"{field} given, not used by {operation}"


@pytest.mark.parametrize("stage", [Stage.BLENDING, Stage.SHADOWING])
def test_a_blend_is_refused_where_no_graft_follows(refused, make_command, ledger, stage):
    command = make_command(Operation.ADVANCE, name="2")
    error, _ = refused(command, DependencyViolationError, ledger=replace(ledger, **at(stage)))
    assert error.missing == "blend given, not used by ADVANCE"


def test_an_age_just_beyond_its_limit_is_not_rounded_to_the_limit(refused, make_command):
    error, _ = refused(make_command(name="2"), CommandRejected, now=EPOCH + timedelta(seconds=60.001))
    assert all(figure in error.detail for figure in ("60.001 s", "60 s"))


def test_a_command_without_a_time_or_with_a_local_one_cannot_be_made(make_command):
    with pytest.raises(ValueError, match="issued_at"):
        make_command(issued_at=None)
    with pytest.raises(ValueError, match="timezone"):
        make_command(issued_at=datetime(2026, 1, 1))


# -- what is known already ---------------------------------------------------------------------------------------


def with_known(ledger: Ledger, command: Command) -> Ledger:
    return replace(
        ledger, nonces={command.nonce: command.command_id}, bodies={command.command_id: signed_bytes(command)}
    )


def test_a_known_command_passes_again_however_late_and_is_counted_as_a_duplicate(
    make_command, ledger, key, telemetry, told
):
    command = make_command(name="2")
    after = replace(with_known(ledger, command), stages={"seed-1": Stage.DORMANT, "seed-2": Stage.CULLED})

    admitted = admit(command, after, key=key, now=EPOCH + timedelta(days=1))

    assert admitted.command is command
    assert told() == []
    assert telemetry.counters.total("esper.command.admissions", duplicate=True) == 1
    assert telemetry.counters.total("esper.command.admissions", duplicate=False) == 0


@pytest.mark.parametrize(
    ("changes", "generation", "reason"),
    [
        ({}, 2, "old_generation"),
        ({"signature": ""}, 1, "signature_missing"),
        ({"command_id": "command-3"}, 1, "nonce_replayed"),
        ({"feature_coverage": 0.5}, 1, "nonce_replayed"),
        ({"feature_coverage": 0.5, "nonce": "nonce-3"}, 1, "nonce_replayed"),
    ],
)
def test_a_known_command_passes_only_as_it_was(refused, make_command, ledger, changes, generation, reason):
    command = make_command(name="2")
    sent = signed(command.model_copy(update=changes)).model_copy(
        update={k: v for k, v in changes.items() if k == "signature"}
    )
    error, _ = refused(sent, CommandRejected, ledger=replace(with_known(ledger, command), generation=generation))
    assert error.reason == reason
    if "command_id" in changes:
        assert "command-2" in error.detail


# -- what cannot be forged ---------------------------------------------------------------------------------------


def test_nobody_else_makes_an_admitted_command(make_command, ledger, key):
    admitted = admit(make_command(name="2"), ledger, key=key, now=EPOCH)
    stolen = {"seal": getattr(admitted, "seal", None)}
    for forge in (
        lambda: AdmittedCommand(make_command(), object()),
        lambda: AdmittedCommand(make_command(), **stolen),
        lambda: dataclasses.replace(admitted, command=make_command()),
    ):
        with pytest.raises((TypeError, ValueError), match=r"only esper.kasmina|must be specified"):
            forge()
    with pytest.raises(dataclasses.FrozenInstanceError):
        admitted.command = make_command()


def test_the_signed_bytes_of_an_admitted_command_are_made_once(make_command, ledger, key):
    command = make_command(name="2")
    admitted = admit(command, ledger, key=key, now=EPOCH)
    assert admitted.signed == signed_bytes(command)
    assert admitted.signed is admitted.signed


TEXT = st.text(max_size=20)
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "command_id": TEXT,
    "run_id": TEXT,
    "generation": st.integers(0, 2**40),
    "issued_at": st.datetimes(timezones=st.just(UTC)),
    "issued_by": TEXT,
    "kind": st.sampled_from(CommandKind),
    "operation": st.sampled_from(Operation),
    "rate_scale": st.none() | st.floats(0, 20),
    "to_fence": st.none() | st.integers(0, 20),
    "seed_id": TEXT,
    "candidates": st.lists(st.builds(Candidate, slot=TEXT, blueprint_id=TEXT, seed_id=TEXT), max_size=3).map(tuple),
    "replica_of": st.none() | TEXT,
    "blend": st.none() | st.builds(BlendSpec, mode=TEXT, ramp_steps=st.integers(1, 500), alpha_target=st.floats(0, 1)),
    "mesh_host_layers": st.lists(TEXT, max_size=3).map(tuple),
    "confidence_logits": st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
    "fallback_marks": st.lists(TEXT, max_size=3).map(tuple),
    "feature_coverage": st.floats(0, 1),
    "policy_version": TEXT,
    "nonce": TEXT,
    "traceparent": TEXT,
}


def test_every_signed_field_has_a_change_to_try():
    assert set(CHANGES) | {"signature"} == set(Command.model_fields)


@pytest.mark.parametrize("field", CHANGES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_signature_covers_every_field(make_command, ledger, key, field, data):
    command = make_command(name="2")
    value = data.draw(CHANGES[field].filter(lambda value: value != getattr(command, field)))
    tampered = command.model_copy(update={field: value})

    with pytest.raises(CommandRejected) as caught:
        admit(tampered, ledger, key=key, now=EPOCH)

    assert caught.value.reason == "signature_invalid"
    assert sign(tampered, key) != command.signature
