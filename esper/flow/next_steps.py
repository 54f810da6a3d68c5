"""The next step of a user after a failure, by the class of the error.

The table names `esper resume` only if a resume would not fail in the same way.
"""

from __future__ import annotations

import errno
import shlex
from pathlib import Path

from esper import errors
from esper.durable.files import FULL
from esper.errors import EsperError, causes

RESUME = "esper resume {run}"
TRACE = "esper trace show {{run}} {trace_id}"

TAKEN = frozenset({errno.ENOENT, errno.ESTALE})
"""Error numbers of a file or folder that was removed or replaced."""

CLOCK = frozenset({"stale", "future"})
"""Reasons of a refused command that are due to a clock that jumped, or to a machine that was suspended."""

STEPS: tuple[tuple[type[BaseException], str], ...] = (
    (errors.RunDirectoryError, "make the directory usable, then esper resume {run}"),
    (errors.ConfigError, "mend the task or the config and begin a new run; this one would fail in the same way"),
    (errors.DependencyViolationError, "mend what is named as missing and begin a new run; this one would fail again"),
    (errors.EvidenceMissing, "give the gate what it needs (see [growth]) and begin a new run"),
    (errors.IllegalTransition, "report this bug of esper with the run directory; the run would fail in the same way"),
    (errors.AdoptionMismatch, "two processes computed different bits; see docs/runbooks/gates.md, and resume the run"),
    (errors.IsolationViolation, "mend the blueprint and begin a new run; this one would fail in the same way"),
    (errors.SeedBuildFailed, "mend the blueprint and begin a new run; this one would fail in the same way"),
    (errors.PolicyFailed, "mend the policy and begin a new run; this one would fail in the same way"),
    (errors.PolicyDeadlineExceeded, "esper resume {run}; a longer deadline: --set policy.deadline_s=SECONDS"),
    (
        errors.ProcessStateChanged,
        "leave the setting alone in the task and the policy, and begin a new run; this one would fail again",
    ),
    (errors.TheirCodeRaised, "mend the task's code and begin a new run; this one would fail in the same way"),
    (
        errors.StateNotKept,
        "save the named state as docs/state.md describes, and begin a new run; this one would fail again",
    ),
    (errors.CommandRejected, "report this bug of esper with the run directory; the run would fail in the same way"),
    (errors.LossDeviceMismatch, "mend the task's model or loss and begin a new run; this one would fail again"),
    (
        errors.DivergenceUnrecoverable,
        "lower the learning rate, set run.clip_norm, or mend the loss or the data, and begin a new run; "
        "this one would fail again",
    ),
    (errors.StoreWriteFailed, "mend what the system refused, then esper resume {run}"),
    (errors.StoreCorrupt, "restore the named file from a copy (`esper snapshot` makes them)"),
    (errors.RestoreImpossible, "restore the checkpoints from a copy (`esper snapshot` makes them) or begin a new run"),
    (
        errors.StartDeadlineExceeded,
        "give the start more time: esper resume {run} --set ray.start_deadline_s=SECONDS (300, say)",
    ),
    (errors.PlacementUnavailable, "give the actors what they lack, then esper resume {run}"),
    (errors.RestartIntensityExceeded, "remove the cause of the actor's death, then esper resume {run}"),
    (errors.EmergencyStop, "once the reason is dealt with: esper resume {run}"),
    (EsperError, RESUME),
    (OSError, "mend what the message names, then esper resume {run}"),
    (MemoryError, "make memory free or give more, then esper resume {run}"),
    (Exception, "mend the task's code and begin a new run; this one would fail in the same way"),
)
"""Classes of errors with their next steps. The first class that matches is used. `{run}` becomes the run directory,
quoted for a shell."""


def next_step(error: Exception, run_dir: Path | None, trace_id: str = "") -> str:
    """Return the next step after `error` ended a run in `run_dir`, with the command that shows the trace of the
    failure.

    Args:
        run_dir: None: the run had not begun.
        trace_id: "": no trace of the failure is on disk.
    """
    if run_dir is None:
        return "mend the cause and run again"
    step = next(step for kind, step in STEPS if isinstance(error, kind))
    numbers = {one.errno for one in causes(error) if isinstance(one, OSError)}
    if isinstance(error, errors.StoreWriteFailed | OSError) and numbers & FULL:
        step = f"make room on the disk, then {RESUME}"
    elif isinstance(error, errors.StoreWriteFailed) and errno.EFBIG in numbers:
        step = f"raise the limit of file sizes (ulimit -f), then {RESUME}"
    elif isinstance(error, errors.StoreWriteFailed) and numbers & TAKEN:
        step = "put back what another program took from the run directory or changed in it, or begin a new run"
    elif isinstance(error, errors.CommandRejected) and error.reason in CLOCK:
        step = f"set the machine's clock right, then {RESUME}"
    trace = f"; to see what happened: {TRACE.format(trace_id=trace_id)}" if trace_id else ""
    return f"{step}{trace}".format(run=shlex.quote(str(run_dir)))


def resume_in_python(run_dir: Path) -> str:
    """Return how a Python program resumes a run that it began."""
    how = f"esper.resume({str(run_dir)!r}), with the same task and policy"
    return f"{how}; or {resume_command(run_dir)}, if a command began it"


def resume_command(run_dir: Path) -> str:
    """Return the command that resumes a run, quoted for a shell."""
    return RESUME.format(run=shlex.quote(str(run_dir)))
