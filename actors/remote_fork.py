"""One fork of the host in a manager's process, and what is needed to make it again if that process dies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from actors.remote import Remote
from actors.shell import SnapshotRef
from esper.leyline.evidence import HostObservation, SampleLosses
from esper.leyline.reports import GraftPlan, Weights
from esper.leyline.stages import Stage

T = TypeVar("T")


class RemoteFork:
    """A `Fork` in a manager's process. It is lost when that process ends.

    The manager makes the fork at the first call of `graft`, `make` or `train_to`; the other methods come after that.
    """

    def __init__(self, manager: Remote, name: str, snapshot: SnapshotRef) -> None:
        """Send nothing yet. The fork will be made from `snapshot`."""
        self.manager, self.name, self.process = manager, name, manager.process
        self._snapshot: SnapshotRef | None = snapshot

    @property
    def is_lost(self) -> bool:
        """Record that the fork's process was replaced."""
        return self.process is not self.manager.process

    @property
    def is_made(self) -> bool:
        """The manager has made the fork."""
        return self._snapshot is None

    def graft(self, plan: GraftPlan, weights: Weights) -> None:
        """Make the fork with a candidate."""
        self._make(plan, weights_of([plan], weights))

    def make(self) -> None:
        """Make the fork without a candidate."""
        self._make(None, {})

    def _make(self, plan: GraftPlan | None, weights: Weights) -> None:
        assert self._snapshot is not None, "a fork is made once"
        self._ask("open", self._snapshot, plan, weights)
        self._snapshot = None

    def train_to(self, step: int) -> tuple[float, ...]:
        """See `Fork`."""
        if self._snapshot is not None:
            self.make()
        return cast("tuple[float, ...]", self._ask("train_to", step))

    def sample_losses(self, shard: str, fence: int) -> SampleLosses:
        """See `Fork`."""
        return cast(SampleLosses, self._ask("sample_losses", shard, fence))

    def observe(self, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        """See `Fork`."""
        return cast(HostObservation, self._ask("observe", fence, stages))

    def shard_means(self, shard: str) -> dict[str, float]:
        """See `Fork`."""
        return cast("dict[str, float]", self._ask("shard_means", shard))

    def weights_sha256(self) -> str:
        """See `Fork`."""
        return cast(str, self._ask("weights_sha256"))

    def snapshot(self) -> SnapshotRef:
        """A reference to the fork's snapshot; before the fork is made, to the snapshot that it will be made of."""
        if self._snapshot is not None:
            return self._snapshot
        return self.manager.reference("snapshot", self.name, process=self.process)

    def _ask(self, method: str, *arguments: object) -> Any:  # Any: as the method
        return self.manager.ask(method, self.name, *arguments, process=self.process)


@dataclass
class KeptFork:
    """A fork without a seed that outlives its tournament. If its manager dies, the fork is made again."""

    fork: RemoteFork
    origin: SnapshotRef | None
    """Snapshot to make it from; None while a new one is taken: a death then restarts the whole run."""
    step: int | None = None
    """Optimizer step that it was trained to from `origin`; None: not trained."""

    def ask(self, question: Callable[[RemoteFork], T], another: Callable[[SnapshotRef], RemoteFork]) -> T:
        """Ask the fork; if it is lost, make it again first, by `another`, and train it as far as it was.

        Raises:
            ActorLost: a manager died meanwhile. May be called again once that manager is replaced.
        """
        if self.fork.is_lost:
            assert self.origin is not None, "a death while the snapshot is taken restarts the whole run"
            self.fork = another(self.origin)
            self.fork.make()
            if self.step is not None:
                self.fork.train_to(self.step)
        return question(self.fork)


def weights_of(plans: Sequence[GraftPlan], weights: Weights) -> dict[str, bytes]:
    """Return the weights of these plans only, so that no other weights are sent."""
    return {plan.weights_digest: weights[plan.weights_digest] for plan in plans}
