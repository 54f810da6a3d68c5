"""Commands: what Tamiyo asks of Kasmina, signed. Shapes and bounds only; `kasmina.registry.admission` checks them.

Fields whose absence Kasmina must refuse with a `DependencyViolationError` have an empty default here, so that a command
that lacks them can be built, sent, and refused for the right reason.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from esper.leyline.base import Message

MAX_MESH_LAYERS = 128
MAX_LOGITS = 4096
MAX_CANDIDATES = 256

ShortText = Annotated[str, Field(max_length=512)]


class Operation(StrEnum):
    """What a command asks for."""

    GERMINATE = "GERMINATE"
    ADVANCE = "ADVANCE"
    FOSSILIZE = "FOSSILIZE"
    CULL = "CULL"


class BlendMode(StrEnum):
    """How a seed's output meets the host's activation."""

    RESIDUAL = "RESIDUAL"


class BlendSpec(Message):
    """How a seed is blended in; `mode` is a `BlendMode`'s name, checked at admission."""

    mode: ShortText
    ramp_steps: Annotated[int, Field(ge=1)]
    """Optimizer steps until alpha reaches its target."""
    alpha_target: float = 1.0


class Candidate(Message):
    """One seed to try: a blueprint in a slot."""

    slot: ShortText
    blueprint_id: ShortText
    seed_id: ShortText


class Command(Message):
    """One signed order. `signature` is HMAC-SHA256, in hex, over `signed_bytes(command)`."""

    command_id: ShortText = ""
    run_id: ShortText = ""
    generation: Annotated[int, Field(ge=0)]
    issued_at: AwareDatetime
    issued_by: ShortText
    kind: Literal["SEED"] = "SEED"
    """What the command acts on."""
    operation: Operation
    seed_id: ShortText = ""
    candidates: Annotated[tuple[Candidate, ...], Field(max_length=MAX_CANDIDATES)] = ()
    replica_of: ShortText | None = None
    """The accepted seed that the one candidate repeats, whose G2 evidence it carries."""
    blend: BlendSpec | None = None
    mesh_host_layers: tuple[ShortText, ...] = ()
    confidence_logits: Annotated[tuple[float, ...], Field(max_length=MAX_LOGITS)] = ()
    fallback_marks: Annotated[tuple[ShortText, ...], Field(max_length=16)] = ()
    """Non-empty: the policy did not decide this itself. A gate culls the seed for it."""
    feature_coverage: Annotated[float, Field(ge=0.0, le=1.0)]
    policy_version: ShortText
    nonce: ShortText
    traceparent: ShortText = ""
    signature: ShortText = ""


def signed_bytes(command: Command) -> bytes:
    """The bytes that a signature covers: every field but the signature itself."""
    return command.model_dump_json(exclude={"signature"}).encode()


def sign(command: Command, key: bytes) -> str:
    """HMAC-SHA256 over the command's signed bytes, in hex. Source: RFC 2104."""
    return hmac.new(key, signed_bytes(command), hashlib.sha256).hexdigest()
