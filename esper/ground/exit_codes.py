"""The exit codes of the command line."""

from __future__ import annotations

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
