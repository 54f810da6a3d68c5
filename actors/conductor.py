"""Brings a run's actors up, hands their handles to the line, and ends them all. The line itself is `esper.line.Line`.

Nothing is left behind: whatever way a run ends, every process, socket, folder and shared-memory file of it is gone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from actors import rooms
from actors.bootstrap import EmbeddedRay, await_ready, end, spawn, uninterrupted
from actors.handles import Remote
from actors.hearing import Hearing, emergency_word
from actors.nursery import RemoteNursery
from actors.shell import Birth, Shell
from actors.source import SentProspect
from actors.supervision import ChildSpec, Life, Strategy, Supervisor
from actors.typed import EmergencyHandle, KasminaHandle, TamiyoHandle, TolariaHandle
from esper import faults
from esper.clock import SystemClock
from esper.conducting import BringUp
from esper.config import RunConfig
from esper.emergency.word import EmergencyWord
from esper.errors import ActorLost, EsperError
from esper.leyline.signals import EmergencySignal
from esper.line import Rooms
from esper.prospect import Prospect
from esper.recovery import Lost
from esper.rooms import RunKey
from esper.run_directory import faults_file, telemetry_folder
from esper.telemetry.context import span

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
        roles |= {f"manager-{number}": "kasmina" for number in range(config.growth.managers)}
        roles["tamiyo-spare"] = "tamiyo"
    return roles


def fault_points(config: RunConfig) -> dict[str, set[str]]:
    """The fault points that each process of a run with this config passes, by its name."""
    points = {name: {f"{role}.start"} for name, role in actor_roles(config).items()}
    points[rooms.CONDUCTOR] = {point for point in faults.POINTS if point.startswith("conductor.")}
    points["emergency"] |= {"emergency.pending", "emergency.publish"}
    points["tolaria"] |= {"tolaria.round", "tolaria.step", "tolaria.save"}
    if config.growth.enabled:
        points["tolaria"] |= {"tolaria.apply"}
        points["tamiyo"] |= {"tamiyo.decide"}
        points["kasmina"] |= {"kasmina.receive"}
        for number in range(config.growth.managers):
            points[f"manager-{number}"] |= {"kasmina.step"}
    return points


@dataclass
class Company:
    """The actors of one run."""

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
        self._begun = Counter[tuple[str, int]]()  # how often each actor was, in each generation
        self._died_starting: list[ActorLost] = []
        self.supervisor = Supervisor(specs, config.supervision, config.failure_policy, SystemClock())

    def births(self, generation: int) -> dict[str, Birth]:
        """Every actor of the run, by name."""
        config, key, word = self.prospect.config, replace(self.key, generation=generation), self.word.path
        unsigning = replace(key, secret=b"")  # only who signs commands and who checks them has the secret
        arguments: dict[str, tuple[Callable[..., Any], tuple[object, ...]]] = {
            "emergency": (rooms.emergency, (config.emergency.capacity, word, key.generation)),
            "tolaria": (rooms.tolaria, (self.sent, unsigning, word)),
            "tamiyo": (rooms.tamiyo, (self.sent, key)),
            "tamiyo-spare": (rooms.tamiyo, (self.sent, key)),
            "kasmina": (rooms.kasmina, (self.sent, key)),
        }
        manager = (rooms.manager, (self.sent, unsigning, word))
        return {
            name: self._birth(key, role, name, *arguments.get(name, manager))
            for name, role in actor_roles(config).items()
        }

    def start(self) -> None:
        """Start all actors side by side and wait until each is up; if one is not, none is left.

        Raises:
            EsperError: what a constructor raised.
            PlacementUnavailable: an actor was not up within the start deadline.
            RestartIntensityExceeded: one died again and again.
        """
        try:
            self._fill(self.key.generation)
        except BaseException:
            with uninterrupted():
                self.end()
            raise

    def lost(self, error: EsperError, fence: int | None) -> Lost:
        """Who died: whoever `error` came from, and others that nobody was asking.

        Raises:
            EsperError: `error` itself, if it is no death that a restart answers.
            RestartIntensityExceeded: from the death that was one too many.
        """
        if error.actor not in self.remotes:
            raise error
        self.supervisor.fence_passed(fence or 0)
        deaths: dict[str, EsperError] = {error.actor: error}
        for name, remote in self.remotes.items():
            try:
                remote.check()
            except ActorLost as found:
                deaths.setdefault(name, found)
        lives = {life.name: life for life in self.supervisor.lives()}
        for name, death in deaths.items():
            self.supervisor.died(lives[name], death)
        died = [at for at in (self.remotes[name].died_at() for name in deaths) if at is not None]
        return Lost({name: self.remotes[name].role for name in deaths}, min(died, default=None))

    def revive(self, generation: int, nursery: RemoteNursery) -> None:
        """Start successors of those that died, and have all others refuse what comes from an older generation.

        What the nursery has begun ends before.

        Raises:
            EsperError: what the constructor of one raised.
            PlacementUnavailable: one was not up within the start deadline.
            RestartIntensityExceeded: one died again and again.
        """
        nursery.abandon()
        self._fill(generation)
        for remote in self.remotes.values():
            if remote.generation < generation:
                remote.rebind(generation)
        EmergencyHandle(self.remotes["emergency"]).rebind(generation)

    def died_starting(self) -> tuple[ActorLost, ...]:
        """Deaths of those who were being started, and then were started again, since the last call."""
        told, self._died_starting = tuple(self._died_starting), []
        return told

    def _fill(self, generation: int) -> None:
        """Start all that are due, again where one dies meanwhile."""
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
        due, spare = {life.name: life for life in lives}, "tamiyo-spare"
        if "tamiyo" not in due or spare in due or not {"tamiyo", spare} <= self.remotes.keys():
            return list(lives)
        self.remotes["tamiyo"].succeed(self.remotes[spare])
        self.supervisor.started(due.pop("tamiyo"))
        return [*due.values(), *(life for life in self.supervisor.lives() if life.name == spare)]

    def _start(self, lives: Sequence[Life], generation: int) -> tuple[dict[str, Remote], dict[str, ActorLost]]:
        """Start actors side by side. Returns those that are up and the deaths of others.

        Raises:
            EsperError: the constructor of one raised; none of them is left.
            PlacementUnavailable: one was not up within the start deadline; none of them is left.
        """
        ray_config, births, began_s = self.prospect.config.ray, self.births(generation), time.monotonic()
        begun: dict[Life, ActorHandle[Shell]] = {}
        up: dict[str, Remote] = {}
        died: dict[str, ActorLost] = {}
        try:
            for life in lives:
                self._begun[life.name, generation] += 1
                begun[life] = spawn(births[life.name], self._begun[life.name, generation])
            for life, actor in begun.items():
                birth = births[life.name]
                try:
                    with span("await actor", role="conductor", actor=birth.name):
                        pid = await_ready(birth, actor, began_s, ray_config.start_deadline_s)
                except ActorLost as death:
                    death.actor = life.name
                    died[life.name] = death
                    continue
                up[life.name] = Remote(birth, actor, pid, patience_s=ray_config.collective_timeout_s, look=self.look)
                self.supervisor.started(life)
        except BaseException:
            with uninterrupted():
                for actor in begun.values():
                    end(actor)
            raise
        return up, died

    def end(self) -> None:
        """End every actor, the last started first, each also where ending another one failed; then wait for all.

        Also those that are said to be dead, which may be alive.
        """
        names = dict.fromkeys((*(life.name for life in self.supervisor.stop()), *self.remotes))
        remotes = [self.remotes[name] for name in names if name in self.remotes]
        with ExitStack() as each:
            for remote in reversed(remotes):
                each.callback(remote.await_end)
            for remote in reversed(remotes):
                each.callback(remote.kill)

    def check(self) -> None:
        """Raises: ActorLost: the process of an actor has ended, also of one that nobody is asking anything."""
        for remote in self.remotes.values():
            remote.check()

    def counted(self, name: str) -> int:
        """Total of a counter over all actors, as they last reported it."""
        return sum(remote.counters.get(name, 0) for remote in self.remotes.values())

    def _gpu_share(self) -> float:
        """A GPU for each process that computes; where there are fewer, what is there in equal shares."""
        there: float = ray.cluster_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        return min(1.0, there / (1 + self.prospect.config.growth.managers))

    def _birth(
        self, key: RunKey, role: str, name: str, build: Callable[..., Any], arguments: tuple[object, ...]
    ) -> Birth:
        config = self.prospect.config
        works = name == "tolaria" or name.startswith("manager-")
        return Birth(
            role=role,
            name=name,
            run_id=key.run_id,
            generation=key.generation,
            cpus=1.0 if works else 0.0,
            gpus=self._gpu_share() if works and config.run.device.startswith("cuda") else 0.0,
            threads=config.run.threads,
            telemetry_folder=telemetry_folder(self.path).absolute() if config.telemetry.enabled else None,
            build=build,
            arguments=arguments,
            faults=config.faults,
            faults_file=faults_file(self.path, self.key.generation).absolute(),
        )


def bring_up(sent: SentProspect, embedded: EmbeddedRay | None = None) -> BringUp:
    """How `esper.conducting.Conductor` brings up a run of what is sent: on `embedded`, or on a Ray of its own."""

    @contextmanager
    def up(prospect: Prospect, key: RunKey, path: Path) -> Iterator[Rooms]:
        stack = ExitStack()
        try:
            ours = embedded or stack.enter_context(EmbeddedRay(slots=1 + prospect.config.growth.managers))
            word = stack.enter_context(emergency_word())
            company = Company(prospect, key, sent, path, word, ours.check)
            company.start()
            nursery = RemoteNursery([r for name, r in company.remotes.items() if name.startswith("manager-")])
            stack.callback(nursery.join)
            stack.callback(company.end)
            stack.callback(nursery.close)
            hearing = Hearing(EmergencyHandle(company.remotes["emergency"]))

            def heard() -> tuple[EmergencySignal, ...]:
                ours.check()
                company.check()
                return hearing.take()

            with hearing.explaining():
                yield Rooms(
                    trainer=TolariaHandle(company.remotes["tolaria"]),
                    tamiyo=TamiyoHandle(company.remotes["tamiyo"], prospect.config.policy.deadline_s),
                    kasmina=KasminaHandle(company.remotes["kasmina"]),
                    incubator=nursery,
                    counted=company.counted,
                    signals=heard,
                    lost=company.lost,
                    revive=lambda generation: company.revive(generation, nursery),
                    died_starting=company.died_starting,
                    shared=lambda snapshot: [ray.put(snapshot)],
                )
        finally:
            with uninterrupted():
                stack.close()

    return up
