"""What a decision may look at: the run as measured at one fence."""

from __future__ import annotations

from esper.leyline.base import Message
from esper.leyline.decisions import Pair
from esper.leyline.signals import Level
from esper.leyline.slots import SlotSpec
from esper.leyline.stages import Stage


class TrainingState(Message):
    """What the trainer measured in the round that ended at `fence`; None: no round has ended yet."""

    fence: int
    step: int
    total_steps: int
    train_loss: float | None
    """Mean over the round's steps."""
    losses: tuple[float, ...]
    """Loss of each step of the round."""
    gradient_norm: float | None
    """Largest of the round."""
    best_train_loss: float | None
    """Lowest round mean before this round."""
    parameters: int
    host_parameters: int
    """Of the host without its seeds."""


class SeedState(Message):
    """One seed as Kasmina records it."""

    seed_id: str
    slot: str
    blueprint_id: str
    ordinal: int | None
    """Place in its slot's history, given at the graft; None before."""
    stage: Stage
    alpha: float | None
    """Of the last optimizer step; None outside the host."""
    since_fence: int
    due: bool
    """Its next gate can be judged at this fence."""
    command_id: str
    replica_of: str | None
    required_mesh: tuple[str, ...]
    parameters: int
    gain: float | None
    z: float | None


class SlotState(Message):
    """One slot as Kasmina records it."""

    spec: SlotSpec
    occupied: int
    """Seeds in the host there, or on their way."""
    embargoed: tuple[str, ...]
    """Blueprints that may not be tried here at this fence."""


class RegistryFacts(Message):
    """What Kasmina's registry records at one fence and a decision may look at."""

    run_id: str
    generation: int
    fence: int
    last_fence: int
    slots: tuple[SlotState, ...]
    seeds: tuple[SeedState, ...]
    """In the order in which they were asked for."""
    options: tuple[Pair, ...]
    """Every (slot, blueprint) pair that the dry run allows, open or not."""
    incubating: bool
    """A tournament is in flight."""
    added_parameters: int
    parameter_budget: int
    tests_used: int
    tests_allowed: int
    isolation_violations: int


class RegistryView(RegistryFacts):
    """All that the line asks Kasmina's registry at a fence, in one message; it changes nothing.

    A view is true until the registry changes. Every call that changes the registry answers with the view after it.
    """

    due: bool
    """The tournament in flight must be concluded at this fence."""
    resetting: dict[str, str]
    """Slot by seed id of every culled seed whose embargo is over: its G5 is due."""
    has_twin: bool
    compares_with_twin: bool
    """Some seed must be compared with the twin at this fence."""
    step_flops: int
    """Modelled FLOPs of one optimizer step of the live host, with its seeds."""

    @property
    def stages(self) -> dict[str, Stage]:
        """The recorded stage of every seed, by seed id."""
        return {seed.seed_id: seed.stage for seed in self.seeds}


class RoundState(RegistryFacts):
    """Everything that a decision at one fence depends on."""

    training: TrainingState
    level: Level | None = None
    """Emergency level; None where none is set."""

    @classmethod
    def of(cls, view: RegistryView, training: TrainingState, level: Level | None) -> RoundState:
        """The registry's facts joined with what the trainer measured and the emergency level of the run."""
        facts = {name: getattr(view, name) for name in RegistryFacts.model_fields}
        return cls(training=training, level=level, **facts)
