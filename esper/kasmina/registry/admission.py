"""Admission of commands: refuses a command unless it is authentic, fresh, complete and possible. No state changes.

Only `admit` makes an `AdmittedCommand` of a new command. After a restore, `readmitted` makes an `AdmittedCommand` of a
command in the checkpoint. An `AdmittedCommand` proves the admission, so it never leaves Kasmina's process.
"""

from __future__ import annotations

import hmac
from dataclasses import InitVar, dataclass
from datetime import datetime
from functools import cached_property

from esper.errors import CommandRejected, DependencyViolationError, EsperError, StageConflict
from esper.kasmina.registry.admission_rules import check_rule
from esper.kasmina.registry.ledger import Ledger
from esper.leyline.commands import Command, signature_of, signed_bytes
from esper.telemetry.context import span
from esper.telemetry.events import Severity, reported
from esper.telemetry.metric_table import MALFORMED
from esper.telemetry.metrics import count, timed

STALE_S = 60.0
"""Largest age of a command in seconds. The age is computed from `issued_at`."""
FUTURE_S = 5.0
"""Largest time, in seconds, by which `issued_at` may be later than this process's clock."""

_SEAL = object()


@dataclass(frozen=True)
class AdmittedCommand:
    """A command that `admit` accepted, in this process or before a restore."""

    command: Command
    seal: InitVar[object]  # not a field, because `dataclasses.replace` would copy a field to another command

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("only esper.kasmina.registry.admission.admit makes an AdmittedCommand")

    @cached_property
    def signed(self) -> bytes:
        """The signed bytes of the command. They are made once, because each later admission compares them."""
        return signed_bytes(self.command)


def admit(command: Command, ledger: Ledger, *, key: bytes, now: datetime) -> AdmittedCommand:
    """Admit a command, or raise the reason of its refusal.

    A replay is a command with a known id and the same signed bytes. If its generation is the present generation, only
    its signature is checked, and the caller returns the recorded answer.

    Raises:
        CommandRejected: the command is not authentic or not fresh, another command has the same nonce or id, or the
            command is of another run or generation.
        StageConflict: the operation is not allowed in the seed's stage.
        DependencyViolationError: a required id, mesh, blend or number is missing or malformed, or the command has a
            field that its operation does not use.
    """
    with (
        timed("esper.admission.duration"),
        span(
            "command admit",
            role="kasmina",
            links_to=(command.traceparent,),
            command_id=command.command_id,
            operation=str(command.operation),
        ),
    ):
        try:
            signed = signed_bytes(command)
            _authentic(command, signed, key)
            known = ledger.bodies.get(command.command_id) == signed
            if not known or command.generation != ledger.generation:
                _fresh(command, ledger, now)
                check_rule(command, ledger)
        except EsperError as refusal:
            _report(refusal, command)
            raise
        count("esper.command.admissions", duplicate=known)
        return AdmittedCommand(command, _SEAL)


def readmitted(command: Command) -> AdmittedCommand:
    """Return a command from a checkpoint as admitted. The caller must have verified the checkpoint's checksum.

    No check is repeated. The signature was checked at the first admission. The signature cannot be checked now, because
    a resumed run has a new key. This is safe, because a replay is answered only after its signature was checked, and
    because a command of an older generation is never carried out. The only effect of the command is that another
    command with the same id is refused.
    """
    return AdmittedCommand(command, _SEAL)


def check_generation(admitted: AdmittedCommand, generation: int) -> Command:
    """Return the admitted command if it is of this generation.

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


def _authentic(command: Command, signed: bytes, key: bytes) -> None:
    if not command.signature:
        raise CommandRejected("signature_missing", command.command_id)
    # Bytes, because compare_digest raises TypeError for text that is not ASCII.
    if not hmac.compare_digest(command.signature.encode(), signature_of(signed, key).encode()):
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


def _report(refusal: EsperError, command: Command) -> None:
    """Report and count a refusal before it is raised."""
    if isinstance(refusal, CommandRejected):
        severity = Severity.ERROR if isinstance(refusal, StageConflict) else Severity.CRITICAL
        reported(refusal, "command_rejected", severity, command_id=command.command_id, reason=refusal.reason)
        count("esper.command.rejections", reason=refusal.reason)
    elif isinstance(refusal, DependencyViolationError):
        named = {"command_id": command.command_id, "missing": refusal.missing}
        reported(refusal, "command_validation_failed", Severity.ERROR, **named)
        count("esper.command.rejections", reason=MALFORMED)
