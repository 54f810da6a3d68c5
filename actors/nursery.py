"""Incubation across processes: forks spread over Kasmina's managers, beside the training of the live host.

The tournament itself is `esper.kasmina.incubation.run_tournament`; here its forks are remote and its heats run side
by side. How many managers there are, and what runs where, changes no result.
"""

from __future__ import annotations

import contextvars
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from typing import Any, TypeVar, cast

from actors.handles import Remote
from actors.typed import Snapshot
from esper.errors import ActorLost
from esper.kasmina.incubation import run_tournament
from esper.leyline.evidence import SampleLosses
from esper.leyline.incubation import Birth, IncubationOrder, IncubationResult, TwinReport
from esper.leyline.ports import Fork
from esper.leyline.reports import GraftPlan
from esper.telemetry.context import span

T = TypeVar("T")

WAITING = 64
"""Calls that may wait for managers at a time; each manager does one after the other."""


class RemoteFork:
    """A `Fork` in a manager's process."""

    def __init__(self, manager: Remote, name: str, snapshot: Snapshot) -> None:
        self.manager, self.name = manager, name
        self._snapshot: Snapshot | None = snapshot

    def graft(self, plan: GraftPlan | None) -> None:
        """Make the fork, with a candidate or without; a fork is made once."""
        assert self._snapshot is not None, "made already"
        self.manager.ask("open", self.name, self._snapshot, plan)
        self._snapshot = None

    def train_to(self, step: int) -> tuple[float, ...]:
        """See `Fork`. A fork that was given no candidate is made here."""
        if self._snapshot is not None:
            self.graft(None)
        return cast("tuple[float, ...]", self.manager.ask("train_to", self.name, step))

    def sample_losses(self, shard: str, fence: int) -> SampleLosses:
        """See `Fork`."""
        return cast(SampleLosses, self.manager.ask("sample_losses", self.name, shard, fence))

    def shard_means(self, shard: str) -> dict[str, float]:
        """See `Fork`."""
        return cast("dict[str, float]", self.manager.ask("shard_means", self.name, shard))

    def weights_sha256(self) -> str:
        """See `Fork`."""
        return cast(str, self.manager.ask("weights_sha256", self.name))

    def snapshot(self) -> Snapshot:
        """A reference to it; of a fork that was not made yet, what it will be made of."""
        return self._snapshot if self._snapshot is not None else self.manager.reference("snapshot", self.name)


