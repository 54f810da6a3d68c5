"""The exit codes of the command line."""

from __future__ import annotations

from esper.errors import ConfigError, Drained, EmergencyStop

DONE = 0
CHECK_FAILED = 1
"""The command made its check, and the check failed."""
WRONG_INPUT = 2
STRICT_FAILURE = 3
"""A run failed, or a command that only prints could not write its output."""
EMERGENCY = 4
"""An emergency signal stopped the run."""
INTERRUPTED = 128 + 2
"""SIGINT interrupted the command."""
DRAINED = 128 + 15
"""SIGTERM or SIGHUP ended the run at a fence."""


def code_of(error: BaseException) -> int:
    """Return the exit code of the command line for a run that ended with this error."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, EmergencyStop):
        return EMERGENCY
    if isinstance(error, ConfigError):
        return WRONG_INPUT
    return DRAINED if isinstance(error, Drained) else STRICT_FAILURE
