"""Everything of Ray that Ray does not promise: private names and environment variables. No other file names any.

Each is here with the reason why nothing public does. Where a newer Ray has changed, `tests/actors/test_ray_private.py`
says what broke.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ray import _raylet
from ray._private import services, state, utils, worker
from ray.actor import ActorHandle
from ray.job_config import JobConfig

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # an embedded Ray listens on the machine's own address
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "0",
    "RAY_worker_niceness": "0",  # by default 15: any other program on the machine would starve the trainer
}
"""Variables that every process of our Ray has: its defaults differ by environment."""
TOKEN = "RAY_AUTH_TOKEN"
"""Variable with the word that lets a process in."""
SERVER_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Variable: how long Ray's core looks for a control store that does not answer. Then it ends this process, from C++."""
NO_END_S = 1_000_000
"""Eleven days; as milliseconds it still fits Ray's 32 bits."""

HEADS = ("gcs_server", "raylet")
"""Ray's names of its processes without which nothing goes on: the control store and the raylet."""
ASK_AGAIN_S = 0.1


class Watcher(Protocol):
    """Who looks after Ray's processes while Ray starts. Called in the thread of the start."""

    def add(self, name: str, pid: int) -> None:
        """Ray has started a process of its own."""

    def check(self) -> None:
        """Raises: Exception: a process without which nothing goes on has ended."""


class OwnPath(JobConfig):
    """Workers start with this import path, and with no folder that Ray adds.

    Ray puts the working directory and the script's folder in front of every worker's import path. Modules of a project
    that are named as ours would be found there instead of ours. No public argument prevents that.
    """

    def __init__(self, path: list[str]) -> None:
        super().__init__(_py_driver_sys_path=path)

    def _runtime_env_has_working_dir(self) -> bool:
        """Ray adds neither folder for a job that has one, and asks this for nothing else."""
        return True


def read_environment_again() -> None:
    """Have Ray read its environment: it did so when it was imported, which was before anybody said what holds."""
    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def place_of(folder: Path) -> dict[str, Any]:  # Any: beside it stand arguments of other types
    """The argument of `ray.init` that says where its files lie; the public way is one folder for all Rays of a user."""
    return {"_temp_dir": str(folder)}


def folder_of_logs() -> Path:
    """Where the Ray that runs has the output of its processes: what an actor wrote last is read there."""
    return Path(worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]  # a Node by now


def record_of(actor: ActorHandle[Any]) -> Mapping[str, Any]:  # Any: Ray leaves it untyped
    """What Ray knows of an actor: `Pid`, 0 until it has a process; `EndTime` in ms, 0 until it has ended.

    The public `ray.util.state` asks the dashboard for it, which our Ray does not have.
    """
    told: Mapping[str, Any] = state.actors(actor._actor_id.hex())
    return told


def printing() -> Callable[..., None]:
    """The function by which Ray prints what its processes say; `log_to_driver=False` leaves the raylet's own words."""
    return worker.print_to_stdstream


def set_printing(write: Callable[..., None]) -> None:
    """Have Ray call `write(data, ignore_prefix)` instead of its own function; the lines are `data["lines"]`."""
    worker.print_to_stdstream = write


@contextmanager
def guarded_start(watcher: Watcher, limit_s: float) -> Iterator[None]:
    """Within the block, which calls `ray.init`, the watcher knows of every process of Ray, and Ray waits for us.

    Ray itself would wait 30 s for its raylet, too short on a loaded machine and too long after its death, and would end
    this process 60 s after the death of its control store. Here a wait lasts until the watcher or the caller ends it.
    Once Ray begins to connect this process, Ray's own limits hold again: it holds the interpreter's lock then, so that
    nobody could end a wait without end.

    Args:
        limit_s: Until when Ray asks for its raylet, on the monotonic clock.
    """
    start_process, get_node, handler = services.start_ray_process, services.get_node, utils.set_sigterm_handler
    connect: Callable[..., object] = _raylet.CoreWorker  # type: ignore[attr-defined]

    def add(command: Any, process_type: str, *rest: Any, **named: Any) -> Any:  # Any: Ray's
        made = start_process(command, process_type, *rest, **named)
        watcher.add(process_type, made.process.pid)
        return made

    def ask(*which: Any) -> Any:  # Any: Ray's
        while True:
            try:
                return get_node(*which)  # type: ignore[no-untyped-call]
            except RuntimeError:  # the raylet has not told its server of itself yet
                watcher.check()
                if time.monotonic() > limit_s:
                    raise
                time.sleep(ASK_AGAIN_S)

    def join(*arguments: Any, **named: Any) -> object:  # Any: Ray's
        watcher.check()
        read_environment_again()
        return connect(*arguments, **named)

    services.start_ray_process, services.get_node = add, ask
    utils.set_sigterm_handler = lambda _: None  # Ray's own would leave by `sys.exit`, with nothing said
    _raylet.CoreWorker = join  # type: ignore[attr-defined]
    _look_for_the_server(NO_END_S)
    try:
        yield
    except BaseException:  # Ray may have failed before it connected this process
        read_environment_again()
        raise
    finally:
        services.start_ray_process, services.get_node, utils.set_sigterm_handler = start_process, get_node, handler
        _raylet.CoreWorker = connect  # type: ignore[attr-defined]


def _look_for_the_server(patience_s: int) -> None:
    """Set the patience of this process alone: Ray's processes, which inherit the environment, are not affected."""
    before = os.environ.get(SERVER_PATIENCE)
    os.environ[SERVER_PATIENCE] = str(patience_s)
    try:
        read_environment_again()
    finally:
        if before is None:
            del os.environ[SERVER_PATIENCE]
        else:
            os.environ[SERVER_PATIENCE] = before
