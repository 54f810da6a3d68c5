"""The actors of one run: which there are, how each is started, replaced when it has died, and ended.

When that is to be done it is told by the line; whether it may be is decided by `supervision.py`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle

from actors import desk, hosted_rooms
from actors.embedded_ray import RAY, await_ready, end, spawn, uninterrupted
from actors.remote import Remote
from actors.shell import ActorSpec, Shell
from actors.supervision import ChildSpec, Life, Strategy, Supervisor
from actors.task_transport import SentProspect
from esper.archive.recovery_record import Lost, Recovery, Stopwatch
from esper.archive.run_directory import faults_file, telemetry_folder
from esper.config.joined import RunConfig
from esper.emergency.word import EmergencyWord
from esper.errors import ActorLost, EsperError, TrainerRankLost, all_notes
from esper.ground.clock import SystemClock
from esper.ground.closing import noted_on
from esper.setup.assembly import RunKey
from esper.setup.survey import Prospect
from esper.telemetry.context import span
from esper.telemetry.events import Severity, severe

T = TypeVar("T")

SPARE = "tamiyo-spare"
"""A process of the policy that is up and knows nothing of the run yet."""

STRATEGIES = {
    "emergency": Strategy.ONE_FOR_ONE,
    "tolaria": Strategy.ONE_FOR_ALL,  # its ranks restart as one
    "tamiyo": Strategy.ONE_FOR_ONE,
    "kasmina": Strategy.ONE_FOR_ONE,
}


def actor_roles(config: RunConfig) -> dict[str, str]:
    """The role of each actor that a run with this config has, by the actor's name."""
    roles = {"emergency": "emergency", "tolaria": "tolaria", "tamiyo": "tamiyo", "kasmina": "kasmina"}
    if config.growth.enabled:
        roles |= dict.fromkeys(manager_names(config), "kasmina")
        roles[SPARE] = "tamiyo"
    return roles


def manager_names(config: RunConfig) -> tuple[str, ...]:
    """The actors that incubate."""
    return tuple(f"manager-{number}" for number in range(config.growth.managers)) if config.growth.enabled else ()


