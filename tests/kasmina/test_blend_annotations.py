"""What a command must say about a blend (#2, #3): an incomplete one is refused, and none becomes another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from esper.errors import DependencyViolationError
from esper.kasmina.registry.admission import admit
from esper.kasmina.registry.ledger import Ledger
from esper.leyline.commands import MAX_CHANNELS, BlendMode, BlendSpec, Candidate, Command, Operation
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import Kind, SlotSpec
from esper.leyline.stages import Stage
from esper.testing import EPOCH

V = (0.0, 0.25, 0.5, 1.0, 1.0, 0.0, 0.3, 0.7)
"""A vector for the 8 channels of the slot "body"."""
SURE = (3.0, 1.0, -2.0)


def spec(mode: str, **fields: Any) -> BlendSpec:
    return BlendSpec(**({"mode": mode, "ramp_steps": 30} | fields))


@pytest.fixture
def ledger(ledger: Ledger, body_spec: SlotSpec) -> Ledger:
    image = body_spec.model_copy(update={"path": "image", "kind": Kind.NCHW, "shape": (4, 9, 9)})
    wide = body_spec.model_copy(update={"path": "wide", "shape": (2 * MAX_CHANNELS,)})
    return replace(ledger, slots={"body": body_spec, "image": image, "wide": wide})


@pytest.fixture
def lacking(refused: Any, telemetry: Any, make_command: Any, ledger: Ledger) -> Callable[..., str]:
    """Have a command refused, and return what it lacked."""

    def refuse(operation: Operation, *, ledger: Ledger = ledger, **fields: Any) -> str:
        error, event = refused(make_command(operation, name="2", **fields), DependencyViolationError, ledger=ledger)
        assert (event["name"], event["severity"]) == ("command_validation_failed", "ERROR")
        assert event["fields"]["missing"] == error.missing
        assert telemetry.counters.total("esper.command.rejections", reason="malformed") == 1
        return str(error).replace(" (", ": ", 1)

    return refuse


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no blend": ({"blend": None}, "blend spec missing"),
    "unknown mode": ({"blend": spec("CROSSFADE")}, "blend mode not known: 'CROSSFADE'; there are RESIDUAL, CONVEX,"),
    "mode in small letters": ({"blend": spec("convex")}, "blend mode not known"),
    "unknown schedule": ({"blend": spec("CONVEX", schedule="step")}, "blend schedule not known: 'step'; there are lin"),
    "alpha above 1": ({"blend": spec("CONVEX", alpha_target=1.01)}, r"alpha_target outside [0, 1]: 1.01"),
    "alpha below 0": ({"blend": spec("CHANNEL", channels=V, alpha_target=-0.01)}, "alpha_target outside"),
    "alpha not a number": ({"blend": spec("RESIDUAL", alpha_target=math.nan)}, "alpha_target outside"),
    "no vector": ({"blend": spec("CHANNEL")}, "channels missing"),
    "short vector": ({"blend": spec("CHANNEL", channels=V[:7])}, "another length: 7 for the 8 channels of slot body"),
    "long vector": ({"blend": spec("CHANNEL", channels=(*V, 0.5))}, "another length: 9 for the 8 channels"),
    "one for all": ({"blend": spec("CHANNEL", channels=(0.5,))}, "another length: 1 for the 8 channels"),
    "groups without theirs": ({"blend": spec("CHANNEL", channels=V, channel_groups=4)}, "8 for the 4 channel_groups"),
    "groups that do not divide": (
        {"blend": spec("CHANNEL", channels=V[:3], channel_groups=3)},
        "channel_groups must divide the channels: 3 for 8 of body",
    ),
    "no groups": ({"blend": spec("CHANNEL", channels=V, channel_groups=0)}, "channel_groups must divide"),
    "vector above 1": ({"blend": spec("CHANNEL", channels=(*V[:7], 1.5))}, r"channels outside [0, 1]: 1.5"),
    "vector below 0": ({"blend": spec("CHANNEL", channels=(*V[:7], -0.1))}, r"channels outside [0, 1]: -0.1"),
    "vector with nan": ({"blend": spec("CHANNEL", channels=(*V[:7], math.nan))}, r"channels outside [0, 1]: nan"),
    "too many": ({"blend": spec("CHANNEL", channels=(0.5,) * 4097)}, "channels too long: 4097 over 4096"),
    "no logits": ({"blend": spec("CONFIDENCE")}, "confidence_logits missing: none given"),
    "one logit": ({"blend": spec("CONFIDENCE"), "confidence_logits": (1.0,)}, "confidence_logits missing: one given"),
    "logit nan": ({"blend": spec("CONFIDENCE"), "confidence_logits": (1.0, math.nan)}, "confidence_logits not finite"),
    "logit inf": ({"blend": spec("CONFIDENCE"), "confidence_logits": (math.inf, 1)}, "confidence_logits not finite"),
    "no gain": ({"blend": spec("CONFIDENCE", gain=0.0), "confidence_logits": SURE}, "gain not a positive number"),
    "gain inf": ({"blend": spec("CONFIDENCE", gain=math.inf), "confidence_logits": SURE}, "gain not a positive number"),
    "threshold": ({"blend": spec("CONFIDENCE", threshold=math.nan), "confidence_logits": SURE}, "threshold not finite"),
    "bounds": ({"blend": spec("CONFIDENCE", low=0.6, high=0.5), "confidence_logits": SURE}, "low and high not in ord"),
    "high bound": ({"blend": spec("CONFIDENCE", high=1.1), "confidence_logits": SURE}, "low and high not in order"),
    "stray vector": ({"blend": spec("CONVEX", channels=V)}, "channels given, not used by the blend mode: CONVEX"),
    "stray gain": ({"blend": spec("CHANNEL", channels=V, gain=5.0)}, "gain given, not used by the blend mode"),
    "stray logits": ({"blend": spec("CONVEX"), "confidence_logits": SURE}, "confidence_logits given, not used by"),
}


@pytest.mark.parametrize("operation", [Operation.GERMINATE, Operation.ADVANCE])
@pytest.mark.parametrize("case", REFUSED)
def test_an_incomplete_blend_is_refused_at_birth_and_at_the_graft(
    lacking: Callable[..., str], case: str, operation: Operation
) -> None:
    fields, words = REFUSED[case]
    assert words in lacking(operation, **fields)


GOOD: dict[str, dict[str, Any]] = {
    "RESIDUAL": {"blend": spec("RESIDUAL", schedule="cosine")},
    "CONVEX": {"blend": spec("CONVEX", schedule="sigmoid", alpha_target=0.5)},
    "CHANNEL": {"blend": spec("CHANNEL", channels=V)},
    "CHANNEL by group": {"blend": spec("CHANNEL", channels=V[:2], channel_groups=2)},
    "CONFIDENCE": {"blend": spec("CONFIDENCE", low=0.1, high=0.9), "confidence_logits": SURE},
}


@pytest.mark.parametrize("operation", [Operation.GERMINATE, Operation.ADVANCE])
@pytest.mark.parametrize("case", GOOD)
def test_a_complete_blend_is_admitted(make_command: Any, ledger: Ledger, key: bytes, case: str, operation: Any) -> None:
    command = make_command(operation, name="2", **GOOD[case])
    assert admit(command, ledger, key=key, now=EPOCH).command == command


def test_a_vector_must_fit_the_slot_of_every_candidate(lacking: Callable[..., str]) -> None:
    both = tuple(Candidate(slot=slot, blueprint_id="norm", seed_id=slot) for slot in ("body", "image"))
    told = lacking(Operation.GERMINATE, candidates=both, blend=spec("CHANNEL", channels=V))
    assert "8 for the 4 channels of slot image" in told


def test_a_vector_by_group_fits_slots_of_different_width(make_command: Any, ledger: Ledger, key: bytes) -> None:
    every = tuple(Candidate(slot=slot, blueprint_id="norm", seed_id=slot) for slot in ("body", "image", "wide"))
    blend = spec("CHANNEL", channels=(0.1, 0.2), channel_groups=2)
    assert admit(make_command(name="2", candidates=every, blend=blend), ledger, key=key, now=EPOCH)


@pytest.mark.parametrize(
    "other",
    [
        spec("CONVEX"),
        spec("CHANNEL", channels=(*V[:7], 0.8)),
        spec("CHANNEL", channels=V, ramp_steps=31),
        spec("CHANNEL", channels=V, alpha_target=0.5),
        spec("CHANNEL", channels=V, schedule="cosine"),
    ],
    ids=["mode", "vector", "ramp", "target", "schedule"],
)
def test_a_second_different_blend_is_refused(lacking: Callable[..., str], ledger: Ledger, other: BlendSpec) -> None:
    here = replace(ledger, blends={"seed-1": spec("CHANNEL", channels=V)})
    assert "another blend than the seed's own" in lacking(Operation.ADVANCE, ledger=here, blend=other)


def test_a_replica_has_the_blend_of_the_seed_that_it_repeats(make_command: Any, ledger: Ledger, key: bytes) -> None:
    here = replace(ledger, blends={"seed-1": spec("CONVEX")}, stages={"seed-1": Stage.FOSSILIZED})
    command = make_command(name="3", replica_of="seed-1", blend=spec("CONVEX"))
    assert admit(command, here, key=key, now=EPOCH).command == command


def test_a_replica_with_another_blend_is_refused(lacking: Callable[..., str], ledger: Ledger) -> None:
    here = replace(ledger, blends={"seed-1": spec("CONVEX")}, stages={"seed-1": Stage.FOSSILIZED})
    told = lacking(Operation.GERMINATE, ledger=here, replica_of="seed-1", blend=spec("RESIDUAL"))
    assert "another blend than the seed's own" in told


LATER = [
    (Operation.ADVANCE, Stage.BLENDING),
    (Operation.ADVANCE, Stage.SHADOWING),
    (Operation.FOSSILIZE, Stage.PROBATIONARY),
]


@pytest.mark.parametrize(("operation", "stage"), LATER)
@pytest.mark.parametrize(
    ("logits", "words"),
    [((), "confidence_logits missing: none"), ((1.0,), "confidence_logits missing: one"), ((1.0, math.nan), "finite")],
)
def test_each_later_command_of_a_confident_seed_carries_fresh_logits(
    lacking: Callable[..., str], ledger: Ledger, operation: Operation, stage: Stage, logits: Any, words: str
) -> None:
    here = replace(ledger, stages={"seed-1": stage}, blends={"seed-1": spec("CONFIDENCE")})
    assert words in lacking(operation, ledger=here, blend=None, confidence_logits=logits)


@pytest.mark.parametrize(("operation", "stage"), LATER)
@pytest.mark.parametrize("mode", BlendMode)
def test_logits_are_admitted_for_a_confident_seed_and_no_other(
    make_command: Any, ledger: Ledger, key: bytes, operation: Operation, stage: Stage, mode: BlendMode
) -> None:
    blend = spec(mode, channels=V if mode is BlendMode.CHANNEL else ())
    here = replace(ledger, stages={"seed-1": stage}, blends={"seed-1": blend})
    command = make_command(operation, name="2", blend=None, confidence_logits=SURE)
    if mode is BlendMode.CONFIDENCE:
        assert admit(command, here, key=key, now=EPOCH).command == command
    else:
        with pytest.raises(DependencyViolationError, match="confidence_logits given, not used"):
            admit(command, here, key=key, now=EPOCH)


def test_an_old_message_is_read_and_written_as_it_was() -> None:
    old = '{"mode":"RESIDUAL","ramp_steps":75,"alpha_target":1.0}'
    assert BlendSpec.model_validate_json(old).model_dump_json() == old
    assert "confidence" in GraftPlan.LATER
    full = spec("CONFIDENCE", gain=5.0, low=0.1, schedule="cosine")
    assert set(json.loads(full.model_dump_json())) == {*json.loads(old), "gain", "low", "schedule"}
    assert BlendSpec.model_validate_json(full.model_dump_json()) == full


def test_a_command_that_was_signed_without_a_blends_new_fields_keeps_its_signed_bytes(make_command: Any) -> None:
    command: Command = make_command(Operation.ADVANCE, blend=spec("RESIDUAL"))
    assert '"blend":{"mode":"RESIDUAL","ramp_steps":30,"alpha_target":1.0},' in command.model_dump_json()
