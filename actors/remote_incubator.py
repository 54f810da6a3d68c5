"""Incubation across processes: forks spread over Kasmina's managers, beside the training of the live host.

The tournament is `run_tournament` of `kasmina/incubation/incubator.py`; here its forks are remote and its heats run
side by side. How many managers there are, and what runs where, changes no result. So what a manager did that has
died is done again from the snapshot that it began from, while the live host goes on.
"""

from __future__ import annotations

import contextvars
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from actors.remote import Remote
from actors.room_handles import Snapshot
from esper.errors import ActorLost
from esper.kasmina.incubation.incubator import run_tournament
from esper.leyline.evidence import HostObservation, SampleLosses
from esper.leyline.incubation import Birth, IncubationOrder, IncubationResult, TwinReport
from esper.leyline.ports import Fork
from esper.leyline.reports import GraftPlan, Weights
from esper.leyline.stages import Stage
from esper.telemetry.context import span

T = TypeVar("T")

WAITING = 64
"""Calls that may wait for managers at a time; each manager does one after the other."""


class RemoteFork:
    """A `Fork` in a manager's process, and lost with it."""

    def __init__(self, manager: Remote, name: str, snapshot: Snapshot) -> None:
        self.manager, self.name, self.process = manager, name, manager.process
        self._snapshot: Snapshot | None = snapshot

    @property
    def is_lost(self) -> bool:
        """Its manager has had a successor since."""
        return self.process is not self.manager.process

    @property
    def is_made(self) -> bool:
        """It was made, in its process."""
        return self._snapshot is None

    def graft(self, plan: GraftPlan, weights: Weights) -> None:
        """Make the fork, with a candidate."""
        self._make(plan, _weights_of([plan], weights))

    def make(self) -> None:
        """Make the fork, without a candidate."""
        self._make(None, {})

    def _make(self, plan: GraftPlan | None, weights: Weights) -> None:
        assert self._snapshot is not None, "a fork is made once"
        self._ask("open", self._snapshot, plan, weights)
        self._snapshot = None

    def train_to(self, step: int) -> tuple[float, ...]:
        """See `Fork`. A fork that was given no candidate is made here."""
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

    def snapshot(self) -> Snapshot:
        """A reference to it; of a fork that was not made yet, what it will be made of."""
        if self._snapshot is not None:
            return self._snapshot
        return self.manager.reference("snapshot", self.name, process=self.process)

    def _ask(self, method: str, *arguments: object) -> Any:  # Any: as the method
        return self.manager.ask(method, self.name, *arguments, process=self.process)


def _weights_of(plans: Sequence[GraftPlan], weights: Weights) -> dict[str, bytes]:
    """The weights of these plans alone: others are not sent to a process that does not need them."""
    return {plan.weights_digest: weights[plan.weights_digest] for plan in plans}


@dataclass
class Kept:
    """A control that is kept, and how it is made again if its manager dies."""

    fork: RemoteFork
    origin: Snapshot | None
    """What it began from; None: that is being replaced, and a death meanwhile takes the whole run back."""
    step: int | None = None
    """How far it was trained from there; None: not at all."""


Replace = Callable[[ActorLost], None]
"""(death of a manager) -> when it has a successor. Raises: the death, if none comes alone."""