@dataclass
class Company:
    """The actors of one run. `replace_alone` may be called from any thread, all else from one, the line's.

    `_changing` guards every report of a death and every start: the supervisor, `remotes` and the process that each of
    them asks, and `_attempts` change only while it is held. `_died_starting` and `_replaced` are filled while it is
    held, and emptied by the line's thread without it. The line's thread alone writes `_all_change`, `_generation` and
    `_fence`, each by one assignment; it holds the lock to set `_all_change` when the whole run goes back, so that a
    replacement that has begun ends first and none begins after it. `end` reads and writes `_ending` and `_begun`
    without the lock: it must reach the processes that a thread which holds the lock is still waiting for.
    """

    prospect: Prospect
    key: RunKey
    sent: SentProspect
    path: Path
    word: EmergencyWord
    look: Callable[[], None]
    """Raises if nobody can answer any more."""
    remotes: dict[str, Remote] = field(default_factory=dict)
    """By name; each stays the same object, whoever it asks."""

    def __post_init__(self) -> None:
        config = self.prospect.config
        specs = [ChildSpec(name, role, role, STRATEGIES[role]) for name, role in actor_roles(config).items()]
        self.supervisor = Supervisor(specs, config.supervision, config.failure_policy, SystemClock())
        self._changing = threading.RLock()
        """Held by whoever says who died, or starts somebody."""
        self._all_change = True
        """The run is being started, taken back or ended as a whole: nobody is replaced alone."""
        self._ending = False
        self._generation, self._fence = self.key.generation, 0
        self._begun: list[ActorHandle[Shell]] = []
        """Whoever is being started."""
        self._attempts = Counter[tuple[str, int]]()  # how often each actor was begun, in each generation
        self._died_starting = deque[ActorLost]()
        self._replaced = deque[tuple[Lost, Recovery]]()

    @property
    def managers(self) -> tuple[Remote, ...]:
        """Those that incubate."""
        return tuple(self.remotes[name] for name in manager_names(self.prospect.config))

    @property
    def stateless(self) -> tuple[Remote, ...]:
        """Those that hold nothing of the run which could not be made again: any of them is replaced alone."""
        return (*self.managers, *(remote for name, remote in self.remotes.items() if name == SPARE))

    # -- starting, and starting again --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all actors side by side and wait until each is up; if one is not, none is left.

        Raises:
            EsperError: what a constructor raised.
            PlacementUnavailable: an actor was not up within the start deadline.
            RestartIntensityExceeded: one died again and again.
        """
        try:
            self._fill(self._generation)
        except BaseException as error:
            with uninterrupted(), noted_on(error, "ending the actors"):
                self.end()
            raise
        self._all_change = False

    def lost(self, error: EsperError, fence: int | None) -> Lost:
        """Who died: whoever `error` came from, and others that nobody was asking. `revive` is to follow.

        Raises:
            EsperError: `error` itself, if it is no death that a restart answers.
            RestartIntensityExceeded: from the death that was one too many.
        """
        if error.actor not in self.remotes:
            raise error
        with self._changing:
            self._all_change, self._fence = True, fence or 0
            others = self._dead(self.remotes.values(), but=error.actor)
            return self._told({**self._news(error), **others}, self._fence)

    def revive(self, generation: int, abandon: Callable[[], None]) -> None:
        """Start successors of those that died, and have all others refuse what comes from an older generation.

        Args:
            abandon: Ends what the managers have begun; called before.

        Raises:
            EsperError: what the constructor of one raised.
            PlacementUnavailable: one was not up within the start deadline.
            RestartIntensityExceeded: one died again and again.
        """
        with self._changing:
            self._all_change = True
        abandon()
        self._fill(generation)
        for remote in self.remotes.values():
            if remote.generation < generation:
                remote.rebind(generation)
        self._generation, self._all_change = generation, False

    def replace_alone(self, death: ActorLost) -> None:
        """Have a successor in the place of one that died, while all others go on; from any thread.

        If there is one already, nothing is done.

        Raises:
            ActorLost: `death`: no restart answers it, or the whole run is being taken back or ended.
            EsperError, PlacementUnavailable, RestartIntensityExceeded: as `revive` does.
        """
        watch = Stopwatch(death)
        with self._changing:
            if not (news := self._news(death)):
                return
            if self._all_change:
                raise death
            fence = self._fence
            lost = self._told({**news, **self._dead(self.stateless, but=death.actor)}, fence)
            with span("actor restart", role="conductor", actor=", ".join(lost.roles)):
                watch.lap("decide")
                self._fill(self._generation)
                watch.lap("start")
            self._replaced.append((lost, watch.alone(lost, fence, self._generation)))

    def passed(self, fence: int) -> None:
        """The run has passed a fence."""
        self._fence = fence

    def mend(self) -> None:
        """Replace each that can be replaced alone and died while nobody asked it.

        Raises:
            EsperError: as `replace_alone` does.
            ActorLost: another actor died while nobody asked it.
        """
        for remote in self.remotes.values():
            try:
                remote.check()
            except ActorLost as death:
                if remote not in self.stateless:
                    raise
                self.replace_alone(death)

    def died_starting(self) -> tuple[ActorLost, ...]:
        """Deaths of those who were being started, and then were started again, since the last call."""
        return _taken(self._died_starting)

    def replaced(self) -> tuple[tuple[Lost, Recovery], ...]:
        """Who was replaced alone since the last call, and what it took."""
        return _taken(self._replaced)

    def _news(self, death: EsperError) -> dict[str, EsperError]:
        """The actor and its death, if it has no successor yet."""
        if death.process not in (0, self.remotes[death.actor].pid):
            return {}
        return {death.actor: death}

    def _dead(self, remotes: Iterable[Remote], but: str) -> dict[str, EsperError]:
        """Who else has died, and of what."""
        deaths: dict[str, EsperError] = {}
        for remote in remotes:
            try:
                if remote.name != but:
                    remote.check()
            except ActorLost as found:
                deaths[remote.name] = found
        return deaths

    def _told(self, deaths: Mapping[str, EsperError], fence: int) -> Lost:
        """Tell the supervisor. Raises: BaseException: its verdict is that the run must stop."""
        self.supervisor.fence_passed(fence)
        lives = {life.name: life for life in self.supervisor.lives()}
        for name, death in deaths.items():
            if isinstance(death, TrainerRankLost):
                severe("trainer_rank_lost", Severity.ERROR, rank=name, pid=death.process, detail=str(death))
            self.supervisor.died(lives[name], death)
        died = [at for at in (self.remotes[name].died_at() for name in deaths) if at is not None]
        said = tuple(note for death in deaths.values() for note in all_notes(death))
        return Lost({name: self.remotes[name].role for name in deaths}, min(died, default=None), said)

    def _fill(self, generation: int) -> None:
        """Start all that are due, again where one dies meanwhile."""
        with self._changing:
            while (plan := self.supervisor.take_plan()) is not None:
                for life in reversed(plan.start):  # what is said to be dead may be alive, and must not stay so
                    if life.name in self.remotes:
                        self.remotes[life.name].end()
                lives = self._stepped_in(plan.start)
                started, died = self._start(lives, generation)
                for name, remote in started.items():
                    if name in self.remotes:
                        self.remotes[name].succeed(remote)
                    else:
                        self.remotes[name] = remote
                for life in lives:
                    if life.name in died:
                        self.supervisor.start_failed(life, died[life.name])
                        self._died_starting.append(died[life.name])

    def _stepped_in(self, lives: Sequence[Life]) -> list[Life]:
        """Put the spare in the place of a policy that is to be started; who is then to be started."""
        due = {life.name: life for life in lives}
        if "tamiyo" not in due or SPARE in due or not {"tamiyo", SPARE} <= self.remotes.keys():
            return list(lives)
        self.remotes["tamiyo"].succeed(self.remotes[SPARE])
        self.supervisor.started(due.pop("tamiyo"))
        return [*due.values(), *(life for life in self.supervisor.lives() if life.name == SPARE)]

    def _start(self, lives: Sequence[Life], generation: int) -> tuple[dict[str, Remote], dict[str, ActorLost]]:
        """Start actors side by side. Returns those that are up and the deaths of others.

        Raises:
            EsperError: the constructor of one raised; none of them is left.
            PlacementUnavailable: one was not up within the start deadline; none of them is left.
        """
        ray_config, specs, began_s = self.prospect.config.ray, self.specs(generation), time.monotonic()
        up: dict[str, Remote] = {}
        died: dict[str, ActorLost] = {}
        begun = self._begun = list[ActorHandle[Shell]]()
        try:
            for life in lives:
                self._attempts[life.name, generation] += 1
                begun.append(spawn(specs[life.name], self._attempts[life.name, generation]))
            if self._ending:  # by another thread, which may have been too early for these
                self._end_begun()
            for life, actor in zip(lives, begun, strict=True):
                spec = specs[life.name]
                try:
                    with span("await actor", role="conductor", actor=spec.name):
                        pid = await_ready(spec, actor, began_s, ray_config.start_deadline_s, self.look)
                except ActorLost as death:
                    if self._ending or death.role == RAY:  # with Ray itself nothing can be started again
                        raise
                    death.actor = life.name
                    died[life.name] = death
                    continue
                except Exception as error:  # whatever its constructor raised: no thread is to try again
                    self.supervisor.start_failed(life, error)
                    raise
                up[life.name] = Remote(spec, actor, pid, patience_s=ray_config.collective_timeout_s, look=self.look)
                self.supervisor.started(life)
        except BaseException as error:
            with uninterrupted(), noted_on(error, "ending the actors that were being started"):
                self._end_begun()
            raise
        finally:
            self._begun = []
        return up, died

    def _end_begun(self) -> None:
        for actor in tuple(self._begun):
            end(actor)

    # -- the end -----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """End every actor, the last started first, each also where ending another one failed; then wait for all.

        Also those that are said to be dead, which may be alive, and who is being started in another thread.
        """
        self._all_change = self._ending = True
        self._end_begun()
        with self._changing:
            names = dict.fromkeys((*(life.name for life in self.supervisor.stop()), *self.remotes))
            remotes = [self.remotes[name] for name in names if name in self.remotes]
        with ExitStack() as each:
            for remote in reversed(remotes):
                each.callback(remote.process.await_end)
            for remote in reversed(remotes):
                each.callback(remote.process.kill)

    # -- asking ------------------------------------------------------------------------------------------------------

    def counted(self, name: str) -> int:
        """Total of a counter over all actors, as they last reported it."""
        return sum(remote.counters.get(name, 0) for remote in self.remotes.values())

    # -- who they are ------------------------------------------------------------------------------------------------

    def specs(self, generation: int) -> dict[str, ActorSpec]:
        """Every actor of the run, by name."""
        config, key, word = self.prospect.config, replace(self.key, generation=generation), self.word.path
        unsigning = replace(key, secret=b"")  # only who signs commands and who checks them has the secret
        arguments: dict[str, tuple[Callable[..., Any], tuple[object, ...]]] = {
            "emergency": (desk.emergency, (config.emergency.capacity, word, key.generation)),
            "tolaria": (hosted_rooms.tolaria, (self.sent, unsigning, word)),
            "tamiyo": (hosted_rooms.tamiyo, (self.sent, key)),
            SPARE: (hosted_rooms.tamiyo, (self.sent, key)),
            "kasmina": (hosted_rooms.kasmina, (self.sent, key)),
        }
        manager = (hosted_rooms.manager, (self.sent, unsigning, word))
        return {
            name: self._spec(key, role, name, *arguments.get(name, manager))
            for name, role in actor_roles(config).items()
        }

    def _gpu_share(self) -> float:
        """A GPU for each process that computes; where there are fewer, what is there in equal shares."""
        there: float = ray.cluster_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        return min(1.0, there / (1 + self.prospect.config.growth.managers))

    def _spec(
        self, key: RunKey, role: str, name: str, build: Callable[..., Any], arguments: tuple[object, ...]
    ) -> ActorSpec:
        config = self.prospect.config
        works = name == "tolaria" or name.startswith("manager-")
        return ActorSpec(
            role=role,
            name=name,
            run_id=key.run_id,
            generation=key.generation,
            cpus=1.0 if works else 0.0,
            gpus=self._gpu_share() if works and config.run.device.startswith("cuda") else 0.0,
            threads=config.run.threads,
            telemetry_folder=telemetry_folder(self.path) if config.telemetry.enabled else None,
            build=build,
            arguments=arguments,
            faults=config.faults,
            faults_file=faults_file(self.path, self.key.generation),
        )


def _taken(told: deque[T]) -> tuple[T, ...]:
    """All that is there, once; another thread may add to it meanwhile."""
    return tuple(told.popleft() for _ in range(len(told)))
