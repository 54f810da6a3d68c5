"""The exit codes of the command line."""

from __future__ import annotations

DONE = 0
CHECK_FAILED = 1
"""A check failed: the command worked, and what it examined is not in order."""
WRONG_INPUT = 2
STRICT_FAILURE = 3
"""A run failed, or a command whose only product is its output could not write to standard output."""
EMERGENCY = 4
"""An emergency signal stopped the run."""
INTERRUPTED = 128 + 2
"""By SIGINT."""
DRAINED = 128 + 15
"""SIGTERM or SIGHUP ended the run at a fence."""
