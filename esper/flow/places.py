"""The places in which a run can be executed: values of the argument `on` of `esper.run` and `esper.resume`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.ground.clock import Clock
    from esper.leyline.ports import Policy


@dataclass(frozen=True)
class InProcess:
    """The run is executed in the calling process, without Ray.

    Args:
        policy: Replaces the policy that the config names.
        clock: Source of the times in the records of the run. By default it is the clock of the machine. It changes no
            weights.
    """

    policy: Policy | None = None
    clock: Clock | None = None


@dataclass(frozen=True)
class OnRay:
    """The run is executed by actors on this machine, with the same bits as a run in one process.

    It needs the package `actors`, which is installed with esper. The table `[ray]` of the config has the deadlines of
    actors.

    Args:
        embedded: An `actors.embedded_ray.EmbeddedRay` that is already up, or an `actors.joined_ray.JoinedRay`. It stays
            up after the run. By default the run starts a Ray instance and ends it.
        policy: Replaces the policy that the config names. It is pickled once. Each process that makes decisions loads
            it from these bytes.
    """

    embedded: object | None = None
    policy: Policy | None = None
