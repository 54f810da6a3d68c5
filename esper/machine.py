"""What the bits of a run depend on beside its own words: this machine's processor."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def cpu_type() -> str:
    """The processor's model and the vector instructions that torch uses on it: other ones give other bits."""
    told = Path("/proc/cpuinfo")  # Linux has it
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return f"{models[0] if models else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
