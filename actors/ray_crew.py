"""The `Crew` of a run on Ray. Each call goes to the actors' company; what concerns all of Ray comes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from actors.embedded_ray import EmbeddedRay
from actors.remote_incubator import RemoteNursery
from actors.room_handles import emergency_handle
from actors.run_actors import Company
from esper.archive.recovery_record import Lost, Recovery
from esper.errors import ActorError, EsperError


@dataclass(frozen=True)
class RayCrew:
    """See `Crew` for the call order and the errors."""

    company: Company
    nursery: RemoteNursery
    embedded: EmbeddedRay

    def counted(self, name: str) -> int:
        """See `Crew`: as the actors last reported it."""
        return self.company.counted(name)

    def passed(self, fence: int) -> None:
        """See `Crew`."""
        self.company.passed(fence)

    def mend(self) -> None:
        """See `Crew`. Raises: also what Ray's own processes died of."""
        self.embedded.check()
        self.company.mend()

    def lost(self, error: EsperError, fence: int | None) -> Lost:
        """See `Crew`."""
        return self.company.lost(error, fence)

    def revive(self, generation: int) -> None:
        """See `Crew`. The emergency word says the new generation only when every actor is up."""
        self.company.revive(generation, self.nursery.abandon)
        emergency_handle(self.company.remotes["emergency"]).rebind(generation)

    def died_starting(self) -> tuple[ActorError, ...]:
        """See `Crew`."""
        return self.company.died_starting()

    def replaced(self) -> tuple[tuple[Lost, Recovery], ...]:
        """See `Crew`."""
        return self.company.replaced()

    def shared(self, snapshot: Any) -> Any:  # Any: a HostSnapshot -> actors.room_handles.Snapshot
        """See `Crew`: a reference in a list, so that Ray passes it on unread."""
        return [ray.put(snapshot)]
