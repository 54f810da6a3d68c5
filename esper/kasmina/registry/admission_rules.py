"""The rules of admission.

A rule has the stages in which an operation is allowed, the fields that it uses, and checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from esper.errors import DependencyViolationError, StageConflict
from esper.kasmina.host.blending import check_blend
from esper.kasmina.registry.ledger import Ledger
from esper.leyline.commands import MAX_MESH_LAYERS, MAX_RATE_SCALE, BlendSpec, Command, CommandKind, Operation
from esper.leyline.stages import IN_HOST, LIVE, Stage

Requirement = Callable[[Command, Ledger], None]
"""Function that raises if the command cannot be admitted."""
When = Callable[[Command, Ledger], bool]
"""Function that returns whether the operation uses a field. It is called after the operation's `complete` checks."""


@dataclass(frozen=True)
class Rule:
    """The rule for the commands of one operation."""

    uses: Mapping[str, When]
    """Field of `OPTIONAL` -> condition on which the operation uses the field. A field of `OPTIONAL` that is not used
    must have its default."""
    complete: tuple[Requirement, ...]
    """Checks. Each raises a DependencyViolationError if a field is missing or malformed."""
    possible: tuple[Requirement, ...]
    """Checks that come last. Each raises a StageConflict if the registry does not allow the operation now."""
    kind: CommandKind = CommandKind.SEED
    stages: tuple[Stage, ...] = ()
    """Stages of the seed `seed_id` in which the operation is allowed. Empty if the operation names no existing seed."""


# -- when a field is used ----------------------------------------------------------------------------------------


def always(command: Command, ledger: Ledger) -> bool:
    """Return True, because the operation always uses the field."""
    del command, ledger
    return True


def into_host(command: Command, ledger: Ledger) -> bool:
    """Return whether the command grafts the seed into the host. If it does, it uses the field."""
    return command.operation is Operation.ADVANCE and ledger.stages[command.seed_id] is Stage.TRAINING


def with_logits(command: Command, ledger: Ledger) -> bool:
    """Return whether the blend of the command's seeds needs the policy's logits. If it does, the field is used."""
    blend = _blend_of(command, ledger)
    return blend is not None and blend.uses_logits


# -- complete: DependencyViolationError --------------------------------------------------------------------------


def check_ids(command: Command, ledger: Ledger) -> None:
    """Check the fields that every command needs."""
    del ledger
    require(_not_blank(command.command_id), command, "command id missing")
    require(_not_blank(command.run_id), command, "run id missing")
    require(_not_blank(command.nonce), command, "nonce missing")
    require(_not_blank(command.issued_by), command, "issuer missing")
    require(_not_blank(command.policy_version), command, "policy version missing")
    require(all(map(math.isfinite, command.confidence_logits)), command, "confidence_logits not finite")


def _kind(command: Command, ledger: Ledger) -> None:
    del ledger
    kind = RULES[command.operation].kind
    require(command.kind is kind, command, "kind of another operation", f"{command.operation} is of kind {kind}")


def _candidates(command: Command, ledger: Ledger) -> None:
    require(bool(command.candidates), command, "candidates missing")
    for candidate in command.candidates:
        require(_not_blank(candidate.seed_id), command, "seed id missing")
        require(_not_blank(candidate.blueprint_id), command, "blueprint id missing")
        require(_not_blank(candidate.slot), command, "slot id missing")
        require(candidate.slot in ledger.slots, command, "slot not known", candidate.slot)
    ids = [candidate.seed_id for candidate in command.candidates]
    require(len(set(ids)) == len(ids), command, "seed id repeated")


def _replica(command: Command, ledger: Ledger) -> None:
    if command.replica_of is None:
        return
    require(len(command.candidates) == 1, command, "a replica is one candidate", f"{len(command.candidates)} given")
    require(command.replica_of in ledger.stages, command, "the seed to repeat is not known", command.replica_of)
    pair = (command.candidates[0].slot, command.candidates[0].blueprint_id)
    require(ledger.pairs[command.replica_of] == pair, command, "a replica of another pair", "/".join(pair))


