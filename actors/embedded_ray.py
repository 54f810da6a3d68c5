"""The only file that knows how Ray is started and how a class becomes an actor. It decides nothing about a run.

Everything is said outright: Ray's defaults differ by environment (docs/adr/0004-ray.md).
"""

from __future__ import annotations

import functools
import logging
import os
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from actors import ray_private
from actors.heads import Heads
from actors.process_output import LastWords
from actors.ray_errors import unwrapped
from actors.remote import LOOK_EVERY_S
from actors.shell import ActorSpec, Shell
from actors.starting import ENDING, start
from actors.temporary_folders import SHARED_MEMORY, TEMPORARY, make_place, sweep
from actors.witness import Witness
from esper.errors import ActorLost, PlacementUnavailable, StartDeadlineExceeded
from esper.ground import hash_seed
from esper.ground.closing import Closing, noted_on
from esper.user_code.import_paths import ROOT, is_installed

CONCURRENCY_GROUPS = {"watch": 1, "ctl": 1, "save": 1}
"""Threads of every actor beside the one that works.

`watch` says how it goes, `ctl` takes what cannot wait, `save` waits for a checkpoint.
"""

THREADS = "OMP_NUM_THREADS"
"""Environment variable: how many threads a process computes with."""

LEFTOVERS_END_WITHIN_S = 2.0
STUCK_AFTER_S = 40.0
"""Ray itself ends the process 60 s after its server was last heard of."""


RAY = "ray"
"""Role of Ray's own processes in errors."""


class EmbeddedRay(Closing):
    """A Ray of our own on this machine; it and all its processes end with `close` or with this process.

    Its ports are open to whoever can reach the machine, so it takes nobody in without a token that it draws itself.
    """

    def __init__(self, *, slots: int, threads: int = 1, deadline_s: float = 120.0, run_dir: Path | None = None) -> None:
        """Start it with room for `slots` working actors; first remove what killed runs of this user left.

        Args:
            threads: With which its actors compute. One with another number of threads takes longer to start.
            run_dir: The run that this Ray is for, if it is for one alone: the last words of its process name it.

        Raises:
            StartDeadlineExceeded: Ray did not start within `deadline_s`.
            PlacementUnavailable: this process is connected to a Ray already, or the start failed.
        """
        if ray.is_initialized():
            raise PlacementUnavailable("ray", "this process is connected to a Ray already; end that one first")
        self._before = {
            name: os.environ.get(name)
            for name in (*ray_private.ENVIRONMENT, *actor_environment(threads), ray_private.TOKEN)
        }
        self._heads = Heads()
        self._ended = threading.Event()
        self._printing = ray_private.printing()
        sweep(TEMPORARY, SHARED_MEMORY)
        try:
            self.folder = make_place("ray", TEMPORARY)
        except OSError as error:
            raise PlacementUnavailable("ray", f"no folder for it in {TEMPORARY}: {error}") from error
        self._witness = Witness(run_dir)
        try:
            self._start(slots, threads, deadline_s)
        except BaseException as error:
            with noted_on(error, "ending Ray"):
                self.close()
            if isinstance(error, PlacementUnavailable) or not isinstance(error, Exception):
                raise
            raise PlacementUnavailable("ray", f"it did not start: {type(error).__name__}: {error}") from error

    def _start(self, slots: int, threads: int, deadline_s: float) -> None:
        os.environ.update({**ray_private.ENVIRONMENT, **actor_environment(threads)})
        os.environ[ray_private.TOKEN] = secrets.token_hex(32)
        ray_private.read_environment_again()
        begin = functools.partial(self._begin, slots, time.monotonic() + deadline_s)
        start(begin, lambda: _end_users_of(self.folder), deadline_s, self._ended, self._heads.gone)
        threading.Thread(target=self._speak_for_the_stuck, name="ray-watch", daemon=True).start()
        ray_private.set_printing(_logged)

    def _begin(self, slots: int, limit_s: float) -> None:
        with ray_private.guarded_start(self._heads, limit_s):
            ray.init(
                address="local",
                num_cpus=slots,
                namespace=f"esper-{secrets.token_hex(8)}",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                job_config=ray_private.OwnPath([] if is_installed(ROOT) else [str(ROOT)]),
                **ray_private.place_of(self.folder / "ray"),  # open to everybody; the folder around it is not
            )

    def close(self) -> None:
        """End every process of this Ray and remove its folder. May be called twice."""
        with uninterrupted():
            try:
                ray.shutdown()
            finally:
                self._ended.set()
                self._witness.close()
                _end_users_of(self.folder)
                shutil.rmtree(self.folder, ignore_errors=True)
                self._put_back()

    def _put_back(self) -> None:
        """Leave this process as it was: a Ray that its owner starts next is none of ours."""
        ray_private.set_printing(self._printing)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}
        ray_private.read_environment_again()

    def _speak_for_the_stuck(self) -> None:
        """Say why and leave if a process of Ray has died and a call into Ray does not return.

        Ray would end this process without a word, a minute after its server is gone.
        """
        while not self._ended.wait(LOOK_EVERY_S):
            if (gone := self._heads.gone()) and not self._ended.wait(STUCK_AFTER_S):
                self._witness.leave(f"{gone}, and a call into Ray does not come back")

    def check(self) -> None:
        """Raises: ActorLost: a process of Ray itself is gone, and with it all hope of an answer."""
        if gone := self._heads.gone():
            raise ActorLost(RAY, gone)


