"""Facts about this machine: its processor, on which the bits of a run depend, and which processes run."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_type() -> str:
    """The processor's model and the vector instructions that torch uses on it. Another CPU type may change results."""
    import torch  # imported here, so that a command that only looks at processes need not load torch

    told = Path("/proc/cpuinfo")  # Linux has it
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return f"{models[0] if models else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def process_began(pid: int) -> int | None:
    """Start time of a process, in clock ticks since boot. None: the process has ended, or is a zombie.

    The process id alone does not identify a process, because the system reuses ids; together with this time it does.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19]) if fields[0] != "Z" else None


def is_alive(pid: int) -> bool:
    """Whether a process runs. Works also if the system hides the files of the process in /proc from this user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return process_began(pid) is not None
