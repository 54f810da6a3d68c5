"""Incubation across processes: the forks of a tournament train in managers while the live host trains.

The tournament is `run_tournament` of `kasmina/incubation/incubator.py`. Here its forks are remote and train side by
side. Results depend neither on the number of managers nor on the manager of a fork. So when a manager dies, its work is
repeated from the same snapshot. The live host continues meanwhile.
"""

from __future__ import annotations

import contextvars
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from actors.remote import Remote
from actors.remote_fork import KeptFork, RemoteFork, weights_of
from actors.shell import SnapshotRef
from esper.errors import ActorLost
from esper.kasmina.incubation.incubator import Field, run_tournament
from esper.leyline.evidence import SampleLosses
from esper.leyline.incubation import CandidateProbe, IncubationOrder, IncubationResult, TwinReport
from esper.leyline.reports import GraftPlan, Weights
from esper.telemetry.context import span

T = TypeVar("T")

WAITING = 64
"""Largest number of threads that wait for the answers of managers. A manager answers one call at a time, so more
threads would not help."""


Ended = tuple[IncubationResult, Field[RemoteFork]]
"""Result of a tournament, and its forks."""
Replace = Callable[[ActorLost], None]
"""Function (death of a manager) -> None. It returns after the manager was replaced, or raises the death if the whole
run restarts."""