def _end_users_of(folder: Path) -> None:
    """End what uses a folder: processes of a Ray whose start was cut short, or its agents.

    They go by themselves once they notice that their Ray has gone, which can take a minute.
    """
    limit = time.monotonic() + LEFTOVERS_END_WITHIN_S
    while (users := [pid for pid in _processes() if _uses(pid, folder)]) and time.monotonic() < limit:
        for pid in users:
            with suppress(ProcessLookupError):  # it went by itself
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _processes() -> list[int]:
    return [
        int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit() and place.name != str(os.getpid())
    ]


def _uses(pid: int, folder: Path) -> bool:
    """A process of our session that names the folder in its command line, or has a file in it open.

    Ray's agents do the one until they do the other: they give themselves a title once their logs are open, and their
    standard output is a pipe then.
    """
    place = Path(f"/proc/{pid}")
    try:
        if os.getsid(pid) != os.getsid(0):
            return False
        return os.fsencode(folder) in (place / "cmdline").read_bytes() or any(
            _opened(link).is_relative_to(folder) for link in (place / "fd").iterdir()
        )
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended, or is somebody else's
        return False


def _opened(link: Path) -> Path:
    """What a process has open under a number; nothing, if it was closed meanwhile."""
    try:
        return Path(os.readlink(link))
    except FileNotFoundError:
        return Path()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """No signal that asks for an end does anything for as long as this lasts: the end has begun.

    Only the main thread has handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _logged(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    """Take what Ray would print on standard output, which is ours, into the log."""
    del ignore_prefix
    for line in data["lines"]:
        logging.getLogger("esper.ray").info(line)


def actor_environment(threads: int) -> dict[str, str]:
    """Variables that decide the bits of an actor's process and are read when it starts."""
    return {THREADS: str(threads), hash_seed.VARIABLE: str(hash_seed.seed_for_actors())}


def spawn(spec: ActorSpec, attempt: int = 1) -> ActorHandle[Shell]:
    """Begin to start an actor; `await_ready` says when it is up. Ray restarts nothing and repeats nothing.

    Args:
        attempt: How often it was begun in its generation. Ray keeps the name of a dead one taken for seconds.
    """
    made: Any = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(Shell)  # type: ignore[call-overload]  # Any: so is Ray
    # Ray's processes have the environment of this one. To change it, each would import Ray twice.
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


def await_ready(
    spec: ActorSpec,
    actor: ActorHandle[Shell],
    began_s: float,
    deadline_s: float,
    look: Callable[[], None] = lambda: None,
) -> int:
    """Wait until an actor is up. Returns its process id.

    Args:
        began_s: When the actors of the run began to start, on the monotonic clock; `deadline_s` counts from there.
        look: Called while the actor is waited for; raises if no answer can come.

    Raises:
        EsperError: what its constructor raised.
        PlacementUnavailable: Ray had no room for it until the deadline.
        StartDeadlineExceeded: it had room, and was not up in time.
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
    """Why an actor was not up in time: for lack of room, or because its process is slow."""
    there, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
    late = f"{spec.name} was not up {deadline_s:g} s after the first actor began to start (ray.start_deadline_s)"
    if pid := ray_private.record_of(actor)["Pid"]:
        return StartDeadlineExceeded(spec.role, f"{late}: process {pid} loads esper and the task, or hangs in it")
    if all(free.get(name, 0.0) >= amount for name, amount in (("CPU", spec.cpus), ("GPU", spec.gpus))):
        return StartDeadlineExceeded(spec.role, f"{late}: there is room, and Ray has begun no process for it yet")
    return PlacementUnavailable(spec.role, f"{late}: no room; asked: {_asked(spec)}; there: {_room(there, free)}")


def _last_words(told: str) -> str:
    """What a process wrote that died before we knew it; Ray names it in what it tells of the death."""
    pid = re.search(r"^\s*pid: (\d+)$", told, re.MULTILINE)
    return LastWords.in_folder(ray_private.folder_of_logs(), int(pid[1])).read() if pid is not None else ""


def _asked(spec: ActorSpec) -> str:
    return f"CPU {spec.cpus:g}" + (f", GPU {spec.gpus:g}" if spec.gpus else "")


def _room(there: Mapping[str, float], free: Mapping[str, float]) -> str:
    """What Ray has of each thing that actors ask for, and how much of it is free."""
    return ", ".join(f"{name} {there.get(name, 0.0):g} ({free.get(name, 0.0):g} free)" for name in ("CPU", "GPU"))


def end(actor: ActorHandle[Shell]) -> None:
    """End an actor's process, whatever it is doing, also inside a C call."""
    ray.kill(actor)
