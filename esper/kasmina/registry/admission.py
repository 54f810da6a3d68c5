"""Admission of commands: refuses a command that is not authentic, fresh, complete and possible. It changes no state.

Only `admit` makes an `AdmittedCommand`; `readmitted` makes it again from a checkpoint. The object itself is the proof
of admission, so it never leaves Kasmina's process.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from datetime import datetime

from esper.errors import CommandRejected, DependencyViolationError, EsperError, StageConflict
from esper.leyline.commands import MAX_MESH_LAYERS, BlendMode, Command, Operation, sign, signed_bytes
from esper.leyline.stages import IN_HOST, LIVE, Stage
from esper.telemetry.context import span
from esper.telemetry.events import Severity, reported
from esper.telemetry.metrics import count

STALE_S = 60.0
"""Largest age of a command, in seconds by its `issued_at`."""
FUTURE_S = 5.0
"""Largest lead of `issued_at` over this process's clock, in seconds."""

ALLOWED: dict[Operation, tuple[Stage, ...]] = {
    Operation.ADVANCE: (Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING),
    Operation.FOSSILIZE: (Stage.PROBATIONARY,),
    Operation.CULL: (Stage.TRAINING, *LIVE),
}
"""The stages of a seed in which an operation on it is allowed."""

USED: dict[Operation, frozenset[str]] = {
    Operation.GERMINATE: frozenset({"candidates", "replica_of"}),
    Operation.ADVANCE: frozenset({"seed_id"}),
    Operation.FOSSILIZE: frozenset({"seed_id"}),
    Operation.CULL: frozenset({"seed_id"}),
}
"""The fields of `OPTIONAL` that each operation uses. ADVANCE out of TRAINING (into the host) also uses `blend`."""

OPTIONAL = frozenset({"seed_id", "candidates", "replica_of", "blend", "confidence_logits"})
"""Fields of a command that may stay at their default. A field that the operation does not use must stay so."""
_DEFAULTS = {name: Command.model_fields[name].default for name in OPTIONAL}

_SEAL = object()


@dataclass(frozen=True)
class AdmittedCommand:
    """A command that `admit` accepted, in this process or before a restore."""

    command: Command
    seal: InitVar[object]  # not a field: `dataclasses.replace` could copy it to another command

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("only esper.kasmina.registry.admission.admit makes an AdmittedCommand")


@dataclass(frozen=True)
class Ledger:
    """The facts about earlier commands and seeds that admission needs; a view, not a copy."""

    run_id: str
    generation: int
    nonces: Mapping[str, str]
    """Command id by nonce, of every admitted command but those of an older generation that were never carried out."""
    bodies: Mapping[str, bytes]
    """Signed bytes by command id, of the same commands."""
    stages: Mapping[str, Stage]
    pairs: Mapping[str, tuple[str, str]]
    """(slot, blueprint) by seed id, of every seed in `stages`."""
    slots: frozenset[str]
    order_in_flight: str | None
    """Id of the GERMINATE command whose tournament is running. None: no tournament is running."""


def admit(command: Command, ledger: Ledger, *, key: bytes, now: datetime) -> AdmittedCommand:
    """Accept a command, or refuse it.

    A replay (a known id with the same signed bytes) in the same generation is accepted without the further checks: the
    caller returns the recorded answer.


    Raises:
        CommandRejected: not authentic, not fresh, a known nonce or id with another body, or of another run or
            generation.
        StageConflict: the operation is not allowed in the seed's stage.
        DependencyViolationError: a required id, mesh, blend or number is missing or malformed, or the command has a
            field that its operation does not use.
    """
    with span("command admit", role="kasmina", command_id=command.command_id, operation=str(command.operation)):
        try:
            _authentic(command, key)
            known = ledger.bodies.get(command.command_id) == signed_bytes(command)
            if not known or command.generation != ledger.generation:
                _fresh(command, ledger, now)
                _complete(command, ledger)
                _possible(command, ledger)
                _nothing_unused(command, ledger)
        except EsperError as refusal:
            _report(refusal, command)
            raise
        count("esper.command.admissions", duplicate=known)
        return AdmittedCommand(command, _SEAL)


