"""One Ray for all tests of actors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.bootstrap import EmbeddedRay
from actors.launcher import launch
from esper.config import RunConfig
from esper.progress import Progress
from esper.summary import Result
from esper.task import Task
from esper.testing import tiny_config, tiny_task


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedRay]:
    with EmbeddedRay(slots=8) as ray:
        yield ray


@pytest.fixture
def launch_tiny(embedded: EmbeddedRay, tmp_path: Path) -> Any:
    """Runs the tiny task on actors, in `tmp_path / "run"`, with config values by dotted key.

    A death ends the run, unless it is asked for with `restarting`.
    """

    def run(
        faults: list[dict[str, Any]] | None = None,
        progress: Progress | None = None,
        *,
        restarting: bool = False,
        task: Task | None = None,
        **overrides: Any,
    ) -> Result:
        answer = "restart" if restarting else "raise"
        deaths = {"failure_policy__ActorLost": answer, "failure_policy__TrainerRankLost": answer}
        config = tiny_config(run__dir=str(tmp_path / "run"), **deaths, **overrides)
        if faults is not None:
            config = RunConfig.model_validate({**config.model_dump(), "faults": faults})
        return launch(task or tiny_task(), config, progress=progress, embedded=embedded)

    run.run_dir = tmp_path / "run"  # type: ignore[attr-defined]  # where it was
    return run
