"""The tasks of the zoo by name, and the config that they run with. It tests nothing."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path
from typing import Any

from esper.config.joined import RunConfig
from esper.testing import tiny_config

HERE = Path(__file__).parent
REFUSED: dict[str, Any] = runpy.run_path(str(HERE / "tasks_refused.py"))["REFUSED"]
"""By name: the task, and a pattern of what its refusal says."""


def _running() -> dict[str, str]:
    found = {}
    for file in sorted(HERE.glob("tasks_*.py")):
        for name, value in runpy.run_path(str(file)).items():
            if inspect.isfunction(value) and not name.startswith("_") and value.__annotations__ == {"return": "Task"}:
                found[name] = f"{file}:{name}"
    return {name: place for name, place in found.items() if name not in REFUSED}


RUNNING = _running()
"""By name: the reference of every task that must run."""


def config(path: Path, **overrides: Any) -> RunConfig:
    """Short rounds, and gates that let most seeds pass: what is resumed shall have seeds in it."""
    return tiny_config(
        run__dir=str(path),
        growth__min_samples=8,
        growth__judge_samples=24,
        growth__ramp_steps=4,
        growth__halving_step=2,
        growth__probation_rounds=1,
        growth__candidates=3,
        growth__margin=1e-9,
        growth__false_pass=0.99,
        growth__max_tests=1,
        **overrides,
    )
