"""What is asked of this machine: its processor, on which the bits of a run depend, and which processes still run."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_type() -> str:
    """The processor's model and the vector instructions that torch uses on it: other ones give other bits."""
    import torch  # here: a command that only looks at processes does without it

    told = Path("/proc/cpuinfo")  # Linux has it
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return f"{models[0] if models else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def process_began(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None: it has ended, or its parent has yet to collect it.

    The id and this moment together name one process for ever: the system gives an id again.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19]) if fields[0] != "Z" else None


def is_alive(pid: int) -> bool:
    """True while a process runs, also one of another user whose files in /proc are hidden from this one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return process_began(pid) is not None
