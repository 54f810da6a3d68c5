"""Makes the component of an actor in the actor's process. This process loads the task from the form in which it was
sent.

Snapshots arrive as references of Ray, and this module fetches them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.policy_transport import SentPolicy
from actors.shell import SnapshotRef
from actors.task_transport import SentSurvey
from esper import faults
from esper.emergency.word import EmergencyWord
from esper.ground.clock import SystemClock
from esper.ground.heartbeat import beat
from esper.kasmina.incubation.incubator import Incubator
from esper.kasmina.registry.registrar import KasminaRegistrar
from esper.leyline.evidence import HostObservation, SampleLosses
from esper.leyline.host_ports import Fork
from esper.leyline.incubation import CandidateProbe
from esper.leyline.reports import AdoptPlan, GraftPlan, GraftReceipt, Weights
from esper.leyline.stages import Stage
from esper.setup.assembly import RunKey, make_fork_factory, make_incubator, make_kasmina, make_tamiyo, make_trainer
from esper.tamiyo.service import Tamiyo
from esper.tolaria.trainer import Trainer


def tolaria(sent: SentSurvey, key: RunKey, word: Path) -> HostedTrainer:
    """Make the trainer. At every step it reads the emergency word in the file `word`."""
    return HostedTrainer(make_trainer(sent.open(), key, EmergencyWord.attach(word).halted))


def tamiyo(sent: SentSurvey, key: RunKey, policy: SentPolicy | None = None) -> Tamiyo:
    """Make Tamiyo with the user's policy. If there is none, use the policy that the config names."""
    survey = sent.open()
    return make_tamiyo(survey, key, SystemClock(), policy.load() if policy is not None else None)


def kasmina(sent: SentSurvey, key: RunKey) -> KasminaRegistrar:
    """Make Kasmina's registry."""
    return make_kasmina(sent.open(), key, SystemClock())


def manager(sent: SentSurvey, key: RunKey, word: Path) -> HostedForks:
    """Make the object of a manager. At every step its forks read the emergency word, as the trainer does."""
    return HostedForks(sent, key, EmergencyWord.attach(word).halted)


class HostedTrainer:
    """`LiveHost` in the trainer's process.

    It replaces references by their snapshots, and passes all calls to the trainer.
    """

    def __init__(self, trainer: Trainer, fetch: Callable[[Any], Any] = ray.get) -> None:
        self._trainer, self._fetch = trainer, fetch

    def __getattr__(self, name: str) -> Any:  # Any: the trainer's attribute
        return getattr(self._trainer, name)

    def save(self, path: Path, states: Mapping[str, str], incubation: Mapping[str, Any]) -> None:
        """See `LiveHost`."""
        seen = {name: self._fetch(value[0]) if isinstance(value, list) else value for name, value in incubation.items()}
        self._trainer.save(path, states, seen)

    def adopt(self, plan: AdoptPlan, snapshot: SnapshotRef) -> GraftReceipt:
        """See `LiveHost`."""
        return self._trainer.adopt(plan, self._fetch(snapshot[0]))

    def restore(self, snapshot: SnapshotRef, generation: int) -> None:
        """See `LiveHost`."""
        self._trainer.restore(self._fetch(snapshot[0]), generation)


class HostedForks:
    """Forks by name, in one manager's process.

    Call order: `open` makes a fork; `close` or `close_all` drops it. `abandon` is called in another thread, even while
    a method runs. The other methods are called one at a time.
    """

    def __init__(
        self, sent: SentSurvey, key: RunKey, halted: Callable[[], bool], fetch: Callable[[Any], Any] = ray.get
    ) -> None:
        survey = sent.open()
        self._fetch = fetch
        self._abandoned = False

        def stopped() -> bool:
            return self._abandoned or halted()

        self._incubator: Incubator = make_incubator(survey, key, stopped)
        self._fork = make_fork_factory(survey, key, stopped)
        self._forks: dict[str, Fork] = {}

    def probe_candidates(
        self, plans: Sequence[GraftPlan], weights: Weights, snapshot: SnapshotRef
    ) -> tuple[CandidateProbe, ...]:
        """Measure candidates before they train, on a fork that is dropped afterwards."""
        return self._incubator.probe_candidates(plans, weights, self._fetch(snapshot[0]))

    def open(self, name: str, snapshot: SnapshotRef, plan: GraftPlan | None, weights: Weights) -> None:
        """Make a fork of a snapshot, with a candidate. `plan` is None for a fork without a candidate."""
        fork = self._fork(self._fetch(snapshot[0]))
        if plan is not None:
            fork.graft(plan, weights)
        self._forks[name] = fork
        beat()

    def train_to(self, name: str, step: int) -> tuple[float, ...]:
        """See `Fork.train_to`."""
        return self._forks[name].train_to(step)

    def sample_losses(self, name: str, shard: str, fence: int, units: int | None = None) -> SampleLosses:
        """See `Fork.sample_losses`."""
        return self._forks[name].sample_losses(shard, fence, units)

    def observe(self, name: str, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        """See `Fork.observe`."""
        return self._forks[name].observe(fence, stages)

    def shard_means(self, name: str, shard: str, most: int | None = None) -> dict[str, float]:
        """See `Fork.shard_means`."""
        return self._forks[name].shard_means(shard, most)

    def weights_sha256(self, name: str) -> str:
        """See `Fork.weights_sha256`."""
        return self._forks[name].weights_sha256()

    def abandon(self, yes: bool) -> None:
        """If `yes` is true, stop every fork at its next training step. If `yes` is false, later training steps run
        again.
        """
        self._abandoned = yes

    def snapshot(self, name: str) -> Any:  # Any: a HostSnapshot
        """See `Fork.snapshot`."""
        return self._forks[name].snapshot()

    def adoptable(self, name: str) -> Any:  # Any: a HostSnapshot
        """See `Fork.snapshot`. The fork is to be adopted."""
        faults.point("kasmina.adoption_snapshot")
        return self._forks[name].snapshot()

    def close(self, names: Sequence[str]) -> None:
        """Drop forks."""
        for name in names:
            del self._forks[name]

    def close_all(self) -> None:
        """Drop every fork."""
        self._forks.clear()
