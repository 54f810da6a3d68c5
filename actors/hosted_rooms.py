"""What each actor that works on a task holds: the room's own object, in the actor's process. It decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.task_transport import SentProspect
from esper.emergency.word import EmergencyWord
from esper.ground.clock import SystemClock
from esper.ground.heartbeat import beat
from esper.kasmina.incubation.incubator import Incubator
from esper.kasmina.registry.registrar import KasminaRegistrar
from esper.leyline.evidence import HostObservation, SampleLosses
from esper.leyline.incubation import Birth
from esper.leyline.ports import Fork
from esper.leyline.reports import GraftPlan, Weights
from esper.leyline.stages import Stage
from esper.setup.assembly import RunKey, make_fork_factory, make_incubator, make_kasmina, make_tamiyo, make_trainer
from esper.tamiyo.service import Tamiyo
from esper.tolaria.trainer import Trainer


def tolaria(sent: SentProspect, key: RunKey, word: Path) -> HostHouse:
    """The live host, which reads the emergency word at every step."""
    return HostHouse(make_trainer(sent.open(), key, EmergencyWord.attach(word).halted))


def tamiyo(sent: SentProspect, key: RunKey) -> Tamiyo:
    """Tamiyo with the config's policy."""
    return make_tamiyo(sent.open(), key, SystemClock())


def kasmina(sent: SentProspect, key: RunKey) -> KasminaRegistrar:
    """Kasmina's registry."""
    return make_kasmina(sent.open(), key, SystemClock())


def manager(sent: SentProspect, key: RunKey, word: Path) -> ForkHouse:
    """A Kasmina manager that incubates; its forks read the emergency word at every step, as the live host does."""
    return ForkHouse(sent, key, EmergencyWord.attach(word).halted)


Reference = list["ray.ObjectRef[Any]"]
"""To a snapshot, in a list so that Ray passes it on unread."""


class HostHouse:
    """The live host in the trainer's process. Snapshots come as references; all else is the trainer's own."""

    def __init__(self, trainer: Trainer, fetch: Callable[[Any], Any] = ray.get) -> None:
        self._trainer, self._fetch = trainer, fetch

    def __getattr__(self, name: str) -> Any:  # Any: as the trainer's
        return getattr(self._trainer, name)

    def save(self, path: Path, rooms: Mapping[str, str], nursery: Mapping[str, Any]) -> None:
        """See `LiveHost`."""
        seen = {name: self._fetch(value[0]) if isinstance(value, list) else value for name, value in nursery.items()}
        self._trainer.save(path, rooms, seen)

    def restore(self, snapshot: Reference, generation: int) -> None:
        """See `LiveHost`."""
        self._trainer.restore(self._fetch(snapshot[0]), generation)


class ForkHouse:
    """Forks by name, in one manager's process. Snapshots come as references that nobody on the way has looked into."""

    def __init__(
        self, sent: SentProspect, key: RunKey, halted: Callable[[], bool], fetch: Callable[[Any], Any] = ray.get
    ) -> None:
        prospect = sent.open()
        self._fetch = fetch
        self._abandoned = False

        def stopped() -> bool:
            return self._abandoned or halted()

        self._incubator: Incubator = make_incubator(prospect, key, stopped)
        self._fork = make_fork_factory(prospect, key, stopped)
        self._forks: dict[str, Fork] = {}

    def births(
        self, plans: Sequence[GraftPlan], weights: Weights, snapshot: list[ray.ObjectRef[Any]]
    ) -> tuple[Birth, ...]:
        """Measure candidates before they may train, on a fork that is thrown away."""
        return self._incubator.births(plans, weights, self._fetch(snapshot[0]))

    def open(self, name: str, snapshot: list[ray.ObjectRef[Any]], plan: GraftPlan | None, weights: Weights) -> None:
        """Make a fork, with a candidate attached or without."""
        fork = self._fork(self._fetch(snapshot[0]))
        if plan is not None:
            fork.graft(plan, weights)
        self._forks[name] = fork
        beat()

    def train_to(self, name: str, step: int) -> tuple[float, ...]:
        """Train a fork up to an optimizer step of the run."""
        return self._forks[name].train_to(step)

    def sample_losses(self, name: str, shard: str, fence: int) -> SampleLosses:
        """A fork's losses on a fence's slice of a shard."""
        return self._forks[name].sample_losses(shard, fence)

    def observe(self, name: str, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        """What a fork shows of its seeds and layers."""
        return self._forks[name].observe(fence, stages)

    def shard_means(self, name: str, shard: str) -> dict[str, float]:
        """A fork's mean loss and metrics over a whole shard."""
        return self._forks[name].shard_means(shard)

    def weights_sha256(self, name: str) -> str:
        """Digest of a fork's weights and buffers."""
        return self._forks[name].weights_sha256()

    def abandon(self, yes: bool) -> None:
        """Stop whatever fork trains now at its next step, and every other that begins to, until told otherwise."""
        self._abandoned = yes

    def snapshot(self, name: str) -> Any:  # Any: a HostSnapshot
        """Everything that a fork's future depends on."""
        return self._forks[name].snapshot()

    def close(self, names: Sequence[str]) -> None:
        """Forget forks."""
        for name in names:
            del self._forks[name]

    def close_all(self) -> None:
        """Forget every fork."""
        self._forks.clear()