class RemoteIncubator:
    """`Incubation` across processes.

    It has the line's thread, a thread that runs a tournament, and up to `WAITING` threads that each wait for a
    manager.

    The lock `_running_lock` guards `_running`, because both the line's thread and the thread of the tournament add to
    it. Only the tournament's thread uses `_open` and `_pieces` while a tournament runs. At other times only the line's
    thread uses them, because `collect` and `abandon` wait for the end of the tournament. Only one thread at a time uses
    a `KeptFork`, because the line waits for the training of the twin before it uses the twin. Only the line's thread
    uses the other fields.
    """

    def __init__(self, managers: Sequence[Remote], replace: Replace) -> None:
        self._managers, self._replace = {manager.name: manager for manager in managers}, replace
        self._work = ThreadPoolExecutor(WAITING, thread_name_prefix="manager")
        self._order = ThreadPoolExecutor(1, thread_name_prefix="tournament")
        self._numbers = itertools.count()
        self._open: list[RemoteFork] = []
        """Forks of a tournament. After the tournament, all forks are closed except a control that may become the
        twin, the first fork if it may be adopted, and the forks that may go on."""
        self._pieces: list[Future[Any]] = []
        self._pending: Future[Ended] | None = None
        self._control: KeptFork | None = None
        self._winner: KeptFork | None = None
        """First fork of the last tournament. None: it is not to be adopted, or it was dropped."""
        self._field: Field[RemoteFork] | None = None
        """Forks of the last tournament that may go on. None: there are none, or a new order has begun."""
        self._origin: SnapshotRef | None = None
        """Snapshot of the last tournament. None: its forks were dropped."""
        self._twin: KeptFork | None = None
        self._twin_ahead: Future[tuple[float, ...]] | None = None
        self._twin_steps = 0
        self._running: list[Future[Any]] = []
        self._running_lock = threading.Lock()
        self._began: tuple[IncubationOrder, Weights, SnapshotRef] | None = None
        """The order of the running tournament, the weights of its plans, and the snapshot with which it began."""

    def probe_candidates(
        self, plans: Sequence[GraftPlan], weights: Weights, snapshot: SnapshotRef
    ) -> Sequence[CandidateProbe]:
        """See `Incubation`. Each manager measures some of the candidates."""
        managers = tuple(self._managers.values())
        shares = [plans[place :: len(managers)] for place in range(len(managers))]
        pieces = [
            partial(manager.ask, "probe_candidates", share, weights_of(share, weights), snapshot)
            for manager, share in zip(managers, shares, strict=True)
            if share
        ]
        measured = self._repeated(lambda: self._together(pieces), self._settle_pieces)
        found = {probe.seed_id: probe for share in measured for probe in share}
        return tuple(found[plan.seed_id] for plan in plans)

    def begin(self, order: IncubationOrder, weights: Weights, snapshot: SnapshotRef) -> None:
        """See `Incubation`. This call starts the tournament."""
        self._begin(order, weights, snapshot, None)

    def go_on(self, order: IncubationOrder, weights: Weights) -> None:
        """See `Incubation`. This call starts the training. If a manager of these forks has died, all of them are
        trained again from the snapshot."""
        assert self._field is not None, "no forks were kept"
        assert self._origin is not None, "`collect` sets both"
        field, self._winner = self._field.chosen(order), None
        self._close_but([entry.fork for entry in field.everyone])
        self._begin(order, weights, self._origin, field)

    def _begin(
        self, order: IncubationOrder, weights: Weights, snapshot: SnapshotRef, field: Field[RemoteFork] | None
    ) -> None:
        assert self._pending is None, "one tournament is in flight per run"
        self._pending = self._start(self._order, self._run, order, weights, snapshot, field)
        self._began = order, weights, snapshot
        self._control = None  # `keep_twin` was not called after the last tournament
        self._field = self._origin = None

    def collect(self) -> IncubationResult:
        """See `Incubation`."""
        assert self._pending is not None, "nothing was begun"
        assert self._began is not None, "`begin` sets both"
        (order, weights, origin), pending = self._began, self._pending
        self._pending = self._began = None
        result, ended = pending.result()
        control, winner = ended.control.fork, ended.entries[0].fork if order.adopts and ended.entries else None
        is_first = self._twin is None  # the control of the first tournament may become the run's twin
        self._control = KeptFork(control, origin, order.last_step) if is_first else None
        kept = [control] if self._control is not None else []
        if winner is not None and winner.plan is not None:
            own = weights_of([winner.plan], weights)
            self._winner = KeptFork(winner, origin, order.last_step, winner.plan, own)
            kept.append(winner)
        self._field, self._origin = ended.first(order.keeps), origin
        kept += [entry.fork for entry in self._field.everyone if entry.fork not in kept] if self._field else []
        self._close_but(kept)
        return result

    def _close_but(self, kept: list[RemoteFork]) -> None:
        """Close all open forks except some."""
        for manager in self._managers.values():
            self._repeated(partial(self._close, manager, [fork for fork in self._open if fork not in kept]))
        self._open = kept

    def keep_twin(self) -> None:
        """See `Incubation`."""
        assert self._control is not None, "no tournament has ended"
        self._twin, self._control = self._control, None
        self._open.remove(self._twin.fork)

    def winner(self) -> SnapshotRef:
        """See `Incubation`. If the manager of the fork has died, the fork is trained again."""
        kept = self._winner
        assert kept is not None, "no tournament whose order adopts has ended at this fence"
        return self._repeated(lambda: kept.ask(RemoteFork.adoptable, self._fork))  # so that `drop_winner` closes it

    def drop_winner(self) -> None:
        """See `Incubation`."""
        if self._winner is None and self._field is None:
            return
        self._winner = self._field = self._origin = None
        self._close_but([self._control.fork] if self._control is not None else [])

    def advance_twin(self, step: int) -> None:
        """See `Incubation`. This call starts the training, and returns before its end."""
        self._settle_twin()
        assert self._twin is not None, "no twin is kept"
        self._twin_ahead = self._start(self._work, self._train_twin, self._twin, step)

    def twin_losses(self, fence: int) -> SampleLosses:
        """See `Incubation`."""
        return self._of_twin(lambda fork: fork.sample_losses("gate", fence))

    def twin_means(self, shard: str, most: int | None = None) -> dict[str, float]:
        """See `Incubation`."""
        return self._of_twin(lambda fork: fork.shard_means(shard, most))

    def twin_report(self) -> TwinReport:
        """See `Incubation`."""
        digest = self._of_twin(RemoteFork.weights_sha256)
        return TwinReport(steps=self._twin_steps, weights_sha256=digest)

    def state(self, fence: int) -> dict[str, Any]:  # Any: see `Incubation`
        """See `Incubation`. This call waits until the twin has trained to this fence."""
        self._settle_twin()
        origin = self._began[2] if self._began is not None and self._began[0].fence != fence else None
        twin = self._snapshot_of(self._twin) if self._twin is not None else None
        return {"twin": twin, "twin_steps": self._twin_steps, "origin": origin}

    def restore(self, state: Mapping[str, Any]) -> None:  # Any: see `Incubation`
        """See `Incubation`. This call waits for the end of all running work."""
        self.abandon()
        self._twin_steps = state["twin_steps"]
        if (twin := state["twin"]) is not None:
            self._twin = KeptFork(self._new_fork(twin), twin)
            self._twin.fork.make()

    def abandon(self) -> None:
        """Give up the running tournament and every fork, including the twin. Wait for the end of all running work."""
        if self._undone():
            self._ask_the_living("abandon", True, group="ctl")
            while running := self._undone():  # running work may start more work
                wait(running)
            self._ask_the_living("abandon", False, group="ctl")
        self._pending = self._began = self._control = self._winner = self._twin = self._twin_ahead = None
        self._field = self._origin = None
        self._ask_the_living("close_all")
        self._open = []

    def close(self) -> None:
        """Accept no more work. Running work continues until it is done or its manager's process ends."""
        for pool in (self._order, self._work):
            pool.shutdown(wait=False)  # no future is cancelled, because a thread that waits for it would wait forever

    def join(self) -> None:
        """Wait for the end of all running work. Call it after `close`, when the managers' processes have ended."""
        for pool in (self._order, self._work):
            pool.shutdown(wait=True)

    def _run(
        self, order: IncubationOrder, weights: Weights, snapshot: SnapshotRef, field: Field[RemoteFork] | None
    ) -> Ended:
        fields = [field] if field is not None and not any(entry.fork.is_lost for entry in field.everyone) else []

        def tournament() -> Ended:
            kept = fields.pop() if fields else None  # after a death the forks train again from the snapshot
            return run_tournament(order, weights, self._fork, snapshot, self._together, field=kept)

        with span("kasmina incubate", role="conductor", forks=len(order.plans), order_id=order.order_id):
            return self._repeated(tournament, self._clear)

    def _clear(self) -> None:
        """Prepare the repetition of a tournament.

        Wait until the other managers have finished their work on the tournament. Then close the forks of the
        tournament.
        """
        self._settle_pieces()
        for manager in self._managers.values():
            with suppress(ActorLost):  # the next call to this manager raises the error again
                self._close(manager, self._open)
        self._open = []

    def _settle_pieces(self) -> None:
        wait(self._pieces)

    def _fork(self, snapshot: SnapshotRef) -> RemoteFork:
        self._open.append(self._new_fork(snapshot))
        return self._open[-1]

    def _new_fork(self, snapshot: SnapshotRef) -> RemoteFork:
        number, managers = next(self._numbers), tuple(self._managers.values())
        return RemoteFork(managers[number % len(managers)], f"fork-{number}", snapshot)

    def _together(self, pieces: Sequence[Callable[[], T]]) -> list[T]:
        """See `Together`. Each piece waits for its manager in a separate thread."""
        started = [self._start(self._work, piece) for piece in pieces]
        self._pieces = [*started]
        for future in as_completed(started):  # so that the earliest error is raised
            future.result()
        return [future.result() for future in started]

    def _close(self, manager: Remote, forks: Sequence[RemoteFork]) -> None:
        """Close the forks that are in this manager's present process."""
        process = manager.process
        if names := [fork.name for fork in forks if fork.process is process and fork.is_made]:
            manager.ask("close", names, process=process)

    # -- deaths ------------------------------------------------------------------------------------------------------

    def _repeated(self, work: Callable[[], T], clear: Callable[[], None] = lambda: None) -> T:
        """Do work with managers. If a manager dies meanwhile and is replaced, do the work again from its beginning.

        Args:
            clear: Function that is called before the work is repeated.

        Raises:
            ActorLost: a manager died and was not replaced alone, or another actor died.
            RestartIntensityExceeded: a manager died too often.
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

    def _of(self, kept: KeptFork, ask: Callable[[RemoteFork], T]) -> T:
        return self._repeated(lambda: kept.ask(ask, self._new_fork))

    def _train_twin(self, twin: KeptFork, step: int) -> tuple[float, ...]:
        losses = self._of(twin, lambda fork: fork.train_to(step))
        twin.step = step
        return losses

    def _snapshot_of(self, twin: KeptFork) -> SnapshotRef:
        self._of(twin, lambda fork: fork.manager.check())
        twin.origin = twin.step = None  # frees the memory of the old snapshot before a new snapshot is made
        twin.origin = twin.fork.snapshot()
        return twin.origin

    def _ask_the_living(self, method: str, *arguments: object, group: str | None = None) -> None:
        """Call a method of every living manager. Dead managers are skipped; `RayCrew.mend` replaces them."""
        for manager in self._managers.values():
            with suppress(ActorLost):
                manager.ask(method, *arguments, group=group)

    def _settle_twin(self) -> None:
        if self._twin_ahead is not None:
            self._twin_steps += len(self._twin_ahead.result())
            self._twin_ahead = None

    def _start(self, pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: object) -> Future[T]:
        """Run work in a pool, within the current trace."""
        future = pool.submit(contextvars.copy_context().run, work, *arguments)
        with self._running_lock:
            self._running = [*(one for one in self._running if not one.done()), future]
        return future

    def _undone(self) -> list[Future[Any]]:
        with self._running_lock:
            return [future for future in self._running if not future.done()]
