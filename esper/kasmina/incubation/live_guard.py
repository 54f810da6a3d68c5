"""Checks that the seed of a fork does not change the live host, if both are in one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from esper.errors import IsolationViolation
from esper.leyline.reports import GraftPlan
from esper.telemetry.events import Severity, reported


class LiveHost(Protocol):
    """The host that a run trains, as the guard needs it."""

    def tensor_digests(self) -> Mapping[str, Any]:  # Any: a digest
        """Return the digests of all tensors and gradients of the host and its seeds, by name."""
        ...


class LiveGuard:
    """Compares the tensors of the live host before and after the work of each candidate.

    Between two blocks of one guard, nothing else may change the live host. So the digests after a block of a candidate
    are also the digests before the next block of a candidate, and are not computed twice.

    The values of the live host before the change are not kept, so the run cannot continue. The error ends it before the
    fence is committed. So every checkpoint is from before the change.
    """

    def __init__(self, live: LiveHost | None) -> None:
        """Make the guard. `live` is None if the live host is in another process, where no fork can reach it."""
        self._live = live
        self._digests: Mapping[str, Any] | None = None  # Any: a digest
        """The digests after the last block. None: no block has ended yet, or the last block had no candidate."""

    @contextmanager
    def around(self, plan: GraftPlan | None) -> Iterator[None]:
        """Compare the live host before and after the block, in which the candidate of `plan` works.

        None: the block has no candidate.

        Raises:
            IsolationViolation: the candidate changed the live host.
        """
        before, self._digests = self._digests, None
        if self._live is None or plan is None:
            yield
            return
        if before is None:
            before = self._live.tensor_digests()
        yield
        after = self._digests = self._live.tensor_digests()
        changed = [name for name in before.keys() | after.keys() if (name in before) != (name in after)]
        changed += [name for name in before.keys() & after.keys() if before[name] != after[name]]
        if changed:
            names = [f"{name} of the live host" for name in sorted(changed)]
            error = IsolationViolation(plan.seed_id, names, plan.blueprint_id, plan.slot)
            fields = {"seed_id": plan.seed_id, "blueprint": plan.blueprint_id, "slot": plan.slot, "leaves": names}
            raise reported(error, "isolation_violated", Severity.CRITICAL, **fields)