def readmitted(command: Command) -> AdmittedCommand:
    """Return a command from a checkpoint as admitted. The caller has verified the checkpoint's checksum.

    No check is repeated: the signature was checked at the admission, and cannot be checked now because a resumed run
    has another key. This gives an attacker no way in: a replay is answered only after its own signature was checked,
    and in a newer generation the command is never carried out. It only makes another command of the same id be refused.
    """
    return AdmittedCommand(command, _SEAL)


def check_generation(admitted: AdmittedCommand, generation: int) -> Command:
    """Return the admitted command, if it is of this generation.

    Raises:
        CommandRejected: the command is of another generation.
    """
    command = admitted.command
    if command.generation != generation:
        refusal = _old_generation(command, generation)
        _report(refusal, command)
        raise refusal
    return command


def _old_generation(command: Command, generation: int) -> CommandRejected:
    return CommandRejected("old_generation", command.command_id, f"{command.generation}, here {generation}")


def _authentic(command: Command, key: bytes) -> None:
    if not command.signature:
        raise CommandRejected("signature_missing", command.command_id)
    # Bytes, because compare_digest raises TypeError for text that is not ASCII.
    if not hmac.compare_digest(command.signature.encode(), sign(command, key).encode()):
        raise CommandRejected("signature_invalid", command.command_id)


def _fresh(command: Command, ledger: Ledger, now: datetime) -> None:
    if command.run_id and command.run_id != ledger.run_id:
        raise CommandRejected("wrong_run", command.command_id, f"{command.run_id}, here {ledger.run_id}")
    if command.generation != ledger.generation:
        raise _old_generation(command, ledger.generation)
    age_s = (now - command.issued_at).total_seconds()
    if command.nonce in ledger.nonces:
        raise CommandRejected("nonce_replayed", command.command_id, f"first seen with {ledger.nonces[command.nonce]}")
    if command.command_id in ledger.bodies:
        raise CommandRejected("nonce_replayed", command.command_id, "another body under a known id")
    if age_s > STALE_S:
        raise CommandRejected("stale", command.command_id, f"issued {age_s:.10g} s ago, limit {STALE_S:.0f} s")
    if age_s < -FUTURE_S:
        raise CommandRejected("future", command.command_id, f"issued {-age_s:.10g} s ahead, limit {FUTURE_S:.0f} s")


def _complete(command: Command, ledger: Ledger) -> None:
    what = f"command {command.command_id or '?'}"
    _require(_not_blank(command.command_id), what, "command id missing")
    _require(_not_blank(command.run_id), what, "run id missing")
    _require(_not_blank(command.nonce), what, "nonce missing")
    _require(_not_blank(command.issued_by), what, "issuer missing")
    _require(_not_blank(command.policy_version), what, "policy version missing")
    _require(all(map(math.isfinite, command.confidence_logits)), what, "confidence_logits not finite")
    if command.operation is Operation.GERMINATE:
        _require(bool(command.candidates), what, "candidates missing")
        for candidate in command.candidates:
            _require(_not_blank(candidate.seed_id), what, "seed id missing")
            _require(_not_blank(candidate.blueprint_id), what, "blueprint id missing")
            _require(_not_blank(candidate.slot), what, "slot id missing")
            _require(candidate.slot in ledger.slots, what, "slot not known", candidate.slot)
        ids = [candidate.seed_id for candidate in command.candidates]
        _require(len(set(ids)) == len(ids), what, "seed id repeated")
        if command.replica_of is not None:
            _require(len(ids) == 1, what, "a replica is one candidate", f"{len(ids)} given")
            _require(command.replica_of in ledger.stages, what, "the seed to repeat is not known", command.replica_of)
            pair = (command.candidates[0].slot, command.candidates[0].blueprint_id)
            _require(ledger.pairs[command.replica_of] == pair, what, "a replica of another pair", "/".join(pair))
    else:
        _require(_not_blank(command.seed_id), what, "seed id missing")
        _require(command.seed_id in ledger.stages, what, "seed not known", command.seed_id)
    _mesh(command, what)
    if command.blend is not None or _blends(command, ledger):
        _blend(command, what)


