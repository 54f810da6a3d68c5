"""Makes each Ray that this process starts fork its Python workers, so that each imports torch and esper in no time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import ray
from ray._private import services

from actors.actor_process import actor_environment
from actors.temporary_folders import TEMPORARY

SCRIPT = Path(__file__).parents[1] / "data" / "forking_workers.py"
OWN_WORKER = str(Path(ray.__file__).parent / "_private" / "workers" / "default_worker.py")


@contextmanager
def forked_workers(config: pytest.Config) -> Iterator[None]:
    """Context for the whole life of a Ray. `--new-workers` makes it do nothing.

    The process that forks has one thread and has computed nothing.
    """
    if config.getoption("--new-workers"):
        yield
        return
    start = services.start_ray_process

    def instead(command: list[str], kind: str, *how: Any, **named: Any) -> Any:
        ours = [word.replace(OWN_WORKER, f"{SCRIPT} {path}") for word in command]
        assert ours != command or kind != "raylet", f"Ray's raylet does not start {OWN_WORKER}"
        return start(ours, kind, *how, **named)

    with (
        TemporaryDirectory(prefix="workers-", dir=TEMPORARY) as folder,  # a path that is short enough for a socket
        subprocess.Popen(
            [sys.executable, str(SCRIPT), "serve", path := f"{folder}/socket"],
            env={**os.environ, **actor_environment(1)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as forking,
        pytest.MonkeyPatch.context() as patch,
    ):
        assert forking.stdout is not None
        assert forking.stdout.readline() == b"up\n"
        patch.setattr(services, "start_ray_process", instead)
        yield
