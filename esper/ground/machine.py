"""Facts about this machine: its type of processor, on which the bits of a run depend, and its processes."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_type() -> str:
    """Return the model of the processor and the vector instructions that torch uses on it. Another CPU type may change
    results."""
    import torch  # imported here, so that code that only looks at processes does not load torch

    told = Path("/proc/cpuinfo")  # this file exists on Linux
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return f"{models[0] if models else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def process_began(pid: int) -> int | None:
    """Return the start time of a process, in clock ticks since boot. None: the process has ended, or is a zombie.

    The id and the start time together identify a process. The id is not enough, because the system reuses ids.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19]) if fields[0] != "Z" else None


def is_alive(pid: int) -> bool:
    """Return whether a process runs. The result is right even if the system hides the process's files in /proc from
    this user.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process belongs to another user
        return True
    return process_began(pid) is not None
