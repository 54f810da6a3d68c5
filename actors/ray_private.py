"""Everything of Ray that Ray does not promise: private names and environment variables. No other file uses such a name.

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
from ray._private import node, services, state, utils, worker
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
"""Variable with the token that a process needs to connect to this Ray."""
SERVER_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Variable: how long Ray's core looks for a control store that does not answer. Then it ends this process, from C++."""
NO_END_S = 1_000_000
"""Eleven days; as milliseconds it still fits Ray's 32 bits."""

HEADS = ("gcs_server", "raylet")
"""Ray's names of its two essential processes: the control store and the raylet."""
ASK_AGAIN_S = 0.1
LOOK_ONCE_MS = 1
"""The shortest wait for a port. Ray takes 100 ms for it, during which no other thread of this process runs."""


class Watcher(Protocol):
    """Watches Ray's processes while Ray starts. Called in the thread of the start."""

    def add(self, name: str, pid: int) -> None:
        """Record a process that Ray has started."""

    def check(self) -> None:
        """Raises: Exception: an essential process of Ray has ended."""


class OwnPath(JobConfig):
    """Workers start with this import path, and with no folder that Ray adds.

    Ray puts the working directory and the script's folder in front of every worker's import path. If a project has
    modules with the names of esper's, Python would find those first. No public argument prevents that.
    """

    def __init__(self, path: list[str]) -> None:
        super().__init__(_py_driver_sys_path=path)

    def _runtime_env_has_working_dir(self) -> bool:
        """Ray adds neither folder to a job with a working directory, and calls this method only for that decision."""
        return True


def read_environment_again() -> None:
    """Make Ray read its environment again. It did so when it was imported, before esper had set its variables."""
    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def place_of(folder: Path) -> dict[str, Any]:  # Any: beside it stand arguments of other types
    """Return the argument of `ray.init` for the folder of Ray's files. The public way sets one folder for all Rays of a
    user."""
    return {"_temp_dir": str(folder)}


def folder_of_logs() -> Path:
    """Return the folder in which the running Ray stores the output of its processes, such as an actor's last output."""
    return Path(worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]  # a Node by now


def record_of(actor: ActorHandle[Any]) -> Mapping[str, Any]:  # Any: Ray leaves it untyped
    """Return Ray's record of an actor: `Pid`, 0 until it has a process; `EndTime` in ms, 0 until it has ended.

    The public `ray.util.state` asks the dashboard for it, which the embedded Ray does not start.
    """
    told: Mapping[str, Any] = state.actors(actor._actor_id.hex())
    return told


def printing() -> Callable[..., None]:
    """Return the function with which Ray prints the output of its processes. `log_to_driver=False` would not stop the
    raylet's output."""
    return worker.print_to_stdstream


def set_printing(write: Callable[..., None]) -> None:
    """Make Ray call `write(data, ignore_prefix)` instead of its own function; the lines are `data["lines"]`."""
    worker.print_to_stdstream = write


@contextmanager
def guarded_start(watcher: Watcher, limit_s: float) -> Iterator[None]:
    """Context for a call of `ray.init`: the watcher sees every process that Ray starts, and the caller ends Ray's
    waits.

    Ray itself would wait 30 s for its raylet, too short on a loaded machine and too long after its death, and would end
    this process 60 s after the death of its control store. It would wait 30 s for the store's port with the
    interpreter's lock held. Here a wait lasts until the watcher or the caller ends it, and other threads run meanwhile.
    While Ray connects this process, Ray's own limits hold again: Ray holds the interpreter's lock then, so no Python
    code could end an endless wait.

    Args:
        limit_s: Monotonic time until which Ray asks for its control store and its raylet.
    """
    start_process, get_node, handler = services.start_ray_process, services.get_node, utils.set_sigterm_handler
    wait_for_port: Callable[..., int] = node.wait_for_persisted_port  # type: ignore[attr-defined]
    connect: Callable[..., object] = _raylet.CoreWorker  # type: ignore[attr-defined]

    def add(command: Any, process_type: str, *rest: Any, **named: Any) -> Any:  # Any: Ray's
        made = start_process(command, process_type, *rest, **named)
        watcher.add(process_type, made.process.pid)
        return made

    def look_for_port(*where: Any, **named: Any) -> int:  # Any: Ray's
        return wait_for_port(*where, **{**named, "timeout_ms": LOOK_ONCE_MS})

    def join(*arguments: Any, **named: Any) -> object:  # Any: Ray's
        watcher.check()
        read_environment_again()
        return connect(*arguments, **named)

    services.start_ray_process, services.get_node = add, _asked_until(limit_s, get_node, watcher)
    node.wait_for_persisted_port = _asked_until(limit_s, look_for_port, watcher)  # type: ignore[attr-defined]
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
        node.wait_for_persisted_port = wait_for_port  # type: ignore[attr-defined]
        _raylet.CoreWorker = connect  # type: ignore[attr-defined]


def _asked_until(limit_s: float, ask: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:  # Any: Ray's
    """Repeat `ask` while it raises that a process of Ray is not up yet, at most until `limit_s`."""

    def asked(*which: Any, **named: Any) -> Any:  # Any: Ray's
        while True:
            try:
                return ask(*which, **named)
            except RuntimeError:  # the process that is asked for is not up yet
                watcher.check()
                if time.monotonic() > limit_s:
                    raise
                time.sleep(ASK_AGAIN_S)

    return asked


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
