"""All uses of private names and environment variables of Ray. No other file uses them.

The docstrings say why a public name is not enough. `tests/actors/test_ray_private.py` fails if a newer Ray has changed
a name.
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
    "RAY_py_gcs_connect_timeout_s": "120",  # not 30, because `ray.start_deadline_s` ends a slow start
    "RAY_worker_niceness": "0",  # the default, 15, would let other programs slow down the trainer
}
"""Variables of every process of an embedded Ray. They are set because Ray's defaults depend on the environment."""
TOKEN = "RAY_AUTH_TOKEN"
"""Name of the variable with the token that a process needs to connect to an embedded Ray."""
SERVER_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Name of the variable that sets how many seconds Ray's core waits for its control store. After this time Ray's core
ends the process, in C++."""
NO_END_S = 1_000_000
"""A number of seconds, about eleven days. As milliseconds, the number fits into Ray's 32 bits."""

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Titles of the processes of Ray's agents."""
RAYLET = "/raylet/raylet"
"""End of the path of the program that starts Ray's agents. Each agent is its child."""
HEADS = ("gcs_server", "raylet")
"""Ray's names of its two essential processes: the control store and the raylet."""
ASK_AGAIN_S = 0.1
LOOK_ONCE_MS = 1
"""The shortest possible wait for a port, in ms. Even with this value, Ray waits 100 ms. No other thread of this process
runs in that time."""


class Watcher(Protocol):
    """Watches Ray's processes while Ray starts. Its methods are called in the thread of the start."""

    def add(self, name: str, pid: int) -> None:
        """Record a process that Ray has started."""

    def check(self) -> None:
        """Check the recorded processes. Raises: Exception: an essential process of Ray has ended."""


class OwnPath(JobConfig):
    """The import path of workers, without the folders that Ray would add.

    Ray puts the working directory and the script's folder at the front of every worker's import path. If a module in
    these folders had the name of a module of esper, Python would import it instead. No public argument prevents this.
    """

    def __init__(self, path: list[str]) -> None:
        super().__init__(_py_driver_sys_path=path)

    def _runtime_env_has_working_dir(self) -> bool:
        """Return True, so that Ray does not add these folders. Ray calls this method only for this decision."""
        return True


def read_environment_again() -> None:
    """Make Ray read its environment again. When Ray was imported, it read the environment before esper set variables in
    it.
    """
    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def place_of(folder: Path) -> dict[str, Any]:  # Any: `ray.init` has arguments of other types
    """Return the argument of `ray.init` for the folder of Ray's files.

    The public setting would apply to all Ray instances of a user.
    """
    return {"_temp_dir": str(folder)}


def folder_of_logs() -> Path:
    """Return the folder in which the running Ray stores the output of its processes."""
    return Path(worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]  # a Node by now


def record_of(actor: ActorHandle[Any]) -> Mapping[str, Any]:  # Any: Ray leaves it untyped
    """Return Ray's record of an actor. `Pid` is 0 until the actor has a process. `EndTime`, in ms, is 0 until the actor
    has ended.

    The public `ray.util.state` needs the dashboard, but the embedded Ray does not start a dashboard.
    """
    told: Mapping[str, Any] = state.actors(actor._actor_id.hex())
    return told


def printing() -> Callable[..., None]:
    """Return the function with which Ray prints the output of its processes.

    `log_to_driver=False` does not stop the raylet's output.
    """
    return worker.print_to_stdstream


def set_printing(write: Callable[..., None]) -> None:
    """Make Ray call `write(data, ignore_prefix)` to print. The lines to print are `data["lines"]`."""
    worker.print_to_stdstream = write


@contextmanager
def guarded_start(watcher: Watcher, limit_s: float) -> Iterator[None]:
    """Context for a call of `ray.init`. The watcher gets every process that Ray starts, and can end Ray's waits.

    Without this context, Ray would wait 30 s for its raylet. This is too short on a busy machine, and too long if the
    raylet is dead. Ray would wait 30 s for the port of its control store, and no other Python thread could run in that
    time. Ray would end this process 60 s after the death of its control store. In this context, a wait lasts until
    `limit_s` or until the watcher raises, and other threads run meanwhile. While Ray connects this process, Ray's own
    limits apply, because no Python code could end a wait in this phase.

    Args:
        limit_s: Monotonic time until which Ray waits for its control store and its raylet.
    """
    start_process, get_node, handler = services.start_ray_process, services.get_node, utils.set_sigterm_handler
    wait_for_port: Callable[..., int] = node.wait_for_persisted_port  # type: ignore[attr-defined]
    connect: Callable[..., object] = _raylet.CoreWorker  # type: ignore[attr-defined]

    def add(command: Any, process_type: str, *rest: Any, **named: Any) -> Any:  # Any: a type of Ray
        made = start_process(command, process_type, *rest, **named)
        watcher.add(process_type, made.process.pid)
        return made

    def look_for_port(*where: Any, **named: Any) -> int:  # Any: a type of Ray
        return wait_for_port(*where, **{**named, "timeout_ms": LOOK_ONCE_MS})

    def join(*arguments: Any, **named: Any) -> object:  # Any: a type of Ray
        watcher.check()
        read_environment_again()
        return connect(*arguments, **named)

    services.start_ray_process, services.get_node = add, _asked_until(limit_s, get_node, watcher)
    node.wait_for_persisted_port = _asked_until(limit_s, look_for_port, watcher)  # type: ignore[attr-defined]
    utils.set_sigterm_handler = lambda _: None  # Ray's handler would call `sys.exit` without a message
    _raylet.CoreWorker = join  # type: ignore[attr-defined]
    _look_for_the_server(NO_END_S)
    try:
        yield
    except BaseException:  # `connect` may not have been called yet
        read_environment_again()
        raise
    finally:
        services.start_ray_process, services.get_node, utils.set_sigterm_handler = start_process, get_node, handler
        node.wait_for_persisted_port = wait_for_port  # type: ignore[attr-defined]
        _raylet.CoreWorker = connect  # type: ignore[attr-defined]


def _asked_until(limit_s: float, ask: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:  # Any: a type of Ray
    """Return a function that calls `ask` again as long as a process is not up yet, but at most until `limit_s`."""

    def asked(*which: Any, **named: Any) -> Any:  # Any: a type of Ray
        while True:
            try:
                return ask(*which, **named)
            except RuntimeError:  # the process is not up yet
                watcher.check()
                if time.monotonic() > limit_s:
                    raise
                time.sleep(ASK_AGAIN_S)

    return asked


def _look_for_the_server(patience_s: int) -> None:
    """Set how long this process waits for Ray's control store. Ray's other processes are not affected."""
    before = os.environ.get(SERVER_PATIENCE)
    os.environ[SERVER_PATIENCE] = str(patience_s)
    try:
        read_environment_again()
    finally:
        if before is None:
            del os.environ[SERVER_PATIENCE]
        else:
            os.environ[SERVER_PATIENCE] = before
