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


class RoundState(Message):
    """Everything that a decision at one fence depends on."""

    run_id: str
    generation: int
    fence: int
    last_fence: int
    training: TrainingState
    slots: tuple[SlotState, ...]
    seeds: tuple[SeedState, ...]
    """In the order in which they were asked for."""
    options: tuple[Pair, ...]
    """Every (slot, blueprint) pair that the dry run allows, open or not."""
    incubating: bool
    added_parameters: int
    parameter_budget: int
    tests_used: int
    tests_allowed: int
    isolation_violations: int
    level: Level | None = None
    """Emergency level; None where none is set."""
