"""One Ray for all tests of actors."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_private_workers import forked_workers

import esper
from actors import remote
from actors.embedded_ray import EmbeddedRay
from actors.remote import Patience, Remote
from esper import OnRay
from esper.config.joined import RunConfig
from esper.flow.progress import Progress
from esper.flow.result import Result
from esper.task import Task
from esper.testing import tiny_config, tiny_task
from esper.user_code.process_state import process_state


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts a Ray of our own: it takes seconds and several processes."""
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and "embedded" in item.fixturenames
            and not item.get_closest_marker("smoke")
        ):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(autouse=True)
def settings_of_this_process() -> Iterator[None]:
    """What a test opens here as an actor opens it in its own process sets esper's settings for good: undone."""
    with process_state(1):
        yield


@pytest.fixture(scope="session")
def embedded(request: pytest.FixtureRequest) -> Iterator[EmbeddedRay]:
    with forked_workers(request.config), EmbeddedRay(slots=8) as ray:
        yield ray


@pytest.fixture
def head() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with its input, or with the test."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], None]:
    """Have one actor given up after 5 s without progress, once something has happened; healthy ones keep their minute.

    So no test ends an actor that is only slow because the machine is busy.
    """
    waits, waiting = Remote._wait, threading.local()

    def with_actor(name: str, once: Callable[[], object]) -> None:
        def wait(self: Remote, *what: Any) -> Any:
            waiting.name = self.name
            return waits(self, *what)

        class Impatience(Patience):
            def is_over(self, progress: int | None, now_s: float) -> bool:
                if waiting.name == name and once():
                    self._limit_s = 5.0
                return super().is_over(progress, now_s)

        monkeypatch.setattr(Remote, "_wait", wait)
        monkeypatch.setattr(remote, "Patience", Impatience)

    return with_actor


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
        config = tiny_config(run__dir=str(tmp_path / "run"), **{**deaths, **overrides})
        if faults is not None:
            config = RunConfig.model_validate({**config.model_dump(), "faults": faults})
        return esper.run(task or tiny_task(), config, on=OnRay(embedded), progress=progress)

    run.run_dir = tmp_path / "run"  # type: ignore[attr-defined]  # where it was
    return run
