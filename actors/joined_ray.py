"""Connects this process to a Ray that already runs on this machine. It starts and ends no process of Ray."""

from __future__ import annotations

import logging
import os
import secrets
import socket

import ray

from actors import ray_private
from actors.actor_process import actor_environment
from actors.embedded_ray import put_back
from esper.errors import ActorLost, ConfigError, PlacementUnavailable
from esper.ground.closing import Closing
from esper.user_code.import_paths import ROOT, is_installed

ANSWER_S = 5.0
"""Longest wait for an answer of the address. Ray itself would ask again for minutes, and could end this process."""


class JoinedRay(Closing):
    """A connection to a running Ray. `close` ends the connection and the actors of this process; Ray stays up.

    Actors read the run directory, and their processes are watched by their ids, so Ray must run on this machine. If it
    asks for a token, the environment variable `RAY_AUTH_TOKEN` must have it.
    """

    def __init__(self, address: str, *, slots: int, threads: int = 1) -> None:
        """Connect.

        Args:
            address: Address of Ray's control store, such as `127.0.0.1:6379`.
            slots: Number of CPUs that the runs need.

        Raises:
            ConfigError: `address` is not HOST:PORT.
            PlacementUnavailable: this process is already connected to a Ray, the connection failed, or Ray has fewer
                CPUs than `slots`.
        """
        if ray.is_initialized():
            raise PlacementUnavailable("ray", "this process is already connected to a Ray; end it first")
        _check_answers(address)
        self._before = {name: os.environ.get(name) for name in actor_environment(threads)}
        os.environ.update(actor_environment(threads))
        ray_private.read_environment_again()
        try:
            ray.init(
                address=address,
                namespace=f"esper-{secrets.token_hex(8)}",
                log_to_driver=False,
                logging_level=logging.ERROR,
                job_config=ray_private.OwnPath([] if is_installed(ROOT) else [str(ROOT)]),
            )
        except Exception as error:  # Ray raises many classes of errors for an address that does not answer
            self.close()
            raise PlacementUnavailable("ray", f"no connection to {address}: {error}") from error
        there = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        if there < slots:
            self.close()
            raise PlacementUnavailable("ray", f"{address} has {there:g} CPUs; the runs need {slots}")

    def check(self) -> None:
        """Check the connection. Raises: ActorLost: it has ended, so no actor can answer."""
        if not ray.is_initialized():
            raise ActorLost("ray", "the connection to Ray has ended")

    def close(self) -> None:
        """End the connection. A second call has no effect."""
        ray.shutdown()
        put_back(self._before)
        self._before = {}


def _check_answers(address: str) -> None:
    """Raises: ConfigError, PlacementUnavailable: the address is malformed, or nothing answers there."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError("address", address, "give HOST:PORT of a running Ray, such as 127.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise PlacementUnavailable("ray", f"nothing answers at {address}: {error}") from error
