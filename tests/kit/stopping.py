"""Runs that are drained at a fence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esper import resume, run
from esper.config.joined import RunConfig
from esper.errors import Drained
from esper.task import Task
from esper.testing import StopAt


def stop(fence: int, task: Task, config: RunConfig, **how: Any) -> None:
    """Begin a run, and drain it at a fence."""
    watch = StopAt(fence)
    with pytest.raises(Drained) as drained:
        run(task, config, drain=watch.drain, progress=watch, **how)
    assert drained.value.fence == fence


def stop_again(fence: int, path: Path, *task: Task, **how: Any) -> None:
    """Resume a run, and drain it at a later fence."""
    watch = StopAt(fence)
    with pytest.raises(Drained) as drained:
        resume(path, *task, drain=watch.drain, progress=watch, **how)
    assert drained.value.fence == fence
