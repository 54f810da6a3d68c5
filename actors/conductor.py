"""Brings a run's actors up, hands their handles to the line, and ends them all. The line itself is `esper.line.Line`.

Nothing is left behind: whatever way a run ends, every process, socket, folder and shared-memory file of it is gone.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from actors import rooms
from actors.bootstrap import EmbeddedRay, await_ready, end, spawn, uninterrupted
from actors.handles import Remote
from actors.nursery import RemoteNursery
from actors.shell import Birth
from actors.source import SentProspect
from actors.typed import EmergencyHandle, KasminaHandle, TamiyoHandle, TolariaHandle
from esper import faults
from esper.conducting import BringUp
from esper.config import RunConfig
from esper.emergency.word import EmergencyWord
from esper.errors import ActorError, EmergencyStop
from esper.leyline.signals import EmergencySignal, Level
from esper.line import Rooms
from esper.prospect import Prospect
from esper.rooms import RunKey
from esper.run_directory import faults_file, telemetry_folder
from esper.telemetry.context import span

SHARED_MEMORY = Path("/dev/shm")


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

    def births(self) -> list[Birth]:
        """Every actor of the run."""
        config, key, word = self.prospect.config, self.key, self.word.path
        unsigning = replace(key, secret=b"")  # only who signs commands and who checks them has the secret
        arguments: dict[str, tuple[Callable[..., Any], tuple[object, ...]]] = {
            "emergency": (rooms.emergency, (config.emergency.capacity, word, key.generation)),
            "tolaria": (rooms.tolaria, (self.sent, unsigning, word)),
            "tamiyo": (rooms.tamiyo, (self.sent, key)),
            "tamiyo-spare": (rooms.tamiyo, (self.sent, key)),
            "kasmina": (rooms.kasmina, (self.sent, key)),
        }
        manager = (rooms.manager, (self.sent, unsigning, word))
        return [
            self._birth(role, name, *arguments.get(name, manager))
            for name, role in actor_roles(config).items()
            if name != rooms.CONDUCTOR
        ]

    def start(self) -> None:
        """Start all actors side by side and wait until each is up; if one is not, none is left.

        Raises:
            EsperError: what a constructor raised.
            PlacementUnavailable: an actor was not up within the start deadline.
        """
        ray_config, began_s, begun = self.prospect.config.ray, time.monotonic(), []
        try:
            for birth in self.births():
                begun.append((birth, spawn(birth)))
            for birth, actor in begun:
                with span("await actor", role="conductor", actor=birth.name):
                    pid = await_ready(birth, actor, began_s, ray_config.start_deadline_s)
                self.remotes[birth.name] = Remote(
                    birth, actor, pid, patience_s=ray_config.collective_timeout_s, look=self.look
                )
        except BaseException:
            with uninterrupted():
                for _, actor in begun:
                    end(actor)
            raise

    def end(self) -> None:
        """End every actor, each of them also where ending another one failed; all at once."""
        with ExitStack() as each:
            for remote in self.remotes.values():
                each.callback(remote.await_end)
            for remote in self.remotes.values():
                each.callback(remote.kill)

    def rebind(self, generation: int, nursery: RemoteNursery) -> None:
        """Have every actor refuse what comes from an older generation, and what the nursery has begun end before."""
        nursery.abandon()
        for remote in self.remotes.values():
            remote.rebind(generation)
        EmergencyHandle(self.remotes["emergency"]).rebind(generation)

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

    def _birth(self, role: str, name: str, build: Callable[..., Any], arguments: tuple[object, ...]) -> Birth:
        config = self.prospect.config
        works = name == "tolaria" or name.startswith("manager-")
        return Birth(
            role=role,
            name=name,
            run_id=self.key.run_id,
            generation=self.key.generation,
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
            word = stack.enter_context(_emergency_word())
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
                    rebind=lambda generation: company.rebind(generation, nursery),
                    shared=lambda snapshot: [ray.put(snapshot)],
                )
        finally:
            with uninterrupted():
                stack.close()

    return up


class Hearing:
    """What the conductor has heard from the emergency queue. A HALT explains the stop that follows it."""

    def __init__(self, desk: EmergencyHandle) -> None:
        self._desk = desk
        self._halt: EmergencySignal | None = None

    def take(self) -> tuple[EmergencySignal, ...]:
        """Signals since the last call, acknowledged."""
        signals = self._desk.pending(rooms.CONDUCTOR)
        for signal in signals:
            self._desk.acknowledge(rooms.CONDUCTOR, signal.signal_id)
            if signal.level is Level.HALT and self._halt is None:
                self._halt = signal
        return signals

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Put the signal into an `EmergencyStop`: the trainer saw only the word."""
        try:
            yield
        except EmergencyStop as stop:
            self._ask_why(stop)
            if self._halt is None:
                raise
            raise EmergencyStop(self._halt.reason, self._halt.signal_id, stop.step) from stop

    def _ask_why(self, stop: EmergencyStop) -> None:
        """Hear what came since the last fence; a stop stays one if nobody can say why any more."""
        try:
            self.take()
        except ActorError as gone:
            stop.add_note(f"the emergency queue could not be asked why: {gone}")


@contextmanager
def _emergency_word() -> Iterator[EmergencyWord]:
    place = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix=f"esper-word-{os.getpid()}-", dir=place))
    path = folder / "word"
    try:
        with EmergencyWord.create(path) as word:
            yield word
    finally:
        path.unlink(missing_ok=True)
        folder.rmdir()