class RemoteNursery:
    """`Nursery` across processes. `close` waits for what runs, or gives it up with the managers' processes."""

    def __init__(self, managers: Sequence[Remote]) -> None:
        self._managers = managers
        self._work = ThreadPoolExecutor(WAITING, thread_name_prefix="manager")
        self._order = ThreadPoolExecutor(1, thread_name_prefix="tournament")
        self._names = itertools.count()
        self._open: list[RemoteFork] = []
        self._pending: Future[tuple[IncubationResult, Any]] | None = None  # Any: the control, a RemoteFork
        self._control: RemoteFork | None = None
        self._twin: RemoteFork | None = None
        self._twin_ahead: Future[tuple[float, ...]] | None = None
        self._twin_steps = 0
        self._running: list[Future[Any]] = []
        self._noting = threading.Lock()
        self._began: tuple[int, Snapshot] | None = None
        """Fence and origin of the tournament in flight."""

    def births(self, plans: Sequence[GraftPlan], snapshot: Snapshot) -> Sequence[Birth]:
        """See `Nursery`: each manager measures its share."""
        count = len(self._managers)
        shares = [plans[place::count] for place in range(count)]
        asked = [
            self._start(self._work, manager.ask, "births", share, snapshot)
            for manager, share in zip(self._managers, shares, strict=True)
            if share
        ]
        found = {birth.seed_id: birth for future in asked for birth in future.result()}
        return tuple(found[plan.seed_id] for plan in plans)

    def begin(self, order: IncubationOrder, snapshot: Snapshot) -> None:
        """See `Nursery`: it runs from now on."""
        assert self._pending is None, "one tournament is in flight per run"
        self._pending = self._start(self._order, self._run, order, snapshot)
        self._began = order.fence, snapshot

    def collect(self) -> IncubationResult:
        """See `Nursery`."""
        assert self._pending is not None, "nothing was begun"
        pending, self._pending, self._began = self._pending, None, None
        result, control = pending.result()
        self._control = control if self._twin is None else None  # a run keeps one twin
        self._forget_losers()
        return result

    def keep_twin(self) -> None:
        """See `Nursery`."""
        assert self._control is not None, "no tournament has ended"
        self._twin, self._control = self._control, None

    def advance_twin(self, step: int) -> None:
        """See `Nursery`: it runs from now on."""
        self._settle_twin()
        assert self._twin is not None, "no twin is kept"
        self._twin_ahead = self._start(self._work, self._twin.train_to, step)

    def twin_losses(self, fence: int) -> SampleLosses:
        """See `Nursery`."""
        return self._settled_twin().sample_losses("gate", fence)

    def twin_report(self) -> TwinReport:
        """See `Nursery`."""
        twin = self._settled_twin()
        loss, digest = twin.shard_means("test")["loss"], twin.weights_sha256()
        return TwinReport(steps=self._twin_steps, test_loss=loss, weights_sha256=digest)

    def state(self, fence: int) -> dict[str, Any]:  # Any: see `Nursery`
        """See `Nursery`: it waits until the twin stands at this fence."""
        self._settle_twin()
        twin = self._twin.snapshot() if self._twin is not None else None
        origin = self._began[1] if self._began is not None and self._began[0] != fence else None
        return {"twin": twin, "twin_steps": self._twin_steps, "origin": origin}

    def restore(self, state: Mapping[str, Any]) -> None:  # Any: see `Nursery`
        """See `Nursery`: returns when nothing of what was in flight runs any more."""
        self.abandon()
        twin = state["twin"]
        self._twin = cast(RemoteFork, self._fork(twin)) if twin is not None else None
        self._twin_steps = state["twin_steps"]
        if self._twin is not None:
            self._twin.graft(None)

    def abandon(self) -> None:
        """Give up the tournament in flight and every fork; returns when nothing of them runs any more."""
        if self._undone():
            self._tell_the_living("abandon", True, group="ctl")
            while running := self._undone():  # what runs may still begin more
                wait(running)
            self._tell_the_living("abandon", False, group="ctl")
        self._pending = self._began = self._control = self._twin = self._twin_ahead = None
        self._tell_the_living("close_all")
        self._open = []

    def close(self) -> None:
        """Take no more work; what runs goes on until its manager's process ends."""
        for pool in (self._order, self._work):
            pool.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait until nothing runs any more; call it when the managers are gone."""
        for pool in (self._order, self._work):
            pool.shutdown(wait=True)

    def _run(self, order: IncubationOrder, snapshot: Snapshot) -> tuple[IncubationResult, Fork]:
        with span("kasmina incubate", role="conductor", forks=len(order.plans), order_id=order.order_id):
            return run_tournament(order, self._fork, snapshot, self._together)

    def _fork(self, snapshot: Snapshot) -> Fork:
        number = next(self._names)
        fork = RemoteFork(self._managers[number % len(self._managers)], f"fork-{number}", snapshot)
        self._open.append(fork)
        return cast(Fork, fork)

    def _together(self, pieces: Sequence[Callable[[], T]]) -> list[T]:
        """Do all pieces, each in its own manager; answers in the order of the pieces."""
        started = [self._start(self._work, piece) for piece in pieces]
        for future in as_completed(started):  # an error is heard when it happens, not when its turn comes
            future.result()
        return [future.result() for future in started]

    def _forget_losers(self) -> None:
        """All forks are done with but the control, and the twin."""
        kept = [fork for fork in self._open if fork in (self._control, self._twin)]
        for manager in self._managers:
            names = [fork.name for fork in self._open if fork.manager is manager and fork not in kept]
            if names:
                manager.ask("close", names)
        self._open = kept

    def _tell_the_living(self, method: str, *arguments: object, group: str | None = None) -> None:
        """Ask every manager; of one that is dead nothing runs, and its death is heard of by whoever looks for it."""
        for manager in self._managers:
            with suppress(ActorLost):
                manager.ask(method, *arguments, group=group)

    def _settle_twin(self) -> None:
        if self._twin_ahead is not None:
            self._twin_steps += len(self._twin_ahead.result())
            self._twin_ahead = None

    def _settled_twin(self) -> RemoteFork:
        self._settle_twin()
        assert self._twin is not None, "no twin is kept"
        return self._twin

    def _start(self, pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: object) -> Future[T]:
        """Run work in a pool under this thread's trace."""
        future = pool.submit(contextvars.copy_context().run, work, *arguments)
        with self._noting:
            self._running = [*(one for one in self._running if not one.done()), future]
        return future

    def _undone(self) -> list[Future[Any]]:
        with self._noting:
            return [future for future in self._running if not future.done()]
