"""The only file that knows how Ray is started and how a class becomes an actor. It decides nothing about a run.

Everything is said outright: Ray's defaults differ by environment (docs/adr/0004-ray.md).
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled, without stubs
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.handles import raise_unwrapped
from actors.shell import Birth, Shell
from esper.errors import PlacementUnavailable

CONCURRENCY_GROUPS = {"watch": 1, "ctl": 1}
"""Threads of every actor beside the one that works: `watch` says how it goes, `ctl` takes what cannot wait."""

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "0",
}


class EmbeddedRay:
    """A Ray of our own on this machine; it and all its processes end with `close` or with this process.

    Its ports are open to whoever can reach the machine, so it takes nobody in without a token that it draws itself.
    """

    def __init__(self, *, slots: int) -> None:
        """Start it with room for `slots` working actors.

        Raises:
            PlacementUnavailable: this process is connected to a Ray already.
        """
        if ray.is_initialized():
            raise PlacementUnavailable("ray", "this process is connected to a Ray already; end that one first")
        self.folder = Path(
            tempfile.mkdtemp(prefix=f"esper-{os.getpid()}-", dir="/tmp")
        )  # short: socket paths end at 107 bytes
        self._before = {name: os.environ.get(name) for name in (*ENVIRONMENT, "RAY_AUTH_TOKEN")}
        os.environ.update(ENVIRONMENT)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        _read_environment_again()
        try:
            with _signal_handlers_kept():
                ray.init(
                    address="local",
                    num_cpus=slots,
                    namespace=f"esper-{secrets.token_hex(8)}",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(self.folder),
                )
            ray._private.worker.print_to_stdstream = _logged  # log_to_driver=False leaves the raylet's own words
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every process of this Ray and remove its folder. May be called twice."""
        with uninterrupted():
            self._close()

    def _close(self) -> None:
        ray.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)  # a log line may still be on its way; nothing of ours is there
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}

    def __enter__(self) -> EmbeddedRay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray puts handlers of its own, in Python and in C++, in the place of ours, which drain a run.

    Only the main thread has any.
    """
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if mine else {}
    theirs = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda _: None  # it would leave by `sys.exit`, with nothing said
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = theirs
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C does nothing for as long as this lasts: the end has begun. Only the main thread has handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _logged(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    """Take what Ray would print on standard output, which is ours, into the log."""
    del ignore_prefix
    for line in data["lines"]:
        logging.getLogger("esper.ray").info(line)


def _read_environment_again() -> None:
    """Ray reads its environment when it is imported, which was before we said what it shall be."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def spawn(birth: Birth, *, cpus: float, gpus: float = 0.0) -> ActorHandle[Shell]:
    """Begin to start an actor; `await_ready` says when it is up. Ray restarts nothing and repeats nothing."""
    made: Any = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(Shell)  # type: ignore[call-overload]  # Any: so is Ray
    environment: Mapping[str, Any] = {"env_vars": {"OMP_NUM_THREADS": str(birth.threads)}}
    handle: ActorHandle[Shell] = made.options(
        name=f"{birth.name}-g{birth.generation}-{birth.run_id[:8]}",
        num_cpus=cpus,
        num_gpus=gpus,
        max_restarts=0,
        max_task_retries=0,
        runtime_env=environment,
    ).remote(birth)
    return handle


def await_ready(birth: Birth, actor: ActorHandle[Shell], deadline_s: float) -> int:
    """Wait until an actor is up. Returns its process id.

    Raises:
        EsperError: what its constructor raised.
        PlacementUnavailable: it was not up in time; it was ended.
    """
    try:
        answer: Any = actor.pid.remote()  # Any: Ray types it loosely
        pid: int = ray.get(answer, timeout=deadline_s)
    except GetTimeoutError as error:
        ray.kill(actor)
        raise PlacementUnavailable(birth.role, f"{birth.name} was not up after {deadline_s} s") from error
    except (RayTaskError, RayActorError) as error:
        raise_unwrapped(error, birth.role)
    return pid


def end(actor: ActorHandle[Shell]) -> None:
    """End an actor's process, whatever it is doing, also inside a C call."""
    ray.kill(actor)