def _seed(command: Command, ledger: Ledger) -> None:
    require(_not_blank(command.seed_id), command, "seed id missing")
    require(command.seed_id in ledger.stages, command, "seed not known", command.seed_id)


def _mesh(command: Command, ledger: Ledger) -> None:
    del ledger
    mesh = command.mesh_host_layers
    require(bool(mesh), command, "mesh_host_layers missing")
    require(all(map(_not_blank, mesh)), command, "mesh_host_layers has an empty name")
    require(len(set(mesh)) == len(mesh), command, "mesh_host_layers repeats a layer")
    require(len(mesh) <= MAX_MESH_LAYERS, command, "mesh_host_layers too long", f"{len(mesh)} over {MAX_MESH_LAYERS}")


def _blend(command: Command, ledger: Ledger) -> None:
    """Check the blend of the command's seeds and the logits that it needs."""
    births = command.operation is Operation.GERMINATE
    require(command.blend is not None or not (births or into_host(command, ledger)), command, "blend spec missing")
    slots = [candidate.slot for candidate in command.candidates] if births else [ledger.pairs[command.seed_id][0]]
    if (blend := _blend_of(command, ledger)) is not None:
        named = f"command {command.command_id}"
        check_blend(blend, [ledger.slots[slot] for slot in slots], command.confidence_logits, named)


def _same_blend(command: Command, ledger: Ledger) -> None:
    """Check that a seed, or a replica of it, gets the blend with which the seed was germinated."""
    seed_id = command.replica_of if command.operation is Operation.GERMINATE else command.seed_id
    if seed_id is None or not (command.operation is Operation.GERMINATE or into_host(command, ledger)):
        return
    own = ledger.blends[seed_id]
    require(own in (None, command.blend), command, "another blend than the seed's own", f"{seed_id} has {own}")


def _blend_of(command: Command, ledger: Ledger) -> BlendSpec | None:
    """Return the blend of the command's seeds. None: neither the seed nor the command has a blend."""
    if command.operation is Operation.GERMINATE or into_host(command, ledger):
        return command.blend
    return ledger.blends[command.seed_id]


def _rate_scale(command: Command, ledger: Ledger) -> None:
    del ledger
    scale = command.rate_scale
    require(scale is not None, command, "rate_scale missing")
    assert scale is not None
    sound = math.isfinite(scale) and 0.0 <= scale <= MAX_RATE_SCALE
    require(sound, command, f"rate_scale outside [0, {MAX_RATE_SCALE:g}]", str(scale))


def _to_fence(command: Command, ledger: Ledger) -> None:
    del ledger
    require(command.to_fence is not None, command, "to_fence missing")


# -- possible: StageConflict -------------------------------------------------------------------------------------


def _new_seeds(command: Command, ledger: Ledger) -> None:
    known = [candidate.seed_id for candidate in command.candidates if candidate.seed_id in ledger.stages]
    if known:
        raise conflict(command, f"seed {known[0]} exists already")


def _open_slots(command: Command, ledger: Ledger) -> None:
    closed = [candidate.slot for candidate in command.candidates if candidate.slot in ledger.closed]
    if closed:
        raise conflict(command, f"slot {closed[0]} takes no further seed: the reset of an earlier one failed there")


def _no_tournament(command: Command, ledger: Ledger) -> None:
    if ledger.order_in_flight is not None:
        raise conflict(command, f"the tournament of {ledger.order_in_flight} has not ended")


def _accepted_original(command: Command, ledger: Ledger) -> None:
    if command.replica_of is not None and ledger.stages[command.replica_of] not in IN_HOST:
        stage = ledger.stages[command.replica_of]
        raise conflict(command, f"seed {command.replica_of} is {stage}: only an accepted seed is repeated")


def _stage(command: Command, ledger: Ledger) -> None:
    current = ledger.stages[command.seed_id]
    if current not in RULES[command.operation].stages:
        raise conflict(command, f"seed {command.seed_id}: {command.operation} from {current} is not allowed")


def _not_early(command: Command, ledger: Ledger) -> None:
    earliest = ledger.earliest[command.seed_id]
    if ledger.fence < earliest:
        raise conflict(command, f"seed {command.seed_id} may pass to its next stage from fence {earliest} on")


