"""Starts the process of one actor, and waits until the actor is up. Ray must be up."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from actors import ray_private
from actors.async_shell import AsyncShell
from actors.process_output import LastWords
from actors.ray_errors import unwrapped
from actors.remote import LOOK_EVERY_S
from actors.shell import ActorSpec, Shell
from actors.starting import RAISE_IT
from esper.errors import ActorLost, PlacementUnavailable, StartDeadlineExceeded
from esper.ground import hash_seed

CONCURRENCY_GROUPS = {"watch": 1, "ctl": 1, "save": 1}
"""Concurrency group -> number of its threads, for every actor that is not asynchronous. The working thread is not
counted.

The group `watch` returns the progress of the actor, `ctl` runs urgent methods, and `save` waits for a checkpoint.
"""

THREADS = "OMP_NUM_THREADS"
"""Name of the environment variable for the number of threads with which a process computes."""


def actor_environment(threads: int) -> dict[str, str]:
    """Return the environment variables that affect the bits of an actor's results.

    An actor's process reads them when it starts.
    """
    return {THREADS: str(threads), hash_seed.VARIABLE: str(hash_seed.seed_for_actors())}


def check_room(specs: Iterable[ActorSpec]) -> None:
    """Check that Ray has the CPUs and GPUs that some actors need together, free or not.

    Raises:
        PlacementUnavailable: it has fewer, so that the actors could never all be up.
    """
    there, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
    wanted = tuple(specs)
    asked = {"CPU": sum(spec.cpus for spec in wanted), "GPU": sum(spec.gpus for spec in wanted)}
    if any(amount > there.get(name, 0.0) for name, amount in asked.items()):
        together = ", ".join(f"{name} {amount:g}" for name, amount in asked.items() if amount)
        detail = f"no room: the actors ask for {together} together; there: {_room(there, free)}"
        raise PlacementUnavailable("ray", f"{detail}; lower growth.managers, or start Ray with more")


def spawn(spec: ActorSpec, attempt: int = 1) -> ActorHandle[Shell]:
    """Begin to start an actor. The caller must call `await_ready` afterwards. Ray neither restarts the actor nor
    repeats a call of it.

    Args:
        attempt: Number of this start in the actor's generation, from 1. It is a part of the actor's name, because Ray
            blocks the name of a dead actor for some seconds.
    """
    made: Any = ray.remote(AsyncShell) if spec.asynchronous else _with_groups(Shell)  # Any: Ray is untyped
    # Ray's processes inherit this process's environment. With another environment, each process would import Ray twice.
    other = {name: value for name, value in actor_environment(spec.threads).items() if os.environ.get(name) != value}
    environment: Mapping[str, Any] = {"runtime_env": {"env_vars": other}} if other else {}
    handle: ActorHandle[Shell] = made.options(
        name=f"{spec.name}-g{spec.generation}-{spec.run_id[:8]}" + (f"-{attempt}" if attempt > 1 else ""),
        num_cpus=spec.cpus,
        num_gpus=spec.gpus,
        max_restarts=0,
        max_task_retries=0,
        **environment,
    ).remote(spec)
    return handle


def _with_groups(shell: type[Shell]) -> Any:  # Any: Ray is untyped
    return ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(shell)  # type: ignore[call-overload]


def await_ready(
    spec: ActorSpec,
    actor: ActorHandle[Shell],
    began_s: float,
    deadline_s: float,
    look: Callable[[], None] = lambda: None,
) -> int:
    """Wait until an actor is up, and return its process id.

    Args:
        began_s: Monotonic time at which the first actor of the run began to start. `deadline_s` counts from that time.
        look: Function that is called during the wait. It raises an error if the actor can no longer come up.

    Raises:
        EsperError: the error of the actor's constructor.
        ActorLost: the actor's process died.
        PlacementUnavailable: Ray had too few free resources for the actor until the deadline.
        StartDeadlineExceeded: Ray had enough resources, and the actor was not up in time.
    """
    try:
        answer: Any = actor.pid.remote()  # Any: Ray types it loosely
        limit_s = began_s + deadline_s
        while ray.wait([answer], timeout=LOOK_EVERY_S)[1] and time.monotonic() < limit_s:
            look()
        pid: int = ray.get(answer, timeout=max(0.0, limit_s - time.monotonic()))
    except GetTimeoutError as error:
        raise _not_up(spec, actor, deadline_s) from error
    except RayError as error:
        found = unwrapped(error, spec.role, spec.name)
        if isinstance(found, ActorLost) and (words := _last_words(str(error))):
            found.add_note(f"{spec.name} wrote last:\n{words}")
        raise found from found.__cause__
    return pid


def _not_up(spec: ActorSpec, actor: ActorHandle[Shell], deadline_s: float) -> PlacementUnavailable:
    """Return the error for an actor that was not up in time, because resources were missing or its process is slow."""
    there, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
    late = f"{spec.name} was not up {deadline_s:g} s after the first actor began to start (ray.start_deadline_s)"
    if pid := ray_private.record_of(actor)["Pid"]:
        return StartDeadlineExceeded(
            spec.role, f"{late}: process {pid} loads esper and the task, or hangs in it; {RAISE_IT}"
        )
    if all(free.get(name, 0.0) >= amount for name, amount in (("CPU", spec.cpus), ("GPU", spec.gpus))):
        return StartDeadlineExceeded(
            spec.role, f"{late}: there is room, and Ray has begun no process for it yet; {RAISE_IT}"
        )
    return PlacementUnavailable(spec.role, f"{late}: no room; asked: {_asked(spec)}; there: {_room(there, free)}")


def _last_words(message: str) -> str:
    """Return the last output of a dead process if it died before esper knew its id.

    Ray's message about the death contains the id.
    """
    pid = re.search(r"^\s*pid: (\d+)$", message, re.MULTILINE)
    return LastWords.in_folder(ray_private.folder_of_logs(), int(pid[1])).read() if pid is not None else ""


def _asked(spec: ActorSpec) -> str:
    return f"CPU {spec.cpus:g}" + (f", GPU {spec.gpus:g}" if spec.gpus else "")


def _room(there: Mapping[str, float], free: Mapping[str, float]) -> str:
    """Describe Ray's CPUs and GPUs: all of them, and those that are free."""
    return ", ".join(f"{name} {there.get(name, 0.0):g} ({free.get(name, 0.0):g} free)" for name in ("CPU", "GPU"))


def end(actor: ActorHandle[Shell]) -> None:
    """Let Ray kill an actor's process, even if it is in a C call. This does not wait for the end of the process."""
    ray.kill(actor)
