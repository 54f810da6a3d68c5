"""One fork of the host in a manager's process, and the data from which it is made again if the process dies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from actors.remote import Remote
from actors.shell import SnapshotRef
from esper.leyline.evidence import HostObservation, SampleLosses
from esper.leyline.reports import GraftPlan, Weights
from esper.leyline.stages import Stage

T = TypeVar("T")


class RemoteFork:
    """A `Fork` in a manager's process. The fork is lost when the process ends.

    The first call of `graft`, `make` or `train_to` makes the fork. Other methods must be called later.
    """

    def __init__(self, manager: Remote, name: str, snapshot: SnapshotRef) -> None:
        """Make the handle of a fork that will be made from `snapshot`. No message is sent yet."""
        self.manager, self.name, self.process = manager, name, manager.process
        self._snapshot: SnapshotRef | None = snapshot
        self.plan: GraftPlan | None = None
        """The plan of the candidate with which the fork was made. None: it has no candidate."""

    @property
    def is_lost(self) -> bool:
        """True if the fork's process was replaced."""
        return self.process is not self.manager.process

    @property
    def is_made(self) -> bool:
        """True if the manager has made the fork."""
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
        self.plan = plan
        self._snapshot = None

    def train_to(self, step: int) -> tuple[float, ...]:
        """See `Fork`."""
        if self._snapshot is not None:
            self.make()
        return cast("tuple[float, ...]", self._ask("train_to", step))

    def sample_losses(self, shard: str, fence: int, units: int | None = None) -> SampleLosses:
        """See `Fork`."""
        return cast(SampleLosses, self._ask("sample_losses", shard, fence, units))

    def observe(self, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        """See `Fork`."""
        return cast(HostObservation, self._ask("observe", fence, stages))

    def shard_means(self, shard: str, most: int | None = None) -> dict[str, float]:
        """See `Fork`."""
        return cast("dict[str, float]", self._ask("shard_means", shard, most))

    def weights_sha256(self) -> str:
        """See `Fork`."""
        return cast(str, self._ask("weights_sha256"))

    def snapshot(self) -> SnapshotRef:
        """Return a reference to the fork's snapshot.

        If the fork is not made yet, return the reference to the snapshot from which it will be made.
        """
        if self._snapshot is not None:
            return self._snapshot
        return self.manager.reference("snapshot", self.name, process=self.process)

    def adoptable(self) -> SnapshotRef:
        """Return a reference to the snapshot of a fork that is to be adopted."""
        return self.manager.reference("adoptable", self.name, process=self.process)

    def _ask(self, method: str, *arguments: object) -> Any:  # Any: the method's result
        return self.manager.ask(method, self.name, *arguments, process=self.process)


@dataclass
class KeptFork:
    """A fork that is kept after its tournament: the twin, its control, or the fork of rank 1. If its manager dies, the
    fork is made again.
    """

    fork: RemoteFork
    origin: SnapshotRef | None
    """Snapshot from which the fork is made again. None while a new snapshot is made. A manager's death in this time
    restarts the whole run."""
    step: int | None = None
    """Optimizer step to which the fork was trained since `origin`. None: it was not trained."""
    plan: GraftPlan | None = None
    """The plan of the fork's candidate. None: it has none."""
    weights: Weights = field(default_factory=dict)
    """Weights of `plan`."""

    def ask(self, question: Callable[[RemoteFork], T], another: Callable[[SnapshotRef], RemoteFork]) -> T:
        """Call `question` with the fork. If the fork is lost, first make it again by `another`, and train it to `step`.

        Raises:
            ActorLost: a manager died meanwhile. The caller may repeat the call after the manager is replaced.
        """
        if self.fork.is_lost:
            assert self.origin is not None, "a death while the snapshot is made restarts the whole run"
            self.fork = another(self.origin)
            if self.plan is not None:
                self.fork.graft(self.plan, self.weights)
            else:
                self.fork.make()
            if self.step is not None:
                self.fork.train_to(self.step)
        return question(self.fork)


def weights_of(plans: Sequence[GraftPlan], weights: Weights) -> dict[str, bytes]:
    """Return only the weights of these plans, because the others need not be sent."""
    return {plan.weights_digest: weights[plan.weights_digest] for plan in plans}