class RemoteNursery:
    """`Nursery` across processes. `close` waits for what runs, or gives it up with the managers' processes.

    `_noting` guards `_running`, to which the line's thread and the tournament's both add. `_open` and `_pieces` belong
    to the tournament's thread while a tournament runs, and to the line's thread otherwise: `collect` and `abandon` wait
    for its end first. A `Kept` is changed by the thread that asks it, and by one at a time: the line waits for the
    training of the twin before it asks the twin anything. All other fields belong to the line's thread.
    """

    def __init__(self, managers: Sequence[Remote], replace: Replace) -> None:
        self._managers, self._replace = {manager.name: manager for manager in managers}, replace
        self._work = ThreadPoolExecutor(WAITING, thread_name_prefix="manager")
        self._order = ThreadPoolExecutor(1, thread_name_prefix="tournament")
        self._numbers = itertools.count()
        self._open: list[RemoteFork] = []
        """Of tournaments; all are closed in the end but the one that is kept."""
        self._pieces: list[Future[Any]] = []
        self._pending: Future[tuple[IncubationResult, RemoteFork]] | None = None
        self._control: Kept | None = None
        self._twin: Kept | None = None
        self._twin_ahead: Future[tuple[float, ...]] | None = None
        self._twin_steps = 0
        self._running: list[Future[Any]] = []
        self._noting = threading.Lock()
        self._began: tuple[IncubationOrder, Snapshot] | None = None
        """The tournament in flight, and what it began from."""

    def births(self, plans: Sequence[GraftPlan], weights: Weights, snapshot: Snapshot) -> Sequence[Birth]:
        """See `Nursery`: each manager measures its share."""
        managers = tuple(self._managers.values())
        shares = [plans[place :: len(managers)] for place in range(len(managers))]

        pieces = [
            partial(manager.ask, "births", share, _weights_of(share, weights), snapshot)
            for manager, share in zip(managers, shares, strict=True)
            if share
        ]
        measured = self._outliving(lambda: self._together(pieces), self._settle_pieces)
        found = {birth.seed_id: birth for births in measured for birth in births}
        return tuple(found[plan.seed_id] for plan in plans)

    def begin(self, order: IncubationOrder, weights: Weights, snapshot: Snapshot) -> None:
        """See `Nursery`: it runs from now on."""
        assert self._pending is None, "one tournament is in flight per run"
        self._pending = self._start(self._order, self._run, order, weights, snapshot)
        self._began = order, snapshot
        self._control = None  # nobody has kept it

    def collect(self) -> IncubationResult:
        """See `Nursery`."""
        assert self._pending is not None, "nothing was begun"
        assert self._began is not None, "it is noted as it begins"
        (order, origin), pending = self._began, self._pending
        self._pending = self._began = None
        result, control = pending.result()
        self._control = Kept(control, origin, order.last_step) if self._twin is None else None  # a run keeps one twin
        kept = [control] if self._control is not None else []
        for manager in self._managers.values():
            self._outliving(partial(self._close, manager, [fork for fork in self._open if fork not in kept]))
        self._open = kept
        return result

    def keep_twin(self) -> None:
        """See `Nursery`."""
        assert self._control is not None, "no tournament has ended"
        self._twin, self._control = self._control, None
        self._open.remove(self._twin.fork)

    def advance_twin(self, step: int) -> None:
        """See `Nursery`: it runs from now on."""
        self._settle_twin()
        assert self._twin is not None, "no twin is kept"
        self._twin_ahead = self._start(self._work, self._train_twin, self._twin, step)

    def twin_losses(self, fence: int) -> SampleLosses:
        """See `Nursery`."""
        return self._of_twin(lambda fork: fork.sample_losses("gate", fence))

    def twin_report(self) -> TwinReport:
        """See `Nursery`."""
        loss = self._of_twin(lambda fork: fork.shard_means("test")["loss"])
        digest = self._of_twin(RemoteFork.weights_sha256)
        return TwinReport(steps=self._twin_steps, test_loss=loss, weights_sha256=digest)

    def state(self, fence: int) -> dict[str, Any]:  # Any: see `Nursery`
        """See `Nursery`: it waits until the twin stands at this fence."""
        self._settle_twin()
        origin = self._began[1] if self._began is not None and self._began[0].fence != fence else None
        twin = self._snapshot_of(self._twin) if self._twin is not None else None
        return {"twin": twin, "twin_steps": self._twin_steps, "origin": origin}

    def restore(self, state: Mapping[str, Any]) -> None:  # Any: see `Nursery`
        """See `Nursery`: returns when nothing of what was in flight runs any more."""
        self.abandon()
        self._twin_steps = state["twin_steps"]
        if (twin := state["twin"]) is not None:
            self._twin = Kept(self._new_fork(twin), twin)
            self._twin.fork.make()

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
        """Take no more work; what was taken goes on until its manager's process ends."""
        for pool in (self._order, self._work):
            pool.shutdown(wait=False)  # nothing is cancelled: who waits for it in a thread would wait for ever

    def join(self) -> None:
        """Wait until nothing runs any more; call it when the managers are gone."""
        for pool in (self._order, self._work):
            pool.shutdown(wait=True)

    def _run(self, order: IncubationOrder, weights: Weights, snapshot: Snapshot) -> tuple[IncubationResult, RemoteFork]:
        def tournament() -> tuple[IncubationResult, Fork]:
            return run_tournament(order, weights, self._fork, snapshot, self._together)

        with span("kasmina incubate", role="conductor", forks=len(order.plans), order_id=order.order_id):
            result, control = self._outliving(tournament, self._clear)
        return result, cast(RemoteFork, control)

    def _clear(self) -> None:
        """Make room for a tournament that is done again: what others still do for it comes to its end."""
        self._settle_pieces()
        for manager in self._managers.values():
            with suppress(ActorLost):  # it is heard of again
                self._close(manager, self._open)
        self._open = []

    def _settle_pieces(self) -> None:
        wait(self._pieces)

    def _fork(self, snapshot: Snapshot) -> Fork:
        self._open.append(self._new_fork(snapshot))
        return cast(Fork, self._open[-1])

    def _new_fork(self, snapshot: Snapshot) -> RemoteFork:
        number, managers = next(self._numbers), tuple(self._managers.values())
        return RemoteFork(managers[number % len(managers)], f"fork-{number}", snapshot)

    def _together(self, pieces: Sequence[Callable[[], T]]) -> list[T]:
        """Do all pieces, each in its own manager; answers in the order of the pieces."""
        started = [self._start(self._work, piece) for piece in pieces]
        self._pieces = [*started]
        for future in as_completed(started):  # an error is heard when it happens, not when its turn comes
            future.result()
        return [future.result() for future in started]

    def _close(self, manager: Remote, forks: Sequence[RemoteFork]) -> None:
        """Have a manager forget what it holds of some forks."""
        process = manager.process
        if names := [fork.name for fork in forks if fork.process is process and fork.is_made]:
            manager.ask("close", names, process=process)

    # -- deaths ------------------------------------------------------------------------------------------------------

    def _outliving(self, work: Callable[[], T], clear: Callable[[], None] = lambda: None) -> T:
        """Do work of managers, and from the beginning again when one dies meanwhile and has a successor.

        Args:
            clear: Called before it is done again.

        Raises:
            ActorLost: one died and gets none alone; or it was no manager.
            RestartIntensityExceeded: it died too often.
        """
        while True:
            try:
                return work()
            except ActorLost as death:
                if death.actor not in self._managers:
                    raise
                self._replace(death)
                clear()

    def _of_twin(self, ask: Callable[[RemoteFork], T]) -> T:
        self._settle_twin()
        assert self._twin is not None, "no twin is kept"
        return self._of(self._twin, ask)

    def _of(self, kept: Kept, ask: Callable[[RemoteFork], T]) -> T:
        """Ask what is kept; if it was lost with its manager, of what is made in its place."""

        def asked() -> T:
            if kept.fork.is_lost:
                assert kept.origin is not None, "a death while it was replaced has taken the whole run back"
                kept.fork = self._new_fork(kept.origin)
                kept.fork.make()
                if kept.step is not None:
                    kept.fork.train_to(kept.step)
            return ask(kept.fork)

        return self._outliving(asked)

    def _train_twin(self, twin: Kept, step: int) -> tuple[float, ...]:
        losses = self._of(twin, lambda fork: fork.train_to(step))
        twin.step = step
        return losses

    def _snapshot_of(self, twin: Kept) -> Snapshot:
        self._of(twin, lambda fork: fork.manager.check())
        twin.origin = twin.step = None  # two copies of it at a time would be one too many
        twin.origin = twin.fork.snapshot()
        return twin.origin

    def _tell_the_living(self, method: str, *arguments: object, group: str | None = None) -> None:
        """Ask every manager; of one that is dead nothing runs, and its death is heard of by whoever looks for it."""
        for manager in self._managers.values():
            with suppress(ActorLost):
                manager.ask(method, *arguments, group=group)

    def _settle_twin(self) -> None:
        if self._twin_ahead is not None:
            self._twin_steps += len(self._twin_ahead.result())
            self._twin_ahead = None

    def _start(self, pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: object) -> Future[T]:
        """Run work in a pool under this thread's trace."""
        future = pool.submit(contextvars.copy_context().run, work, *arguments)
        with self._noting:
            self._running = [*(one for one in self._running if not one.done()), future]
        return future

    def _undone(self) -> list[Future[Any]]:
        with self._noting:
            return [future for future in self._running if not future.done()]
