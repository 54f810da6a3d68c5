"""Checks that Kasmina's answer belongs to the command that was sent. Kasmina answers a replayed command once more, so
without this check a replay in place of a new command would be carried out twice.
"""

from __future__ import annotations

from esper.errors import DependencyViolationError
from esper.leyline.commands import Command
from esper.telemetry.events import Severity, reported


def check_answered(sent: Command, command_id: str | None) -> None:
    """Check the id of the command that Kasmina got.

    Raises:
        DependencyViolationError: Kasmina answered to another command. The answer must not be used.
    """
    if command_id != sent.command_id:
        error = DependencyViolationError(
            f"command {sent.command_id}", "its answer", f"Kasmina got {command_id} instead and answered that"
        )
        told = {"subject": error.subject, "missing": error.missing}
        raise reported(error, "dependency_violation", Severity.CRITICAL, **told)