def _nothing_unused(command: Command, ledger: Ledger) -> None:
    """Refuse a field that the operation does not use: it would be ignored, so the issuer meant something else."""
    used = USED[command.operation] | ({"blend"} if _blends(command, ledger) else set())
    unused = [name for name in sorted(OPTIONAL - used) if getattr(command, name) != _DEFAULTS[name]]
    _require(not unused, f"command {command.command_id}", f"{', '.join(unused)} given, not used by {command.operation}")


def _blends(command: Command, ledger: Ledger) -> bool:
    return command.operation is Operation.ADVANCE and ledger.stages[command.seed_id] is Stage.TRAINING


def _mesh(command: Command, what: str) -> None:
    mesh = command.mesh_host_layers
    _require(bool(mesh), what, "mesh_host_layers missing")
    _require(all(map(_not_blank, mesh)), what, "mesh_host_layers has an empty name")
    _require(len(set(mesh)) == len(mesh), what, "mesh_host_layers repeats a layer")
    _require(len(mesh) <= MAX_MESH_LAYERS, what, "mesh_host_layers too long", f"{len(mesh)} over {MAX_MESH_LAYERS}")


def _blend(command: Command, what: str) -> None:
    _require(command.blend is not None, what, "blend spec missing")
    assert command.blend is not None
    target = command.blend.alpha_target
    _require(command.blend.mode in BlendMode.__members__, what, "blend mode not known", command.blend.mode)
    _require(math.isfinite(target) and 0.0 <= target <= 1.0, what, "alpha_target outside [0, 1]", str(target))


def _possible(command: Command, ledger: Ledger) -> None:
    if command.operation is Operation.GERMINATE:
        known = [c.seed_id for c in command.candidates if c.seed_id in ledger.stages]
        if known:
            raise StageConflict("stage_conflict", command.command_id, f"seed {known[0]} exists already")
        if ledger.order_in_flight is not None:
            detail = f"the tournament of {ledger.order_in_flight} has not ended"
            raise StageConflict("stage_conflict", command.command_id, detail)
        if command.replica_of is not None and ledger.stages[command.replica_of] not in IN_HOST:
            detail = (
                f"seed {command.replica_of} is {ledger.stages[command.replica_of]}: only an accepted one is repeated"
            )
            raise StageConflict("stage_conflict", command.command_id, detail)
        return
    current = ledger.stages[command.seed_id]
    if current not in ALLOWED[command.operation]:
        detail = f"seed {command.seed_id}: {command.operation} from {current} is not allowed"
        raise StageConflict("stage_conflict", command.command_id, detail)


def _not_blank(text: str) -> bool:
    return bool(text.strip())


def _require(holds: bool, what: str, missing: str, detail: str = "") -> None:
    if not holds:
        raise DependencyViolationError(what, missing, detail)


def _report(refusal: EsperError, command: Command) -> None:
    """Report a refusal before it is raised: one severe event and one count."""
    if isinstance(refusal, CommandRejected):
        severity = Severity.ERROR if isinstance(refusal, StageConflict) else Severity.CRITICAL
        reported(refusal, "command_rejected", severity, command_id=command.command_id, reason=refusal.reason)
        count("esper.command.rejections", reason=refusal.reason)
    elif isinstance(refusal, DependencyViolationError):
        named = {"command_id": command.command_id, "missing": refusal.missing}
        reported(refusal, "command_validation_failed", Severity.ERROR, **named)
        count("esper.command.rejections", reason=refusal.missing)