def _checkpoint(command: Command, ledger: Ledger) -> None:
    if command.to_fence not in ledger.checkpoints:
        there = ", ".join(map(str, ledger.checkpoints)) or "none"
        asked = f"go_back_to = {command.to_fence} of policy version {command.policy_version}"
        raise conflict(command, f"{asked}: this fence has no checkpoint; give one of `state.checkpoints`: {there}")


def conflict(command: Command, detail: str) -> StageConflict:
    """Return the error for a command if the registry does not allow the command now."""
    return StageConflict("stage_conflict", command.command_id, detail)


def require(holds: bool, command: Command, missing: str, detail: str = "") -> None:
    """Check a condition. Raises: DependencyViolationError: `holds` is False."""
    if not holds:
        raise DependencyViolationError(f"command {command.command_id or '?'}", missing, detail)


def _not_blank(text: str) -> bool:
    return bool(text.strip())


# -- the table ---------------------------------------------------------------------------------------------------

RULES: Mapping[Operation, Rule] = {
    Operation.GERMINATE: Rule(
        uses={
            **dict.fromkeys(("candidates", "replica_of", "mesh_host_layers", "fallback_marks", "blend"), always),
            "confidence_logits": with_logits,
        },
        complete=(_candidates, _replica, _mesh, _blend, _same_blend),
        possible=(_new_seeds, _open_slots, _no_tournament, _accepted_original),
    ),
    Operation.ADVANCE: Rule(
        uses={
            **dict.fromkeys(("seed_id", "mesh_host_layers", "fallback_marks"), always),
            "blend": into_host,
            "confidence_logits": with_logits,
        },
        complete=(_seed, _mesh, _blend, _same_blend),
        possible=(_stage, _not_early),
        stages=(Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING),
    ),
    Operation.FOSSILIZE: Rule(
        uses={
            **dict.fromkeys(("seed_id", "mesh_host_layers", "fallback_marks"), always),
            "confidence_logits": with_logits,
        },
        complete=(_seed, _mesh, _blend),
        possible=(_stage, _not_early),
        stages=(Stage.PROBATIONARY,),
    ),
    Operation.CULL: Rule(
        uses=dict.fromkeys(("seed_id", "mesh_host_layers"), always),
        complete=(_seed, _mesh),
        possible=(_stage,),
        stages=(Stage.TRAINING, *LIVE),
    ),
    Operation.SCALE_RATE: Rule(
        uses=dict.fromkeys(("seed_id", "rate_scale"), always),
        complete=(_seed, _rate_scale),
        possible=(_stage,),
        kind=CommandKind.OPTIMIZER,
        stages=(*LIVE, Stage.FOSSILIZED),
    ),
    Operation.GO_BACK: Rule(
        uses={"to_fence": always},
        complete=(_to_fence,),
        possible=(_checkpoint,),
        kind=CommandKind.ROLLBACK,
    ),
}

OPTIONAL = frozenset(
    {
        "seed_id",
        "candidates",
        "replica_of",
        "blend",
        "confidence_logits",
        "rate_scale",
        "to_fence",
        "mesh_host_layers",
        "fallback_marks",
    }
)
"""Fields that may have their defaults in a command. If the operation does not use a field, the field must have its
default."""
_DEFAULTS = {name: Command.model_fields[name].default for name in OPTIONAL}


def check_rule(command: Command, ledger: Ledger) -> None:
    """Check a command by the rule of its operation.

    Raises:
        DependencyViolationError: a field is missing or malformed; or a field is set that the operation does not use.
            The latter shows a mistake of the issuer.
        StageConflict: the registry does not allow the operation now.
    """
    rule = RULES[command.operation]
    for check in (check_ids, _kind, *rule.complete, *rule.possible):
        check(command, ledger)
    used = {name for name, when in rule.uses.items() if when(command, ledger)}
    unused = [name for name in sorted(OPTIONAL - used) if getattr(command, name) != _DEFAULTS[name]]
    require(not unused, command, f"{', '.join(unused)} given, not used by {command.operation}")
