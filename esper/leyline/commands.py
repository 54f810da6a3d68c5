"""Signed commands from Tamiyo to Kasmina. This module has only types and bounds; `kasmina.registry.admission` checks
the commands.

If a command lacks a required field, Kasmina refuses it with a `DependencyViolationError`. Required fields have an empty
default here, so that a command without them can be built and reaches that check.
"""

from __future__ import annotations

import hmac
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import AwareDatetime, Field

from esper.leyline.base import GrownMessage, Message, PublicMessage

MAX_MESH_LAYERS = 128
MAX_CHANNELS = 4096
"""Largest number of entries of the vector v in the mode CHANNEL."""
MAX_LOGITS = 4096
MAX_CANDIDATES = 256
MAX_COPIES = 64
"""Largest number of modules in one seed."""
MAX_RATE_SCALE = 16.0
"""Largest allowed `rate_scale`. A value in a wrong unit would be far larger, and is refused."""

ShortText = Annotated[str, Field(max_length=512)]


class CommandKind(StrEnum):
    """The kind of state that a command changes."""

    SEED = "SEED"
    """Changes the stage of seeds."""
    OPTIMIZER = "OPTIMIZER"
    """Changes the optimizer of one seed."""
    ROLLBACK = "ROLLBACK"
    """Changes the state of the whole run."""


class Operation(StrEnum):
    """Operations that a command can request. Each belongs to one `CommandKind`."""

    GERMINATE = "GERMINATE"
    ADVANCE = "ADVANCE"
    FOSSILIZE = "FOSSILIZE"
    CULL = "CULL"
    SCALE_RATE = "SCALE_RATE"
    """Kind OPTIMIZER: from this fence on, multiply the learning rates of a seed's schedule by `rate_scale`."""
    GO_BACK = "GO_BACK"
    """Kind ROLLBACK: take the whole run back to the fence `to_fence`, and continue from there."""


class BlendMode(StrEnum):
    """Ways to combine a seed's output s with the host's activation h. `a` is alpha, 0..1."""

    RESIDUAL = "RESIDUAL"
    """h + a s"""
    CONVEX = "CONVEX"
    """(1 - a) h + a s"""
    CHANNEL = "CHANNEL"
    """(1 - a v) h + a v s. The vector v has one entry per channel, or per group of channels"""
    CONFIDENCE = "CONFIDENCE"
    """(1 - e) h + e s, with e = clamp(a c, low, high) and c = sigmoid(gain (top1 - top2 - threshold)). top1 and top2
    are the two largest logits of the policy"""


USE_LOGITS = frozenset({BlendMode.CONFIDENCE})
"""Modes whose commands must have `confidence_logits`."""


class BlendSchedule(StrEnum):
    """Shapes of the ramp of alpha from 0 to its target."""

    LINEAR = "linear"
    COSINE = "cosine"
    SIGMOID = "sigmoid"


class BlendSpec(PublicMessage, GrownMessage):
    """Blend settings of a seed.

    An incomplete spec can be built; admission refuses it. A field that the mode does not use must have its default.
    """

    LATER: ClassVar = frozenset({"schedule", "channels", "channel_groups", "gain", "threshold", "low", "high"})

    mode: ShortText
    """Name of a `BlendMode`."""
    ramp_steps: Annotated[int, Field(ge=1)]
    """Optimizer steps until alpha reaches its target."""
    alpha_target: float = 1.0
    schedule: ShortText = BlendSchedule.LINEAR.value
    """Value of a `BlendSchedule`."""
    channels: tuple[float, ...] = ()
    """CHANNEL: the vector v, entries 0..1."""
    channel_groups: int | None = None
    """CHANNEL: number of groups of neighbouring channels. v has an entry for each group. None: v has an entry for each
    channel."""
    gain: float = 4.0
    """CONFIDENCE: steepness of the sigmoid."""
    threshold: float = 0.2
    """CONFIDENCE: difference of the two largest logits at which the confidence is 1/2."""
    low: float = 0.0
    """CONFIDENCE: smallest effective alpha."""
    high: float = 1.0
    """CONFIDENCE: largest effective alpha."""

    @property
    def uses_logits(self) -> bool:
        """True if every command for a seed with this blend must have `confidence_logits`."""
        return self.mode in USE_LOGITS


class Candidate(GrownMessage):
    """One seed to try: a blueprint in a slot."""

    LATER: ClassVar = frozenset({"copies"})

    slot: ShortText
    blueprint_id: ShortText
    seed_id: ShortText
    copies: Annotated[int, Field(ge=1, le=MAX_COPIES)] = 1
    """Number of modules of the blueprint in the seed."""


class Command(Message):
    """One signed command. `signature` is HMAC-SHA256, in hex, over `signed_bytes(command)`."""

    command_id: ShortText = ""
    run_id: ShortText = ""
    generation: Annotated[int, Field(ge=0)]
    issued_at: AwareDatetime
    issued_by: ShortText
    kind: CommandKind = CommandKind.SEED
    operation: Operation
    seed_id: ShortText = ""
    candidates: Annotated[tuple[Candidate, ...], Field(max_length=MAX_CANDIDATES)] = ()
    replica_of: ShortText | None = None
    """If the command is for a replica: id of the accepted seed that the replica repeats. G2 uses the evidence of that
    seed. A command for a replica has no other candidate. None: no candidate is a replica.
    """
    blend: BlendSpec | None = None
    rate_scale: float | None = None
    """Factor on the learning rates of the seed's schedule. It replaces an earlier factor. None: the command sets no
    factor."""
    to_fence: int | None = None
    """Fence to go back to: an earlier fence that has a checkpoint. None: the command does not go back."""
    mesh_host_layers: tuple[ShortText, ...] = ()
    confidence_logits: Annotated[tuple[float, ...], Field(max_length=MAX_LOGITS)] = ()
    """Logits of the policy from which the confidence of a CONFIDENCE blend is computed. Empty for other modes."""
    fallback_marks: Annotated[tuple[ShortText, ...], Field(max_length=16)] = ()
    """Fallback marks: reasons why the policy did not make this decision. If there is a mark, the next gate culls the
    seed."""
    feature_coverage: Annotated[float, Field(ge=0.0, le=1.0)]
    policy_version: ShortText
    nonce: ShortText
    traceparent: ShortText = ""
    signature: ShortText = ""


def signed_bytes(command: Command) -> bytes:
    """Return the bytes that a signature covers: every field except the signature."""
    return command.model_dump_json(exclude={"signature"}).encode()


def sign(command: Command, key: bytes) -> str:
    """Return the HMAC-SHA256 of the command's signed bytes, in hex. Source: RFC 2104."""
    return signature_of(signed_bytes(command), key)


def signature_of(signed: bytes, key: bytes) -> str:
    """Return the HMAC-SHA256 of signed bytes, in hex."""
    return hmac.digest(key, signed, "sha256").hex()
