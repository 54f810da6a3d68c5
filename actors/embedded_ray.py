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
from ray._private.state import actors as actor_table
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled, without stubs
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from ray.job_config import JobConfig

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
from esper.ground.machine import is_alive
from esper.user_code.import_paths import ROOT, is_installed

CONCURRENCY_GROUPS = {"watch": 1, "ctl": 1, "save": 1}
"""Threads of every actor beside the one that works.

`watch` says how it goes, `ctl` takes what cannot wait, `save` waits for a checkpoint.
"""

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "0",
    "RAY_worker_niceness": "0",  # by default 15: any other program on the machine would starve the trainer
}


THREADS = "OMP_NUM_THREADS"
"""Environment variable: how many threads a process computes with."""

LEFTOVERS_END_WITHIN_S = 2.0
WAIT_S = 0.1
"""Between two questions whether the raylet is up."""
STUCK_AFTER_S = 40.0
"""Ray itself ends the process 60 s after its server was last heard of."""


RAY = "ray"
"""Role of Ray's own processes in errors."""
HEADS = ("gcs_server", "raylet")
"""Processes of Ray without which nothing goes on."""


class OwnPath(JobConfig):
    """Workers find esper where this process found it, whatever lies in the working directory.

    Ray puts the working directory and the script's folder in front of every worker's import path, where a project's
    own `actors` would be found in place of ours. What the task imports comes later: see `actors.task_transport`.
    """

    def __init__(self) -> None:
        super().__init__(_py_driver_sys_path=[] if is_installed(ROOT) else [str(ROOT)])

    def _runtime_env_has_working_dir(self) -> bool:
        """Ray adds neither folder then, and asks this for nothing else."""
        return True


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
            name: os.environ.get(name) for name in (*ENVIRONMENT, *actor_environment(threads), "RAY_AUTH_TOKEN")
        }
        self._heads: dict[str, int] = {}
        self._ended = threading.Event()
        self._printing = ray._private.worker.print_to_stdstream
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
        os.environ.update({**ENVIRONMENT, **actor_environment(threads)})
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        _read_environment_again()
        begin = functools.partial(
            ray.init,
            address="local",
            num_cpus=slots,
            namespace=f"esper-{secrets.token_hex(8)}",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(self.folder / "ray"),  # open to everybody, as Ray makes it; the folder around it is not
            job_config=OwnPath(),
        )
        with _without_rays_handler(), _as_patient_as(deadline_s, self.folder):
            start(begin, lambda: _end_users_of(self.folder), deadline_s, self._ended)
        started = ray._private.worker._global_node.all_processes  # type: ignore[attr-defined]  # a Node by now
        self._heads = {name: info[0].process.pid for name, info in started.items() if name in HEADS}
        threading.Thread(target=self._speak_for_the_stuck, name="ray-watch", daemon=True).start()
        ray._private.worker.print_to_stdstream = _logged  # log_to_driver=False leaves the raylet's own words

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
        ray._private.worker.print_to_stdstream = self._printing
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}
        _read_environment_again()

    def _speak_for_the_stuck(self) -> None:
        """Say why and leave if a process of Ray has died and a call into Ray does not return.

        Ray would end this process without a word, a minute after its server is gone.
        """
        while not self._ended.wait(LOOK_EVERY_S):
            gone = [f"{name} (process {process})" for name, process in self._heads.items() if not is_alive(process)]
            if gone and not self._ended.wait(STUCK_AFTER_S):
                self._witness.leave(f"{gone[0]} of Ray has ended, and a call into Ray does not come back")

    def check(self) -> None:
        """Raises: ActorLost: a process of Ray itself is gone, and with it all hope of an answer."""
        for name, process in self._heads.items():
            if not is_alive(process):
                raise ActorLost(RAY, f"{name} (process {process}) has ended")


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


def _uses(pid: int, folder: Path, program: bytes = b"") -> bool:
    """A process of our session that names the folder in its command line, or has a file in it open.

    With `program` its command line has that, too.

    Ray's agents do the one until they do the other: they give themselves a title once their logs are open, and their
    standard output is a pipe then.
    """
    place = Path(f"/proc/{pid}")
    try:
        if os.getsid(pid) != os.getsid(0):
            return False
        line = (place / "cmdline").read_bytes()
        if program not in line:
            return False
        return os.fsencode(folder) in line or any(
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
def _without_rays_handler() -> Iterator[None]:
    """Ray's own for SIGTERM would leave by `sys.exit`, with nothing said."""
    theirs = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = theirs


@contextmanager
def _as_patient_as(deadline_s: float, folder: Path) -> Iterator[None]:
    """Have Ray wait for its raylet until our deadline, as long as the raylet lives; Ray's own limit is fixed, 30 s."""
    ask: Any = ray._private.services.get_node  # Any: Ray leaves it untyped
    limit_s = time.monotonic() + deadline_s

    def wait(*which: Any) -> Any:  # Any: Ray's
        while True:
            try:
                return ask(*which)
            except RuntimeError:  # the raylet has not told its server of itself yet
                if time.monotonic() > limit_s or not any(_uses(pid, folder, b"/raylet/raylet") for pid in _processes()):
                    raise
                time.sleep(WAIT_S)

    ray._private.services.get_node = wait
    try:
        yield
    finally:
        ray._private.services.get_node = ask


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


def _read_environment_again() -> None:
    """Ray reads its environment when it is imported, which was before we said what it shall be."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


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
    told: Any = actor_table(actor._actor_id.hex())  # Any: Ray leaves it untyped
    if pid := told["Pid"]:
        return StartDeadlineExceeded(spec.role, f"{late}: process {pid} loads esper and the task, or hangs in it")
    if all(free.get(name, 0.0) >= amount for name, amount in (("CPU", spec.cpus), ("GPU", spec.gpus))):
        return StartDeadlineExceeded(spec.role, f"{late}: there is room, and Ray has begun no process for it yet")
    return PlacementUnavailable(spec.role, f"{late}: no room; asked: {_asked(spec)}; there: {_room(there, free)}")


def _last_words(told: str) -> str:
    """What a process wrote that died before we knew it; Ray names it in what it tells of the death."""
    pid = re.search(r"^\s*pid: (\d+)$", told, re.MULTILINE)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]  # a Node by now
    return LastWords.in_folder(logs, int(pid[1])).read() if pid is not None else ""


def _asked(spec: ActorSpec) -> str:
    return f"CPU {spec.cpus:g}" + (f", GPU {spec.gpus:g}" if spec.gpus else "")


def _room(there: Mapping[str, float], free: Mapping[str, float]) -> str:
    """What Ray has of each thing that actors ask for, and how much of it is free."""
    return ", ".join(f"{name} {there.get(name, 0.0):g} ({free.get(name, 0.0):g} free)" for name in ("CPU", "GPU"))


def end(actor: ActorHandle[Shell]) -> None:
    """End an actor's process, whatever it is doing, also inside a C call."""
    ray.kill(actor)
