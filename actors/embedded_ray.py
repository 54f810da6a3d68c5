"""Starts and ends an embedded Ray on this machine, and sets its environment.

All settings are explicit, because Ray's defaults depend on the environment (docs/adr/0004-ray.md).
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from actors import ray_private
from actors.actor_process import actor_environment
from actors.end_signals import uninterrupted
from actors.heads import Heads
from actors.leftovers import end_users_of
from actors.remote import LOOK_EVERY_S
from actors.starting import start
from actors.temporary_folders import SHARED_MEMORY, TEMPORARY, make_place, sweep
from actors.witness import Witness
from esper.errors import ActorLost, PlacementUnavailable
from esper.ground.closing import Closing, noted_on
from esper.user_code.import_paths import ROOT, is_installed

STUCK_AFTER_S = 40.0
"""Seconds that this process waits for a call into Ray after the death of Ray's server or raylet. After this time, the
process ends with a report.

The number must be less than 60, because Ray's core would end the process without a message 60 s after the last answer
of Ray's server.
"""


RAY = "ray"
"""Name that errors use for Ray's own processes."""


class EmbeddedRay(Closing):
    """A Ray instance that esper starts on this machine. `close` or the end of this process ends all its processes.

    Other machines can reach its ports, so it refuses connections without a token. The token is random.
    """

    def __init__(self, *, slots: int, threads: int = 1, deadline_s: float = 120.0, run_dir: Path | None = None) -> None:
        """Start Ray with CPUs for `slots` working actors. First, remove the folders of this user's killed runs.

        Args:
            threads: Number of threads of each actor. An actor with another number of threads takes longer to start.
            run_dir: Directory of the run, for the report of a sudden end. None: this Ray may have several runs.

        Raises:
            StartDeadlineExceeded: Ray did not start within `deadline_s`.
            PlacementUnavailable: this process is already connected to a Ray, or the start failed.
        """
        if ray.is_initialized():
            raise PlacementUnavailable("ray", "this process is already connected to a Ray; end it first")
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
        start(begin, lambda: end_users_of(self.folder), deadline_s, self._ended, self._heads.gone)
        threading.Thread(target=self._report_if_stuck, name="ray-watch", daemon=True).start()
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
                **ray_private.place_of(self.folder / "ray"),  # all users may read it, but not the folder around it
            )

    def close(self) -> None:
        """End every process of this Ray and remove its folder. A second call has no effect."""
        with uninterrupted():
            try:
                ray.shutdown()
            finally:
                self._ended.set()
                self._witness.close()
                end_users_of(self.folder)
                shutil.rmtree(self.folder, ignore_errors=True)
                self._put_back()

    def _put_back(self) -> None:
        ray_private.set_printing(self._printing)
        put_back(self._before)
        self._before = {}

    def _report_if_stuck(self) -> None:
        """End this process with a report if a process of Ray has died and a call into Ray waits too long.

        Otherwise Ray's core would end this process without a message, a minute after the end of its control store.
        """
        while not self._ended.wait(LOOK_EVERY_S):
            if (gone := self._heads.gone()) and not self._ended.wait(STUCK_AFTER_S):
                self._witness.leave(f"{gone}, and a call into Ray does not come back")

    def check(self) -> None:
        """Check Ray's own processes. Raises: ActorLost: one of them has ended, so no actor can answer."""
        if gone := self._heads.gone():
            raise ActorLost(RAY, gone)


def put_back(before: Mapping[str, str | None]) -> None:
    """Restore variables of this process's environment, so that it can start or join another Ray. None: remove it."""
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    ray_private.read_environment_again()


def _logged(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    """Log Ray's lines instead of printing them, because standard output is for the run."""
    del ignore_prefix
    for line in data["lines"]:
        logging.getLogger("esper.ray").info(line)
