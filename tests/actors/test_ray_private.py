"""What `actors/ray_private.py` takes for granted of Ray: where Ray has changed, the failure says what that breaks."""

from __future__ import annotations

import ast
import inspect
import mmap
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray import _raylet
from ray._common.usage import usage_constants
from ray._private import node, ray_constants, services, state, utils, worker
from ray._private.accelerators import accelerator
from ray.actor import ActorHandle
from ray.job_config import JobConfig
from ray_names import private_names, underscored

from actors import ray_private
from actors.heads import Heads
from esper.errors import PlacementUnavailable
from esper.testing import telling

SOURCE = Path(ray_private.__file__)


def takes(function: Callable[..., Any], *names: str) -> bool:
    """It has these parameters, in this order, before any other."""
    return tuple(inspect.signature(function).parameters)[: len(names)] == names


def has(where: object, *texts: str) -> bool:
    """Its source has these texts."""
    source = inspect.getsource(cast("Any", where))
    return all(text in source for text in texts)


def is_read(variable: str) -> bool:
    """Ray's compiled part has the name of the variable, or of the setting behind `RAY_`."""
    with Path(_raylet.__file__).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(variable.removeprefix("RAY_").encode()) >= 0


HOLDS: dict[str, tuple[Callable[[], bool], str]] = {
    "_private": (lambda: hasattr(ray, "_private"), "the package of all that follows"),
    "_raylet": (lambda: hasattr(ray, "_raylet"), "the compiled part, of which the next two and CoreWorker are"),
    "Config": (lambda: hasattr(_raylet.Config, "initialize"), "Ray keeps to the environment that it was imported in"),
    "AuthenticationTokenLoader": (
        lambda: hasattr(_raylet.AuthenticationTokenLoader.instance(), "reset_cache"),
        "a second Ray of one process is asked for the token of the first",
    ),
    "_py_driver_sys_path": (
        lambda: "_py_driver_sys_path" in inspect.signature(JobConfig).parameters,
        "workers start without the import path of esper",
    ),
    "_runtime_env_has_working_dir": (
        lambda: has(JobConfig, "def _runtime_env_has_working_dir") and has(worker.connect, "._runtime_env_has_working"),
        "the working directory comes first on a worker's import path, and modules there hide ours",
    ),
    "_temp_dir": (
        lambda: has(worker, 'kwargs.pop("_temp_dir"'),
        "Ray's files lie in /tmp/ray, and nobody removes them",
    ),
    "_global_node": (
        lambda: "_global_node" in vars(worker) and takes(node.Node.get_logs_dir_path, "self"),
        "what an actor wrote before its death is not found",
    ),
    "_actor_id": (
        lambda: isinstance(vars(ActorHandle).get("_actor_id"), property),
        "Ray cannot be asked for the record of an actor",
    ),
    "actors": (
        lambda: takes(state.actors, "actor_id") and has(state, '"Pid":', '"EndTime":'),
        "the process and the time of the death of an actor are not known",
    ),
    "print_to_stdstream": (
        lambda: (
            takes(worker.print_to_stdstream, "data", "ignore_prefix") and has(worker, "            print_to_stdstream(")
        ),
        "what Ray prints goes to standard output, into the JSON of --json",
    ),
    "start_ray_process": (
        lambda: (
            takes(services.start_ray_process, "command", "process_type")
            and has(services.start_gcs_server, "= start_ray_process(", "PROCESS_TYPE_GCS_SERVER")
            and has(services.start_raylet, "= start_ray_process(", "PROCESS_TYPE_RAYLET")
            and "process" in services.ProcessInfo._fields
            and ray_private.HEADS == (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET)
        ),
        "a death of the control store or the raylet while Ray starts is noticed by nobody",
    ),
    "get_node": (
        lambda: has(node.Node.__init__, "ray._private.services.get_node(", "except RuntimeError"),
        "on a loaded machine Ray gives its raylet up after 30 s",
    ),
    "wait_for_persisted_port": (
        lambda: has(node.Node.start_gcs_server, "= wait_for_persisted_port(", "timeout_ms="),
        "no signal and no deadline ends a start whose control store does not come up, for 30 s",
    ),
    "CoreWorker": (
        lambda: has(worker.connect, "= ray._raylet.CoreWorker("),
        "Ray connects this process to a raylet that has died, and ends it with exit code 1",
    ),
    "set_sigterm_handler": (
        lambda: (
            has(node.Node, "ray._private.utils.set_sigterm_handler(")
            and takes(utils.set_sigterm_handler, "sigterm_handler")
        ),
        "Ray's handler of SIGTERM replaces ours, and a run ends with nothing said",
    ),
    "RAY_AUTH_MODE": (lambda: is_read("RAY_AUTH_MODE"), "whoever reaches the machine gets into Ray"),
    "RAY_AUTH_TOKEN": (lambda: is_read("RAY_AUTH_TOKEN"), "whoever reaches the machine gets into Ray"),
    "RAY_USAGE_STATS_ENABLED": (
        lambda: usage_constants.USAGE_STATS_ENABLED_ENV_VAR == "RAY_USAGE_STATS_ENABLED",
        "Ray reports the use of this machine to its makers",
    ),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": (
        lambda: accelerator.RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR == "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
        "actors without a GPU of their own have CUDA_VISIBLE_DEVICES changed",
    ),
    "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": (
        lambda: hasattr(ray_constants, "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"),
        "tensors of a message are memory that is shared and read-only",
    ),
    "RAY_worker_niceness": (lambda: is_read("RAY_worker_niceness"), "actors run at Ray's low priority"),
    "RAY_py_gcs_connect_timeout_s": (
        lambda: is_read("RAY_py_gcs_connect_timeout_s"),
        "a start on a busy machine fails after 30 s, before ray.start_deadline_s",
    ),
    "RAY_gcs_rpc_server_reconnect_timeout_s": (
        lambda: is_read("RAY_gcs_rpc_server_reconnect_timeout_s"),
        "Ray ends this process 60 s after its control store died in a start",
    ),
}
"""Name in `actors/ray_private.py` -> whether Ray still has it as it is used there, and what breaks where it has not."""


