"""The `Crew` of a run on Ray: replaces actors that have died, and ends all actors.

`supervision.py` decides whether a death leads to a restart. The line decides when the whole run goes back.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import ray

from actors.actor_start import ActorStart
from actors.component_handles import emergency_handle
from actors.end_signals import uninterrupted
from actors.remote import Remote
from actors.remote_incubator import RemoteIncubator
from actors.run_actors import SPARE, RunActors, manager_names
from actors.shell import SnapshotRef
from actors.supervision import Life, Supervisor
from esper.archive.recovery_record import Lost, Recovery, Stopwatch
from esper.errors import ActorLost, EsperError, TrainerRankLost, all_notes
from esper.ground.clock import SystemClock
from esper.ground.closing import noted_on
from esper.telemetry.batches import FLUSH_S
from esper.telemetry.context import span
from esper.telemetry.events import Severity, severe
from esper.telemetry.metric_snapshot import MetricSnapshot
from esper.telemetry.metric_table import Labels
from esper.telemetry.setup import check_environment

T = TypeVar("T")

FLUSHED_WITHIN_S = 2 * FLUSH_S + 3
"""Most seconds that the end of a run waits for the actors' export of spans and severe events."""


class RayCrew:
    """See `Crew` for the call order. `start` is the first call, `end` the last.

    Any thread may call `replace_alone`. Only the line's thread may call the other methods.

    The lock `_changing` guards reports of deaths and starts of actors: `_supervisor`, `remotes`, the process of each
    remote, and `_start`. Items are added to `_died_starting` and `_replaced` under the lock. The line's thread removes
    them without the lock. Only the line's thread writes `_whole`, `_generation` and `_fence`, each by one assignment.
    When the whole run goes back, this thread sets `_whole` under the lock. So a replacement that has begun ends first,
    and no other replacement begins. `end` gives up starts without the lock, because the thread with the lock may be
    waiting for the starts.
    """

    def __init__(self, actors: RunActors, look: Callable[[], None]) -> None:
        """Make the crew. `start` starts the actors. `look` raises if one of Ray's own processes has died."""
        config = actors.config
        self.remotes: dict[str, Remote] = {}
        """Name of an actor -> its handle. The handle stays the same object when the actor's process is replaced."""
        self._actors, self._look = actors, look
        self._supervisor = Supervisor(actors.children(), config.supervision, config.failure_policy, SystemClock())
        self._start = ActorStart(config.ray, self._supervisor, look)
        self._changing = threading.RLock()
        self._whole = True
        """True while the whole run is started, restored or ended. During this time, no actor is replaced alone."""
        self._generation, self._fence = actors.key.generation, 0
        self.patience_s = config.ray.collective_timeout_s
        """Seconds without progress after which an actor is ended."""
        self._died_starting = deque[ActorLost]()
        self._replaced = deque[tuple[Lost, Recovery]]()
        self._incubator: RemoteIncubator | None = None
        self._exports = check_environment().exports

    @property
    def _replaceable(self) -> tuple[Remote, ...]:
        """The actors that can be replaced while all other actors continue: the managers, the spare, and the emergency
        actor. The queue of the emergency actor is on disk.
        """
        names = (*manager_names(self._actors.config), SPARE, "emergency")
        return tuple(self.remotes[name] for name in names if name in self.remotes)

    # -- starting ----------------------------------------------------------------------------------------------------

    def start(self) -> RemoteIncubator:
        """Start all actors side by side and wait until each is up. If an actor fails, end all actors.

        Returns:
            The incubator. Its forks are in this run's managers.

        Raises:
            EsperError: the error of an actor's constructor.
            PlacementUnavailable: an actor was not up within the start deadline.
            RestartIntensityExceeded: an actor died too often while it started.
        """
        try:
            self._fill(self._generation)
        except BaseException as error:
            with uninterrupted(), noted_on(error, "ending the actors"):
                self.end()
            raise
        managers = [self.remotes[name] for name in manager_names(self._actors.config)]
        self._incubator, self._whole = RemoteIncubator(managers, self.replace_alone), False
        return self._incubator

    def _fill(self, generation: int) -> None:
        """Start every actor that is due. If an actor dies during its start, start it again."""
        with self._changing:
            while (plan := self._supervisor.take_plan()) is not None:
                for life in reversed(plan.start):  # an actor may be alive although its death was reported
                    if life.name in self.remotes:
                        self.remotes[life.name].end()
                specs, lives = self._actors.specs(generation), self._not_spared(plan.start)
                up, died = self._start.start({life: specs[life.name] for life in lives})
                for name, remote in up.items():
                    if name in self.remotes:
                        self.remotes[name].switch_to(remote)
                    else:
                        self.remotes[name] = remote
                for life in lives:
                    if life.name in died:
                        self._supervisor.start_failed(life, died[life.name])
                        self._died_starting.append(died[life.name])

    def _not_spared(self, lives: Sequence[Life]) -> list[Life]:
        """If a policy's actor is due and a spare is up, let the spare replace it.

        Return the actors that must be started. If the spare was used, a new spare must be started, too.
        """
        due = {life.name: life for life in lives}
        if "tamiyo" not in due or SPARE in due or not {"tamiyo", SPARE} <= self.remotes.keys():
            return list(lives)
        self.remotes["tamiyo"].switch_to(self.remotes[SPARE])
        self._supervisor.started(due.pop("tamiyo"))
        return [*due.values(), *(life for life in self._supervisor.lives() if life.name == SPARE)]

    # -- the whole run goes back -------------------------------------------------------------------------------------

    def lost(self, error: EsperError, fence: int | None) -> Lost:
        """See `Crew`. Deaths of other actors that no caller has noticed are reported, too."""
        if error.actor not in self.remotes:
            raise error
        with self._changing, span("actor lost", role="conductor", actor=error.actor):
            self._whole, self._fence = True, fence or 0
            others = self._dead(self.remotes.values(), but=error.actor)
            return self._reported({**self._news(error), **others}, self._fence)

    def revive(self, generation: int) -> None:
        """See `Crew`. The generation in the emergency word changes after every actor is up.

        Raises:
            EsperError: the error of an actor's constructor.
            PlacementUnavailable: an actor was not up within the start deadline.
            RestartIntensityExceeded: an actor died too often while it started.
        """
        assert self._incubator is not None, "`start` comes first"
        with self._changing:
            self._whole = True
        self._incubator.abandon()
        self._fill(generation)
        for remote in self.remotes.values():
            if remote.generation < generation:
                remote.rebind(generation)
        self._generation, self._whole = generation, False
        emergency_handle(self.remotes["emergency"], self.patience_s).rebind(generation)

    # -- one actor is replaced alone ---------------------------------------------------------------------------------

    def replace_alone(self, death: ActorLost) -> None:
        """Replace a dead actor while all other actors continue. If the actor was replaced already, return.

        Any thread may call this method.

        Raises:
            ActorLost: the actor must not be replaced alone, or the whole run goes back or ends. The error is `death`.
            EsperError, PlacementUnavailable, RestartIntensityExceeded: see `start`.
        """
        watch = Stopwatch(death)
        with self._changing:
            if not (news := self._news(death)):
                return
            if self._whole:
                raise death
            fence = self._fence
            lost = self._reported({**news, **self._dead(self._replaceable, but=death.actor)}, fence)
            with span("actor restart", role="conductor", actor=", ".join(lost.roles)):
                watch.lap("decide")
                self._fill(self._generation)
                watch.lap("start")
            self._replaced.append((lost, watch.alone(lost, fence, self._generation)))

    def mend(self) -> None:
        """See `Crew`. Raises: ActorLost: see `Crew`; or one of Ray's own processes has died."""
        self._look()
        for remote in self.remotes.values():
            try:
                remote.check()
            except ActorLost as death:
                if remote not in self._replaceable:
                    raise
                self.replace_alone(death)

    def passed(self, fence: int) -> None:
        """See `Crew`."""
        self._fence = fence

    # -- reports of deaths -------------------------------------------------------------------------------------------

    def _news(self, death: EsperError) -> dict[str, EsperError]:
        """Return a mapping from the actor's name to its death. Empty: the process of the actor was replaced since the
        death.
        """
        if death.process not in (0, self.remotes[death.actor].pid):
            return {}
        return {death.actor: death}

    def _dead(self, remotes: Iterable[Remote], but: str) -> dict[str, EsperError]:
        """Return a mapping from the name of each actor in `remotes` that has died to its death."""
        deaths: dict[str, EsperError] = {}
        for remote in remotes:
            try:
                if remote.name != but:
                    remote.check()
            except ActorLost as found:
                deaths[remote.name] = found
        return deaths

    def _reported(self, deaths: Mapping[str, EsperError], fence: int) -> Lost:
        """Report deaths to the supervisor. Raises: BaseException: the supervisor's error, if the run must stop."""
        self._supervisor.fence_passed(fence)
        lives = {life.name: life for life in self._supervisor.lives()}
        for name, death in deaths.items():
            if isinstance(death, TrainerRankLost):
                severe("trainer_rank_lost", Severity.ERROR, rank=name, pid=death.process, detail=str(death))
            self._supervisor.died(lives[name], death)
        died = [at for at in (self.remotes[name].died_at() for name in deaths) if at is not None]
        notes = tuple(note for death in deaths.values() for note in all_notes(death))
        return Lost({name: self.remotes[name].role for name in deaths}, min(died, default=None), notes)

    # -- queries of the line -----------------------------------------------------------------------------------------

    def metrics(self) -> MetricSnapshot:
        """See `Crew`. The gauge `esper.actor.up` has the number of living processes of each role."""
        found, up = MetricSnapshot(), Counter[Labels]()
        for remote in tuple(self.remotes.values()):
            found = found.plus(remote.metrics)
            up[(("role", remote.role),)] += int(remote.process.is_there)
        return found.plus(MetricSnapshot(gauges={"esper.actor.up": up}))

    def died_starting(self) -> tuple[ActorLost, ...]:
        """See `Crew`."""
        return _emptied(self._died_starting)

    def replaced(self) -> tuple[tuple[Lost, Recovery], ...]:
        """See `Crew`."""
        return _emptied(self._replaced)

    def shared(self, snapshot: Any) -> SnapshotRef:  # Any: a HostSnapshot
        """See `Crew`. The reference is in a list, so that Ray passes it on without fetching the snapshot."""
        return [ray.put(snapshot)]

    # -- the end -----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """End every actor, the last started first, and wait for their ends.

        If one end fails, the other actors are still ended. Actors that were reported dead are ended, too, because they
        may be alive. Actors that another thread is starting are ended, too.
        """
        self._whole = True
        self._start.give_up()
        with self._changing:
            names = dict.fromkeys((*(life.name for life in self._supervisor.stop()), *self.remotes))
            remotes = [self.remotes[name] for name in names if name in self.remotes]
        with ExitStack() as each:
            for remote in reversed(remotes):
                each.callback(remote.process.await_end)
            for remote in reversed(remotes):
                each.callback(remote.process.kill)
            if remotes and self._exports:
                ray.wait([remote.flush() for remote in remotes], num_returns=len(remotes), timeout=FLUSHED_WITHIN_S)


def _emptied(records: deque[T]) -> tuple[T, ...]:
    """Remove and return all items. Another thread may add items meanwhile."""
    return tuple(records.popleft() for _ in range(len(records)))