@pytest.mark.parametrize("name", HOLDS)
def test_ray_still_has_what_it_does_not_promise(name: str) -> None:
    holds, breaks = HOLDS[name]
    assert holds(), f"Ray {ray.__version__} has changed {name}; mend {SOURCE.name}, or: {breaks}"


def test_every_private_name_of_ray_that_is_used_is_held_here() -> None:
    source = SOURCE.read_text()
    assert private_names(ast.parse(source)) | underscored(source) == HOLDS.keys()


# -- a start of Ray ----------------------------------------------------------------------------------------------------


class Rays:
    """What Ray's own start calls, in place of Ray: a process of it is known when it was asked for thrice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pid: int) -> None:
        self.done, self.patience = list[str](), list[str | None]()
        made = SimpleNamespace(process=SimpleNamespace(pid=pid))
        monkeypatch.setattr(ray_private.services, "start_ray_process", lambda *_: made)
        monkeypatch.setattr(ray_private.services, "get_node", self.get_node)
        monkeypatch.setattr(ray_private.node, "wait_for_persisted_port", self.port)
        monkeypatch.setattr(ray_private._raylet, "CoreWorker", lambda: self.done.append("connected"))
        monkeypatch.setattr(ray_private, "read_environment_again", self.read)

    def get_node(self, address: str) -> str:
        self.done.append(address)
        if len(self.done) < 3:
            raise RuntimeError("no such node yet")
        return "the node"

    def port(self, folder: str, *, timeout_ms: int = 30_000) -> str:
        assert timeout_ms < 1000  # Ray holds the interpreter's lock for as long
        return self.get_node(folder)

    def read(self) -> None:
        self.patience.append(os.environ.get(ray_private.SERVER_PATIENCE))


def test_ray_waits_for_its_raylet_until_our_deadline_and_connects_with_its_own_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rays, services = Rays(monkeypatch, os.getpid()), ray_private.services
    with ray_private.guarded_start(Heads(), time.monotonic() + 3600.0):
        services.start_ray_process("a command", "raylet")
        assert services.get_node("here") == "the node"
        assert rays.patience == [str(ray_private.NO_END_S)]
        ray_private._raylet.CoreWorker()
    assert rays.done == ["here", "here", "here", "connected"]
    assert rays.patience == [str(ray_private.NO_END_S), None]
    assert services.get_node == rays.get_node


def test_a_wait_for_the_port_of_the_control_store_leaves_other_threads_their_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rays, wait = Rays(monkeypatch, os.getpid()), ray_private.node.wait_for_persisted_port
    with ray_private.guarded_start(Heads(), time.monotonic() + 3600.0):
        assert ray_private.node.wait_for_persisted_port("here", timeout_ms=30_000) == "the node"
    assert rays.done == ["here", "here", "here"]
    assert ray_private.node.wait_for_persisted_port == wait


STEPS: dict[str, Callable[[], object]] = {
    "asks for the port": lambda: ray_private.node.wait_for_persisted_port("here"),
    "asks": lambda: ray_private.services.get_node("here"),
    "connects": lambda: ray_private._raylet.CoreWorker(),
}


@pytest.mark.parametrize("step", STEPS)
def test_ray_asks_for_no_process_that_has_died_and_connects_to_none(
    monkeypatch: pytest.MonkeyPatch, head: subprocess.Popen[bytes], step: str
) -> None:
    rays = Rays(monkeypatch, head.pid)

    def starts() -> None:
        with ray_private.guarded_start(Heads(), time.monotonic() + 3600.0):
            ray_private.services.start_ray_process("a command", "raylet")
            head.communicate(b"\n")
            STEPS[step]()

    with pytest.raises(PlacementUnavailable, check=telling(role="ray")):
        starts()
    assert rays.done == ([] if step == "connects" else ["here"])
    assert rays.patience[-1] is None  # as Ray has it
