"""Types of the measured state of a run at one fence. Decisions depend on that state."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from esper.leyline.base import GrownMessage, Message, PublicMessage
from esper.leyline.commands import BlendSpec
from esper.leyline.decisions import Pair
from esper.leyline.signals import Level
from esper.leyline.slots import SlotSpec
from esper.leyline.stages import Stage


class BlendReport(Message):
    """The effective alpha of a seed in the host, summarised over the steps of one round. Values are in 0..1."""

    seed_id: str
    mode: str
    """Name of a `BlendMode`."""
    mean: float
    """Mean over the steps. For CHANNEL: the mean over steps and channels."""
    p95: float
    """95th percentile of effective alpha over the same values, by nearest rank."""
    clamped: float | None
    """Share of the steps at which a bound changed alpha. None: the mode does not clamp."""


class TrainingState(PublicMessage, GrownMessage):
    """The trainer's measurements of the round that ended at `fence`. Fields are None if no round has ended yet."""

    LATER: ClassVar = frozenset({"leaks"})

    fence: int
    step: int
    total_steps: int
    train_loss: float | None
    """Mean training loss over the round's steps."""
    losses: tuple[float, ...]
    """Training loss of each step of the round."""
    gradient_norm: float | None
    """Largest gradient norm of the round."""
    best_train_loss: float | None
    """Lowest `train_loss` of the earlier rounds."""
    parameters: int
    host_parameters: int
    """Parameters of the host without its seeds."""
    blends: tuple[BlendReport, ...] = ()
    """One report for each seed in the host, in graft order."""
    leaks: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Seed id -> names of everything outside the seed that it changed or that its gradient reached, for each seed of
    which an audit has found something."""


class SeedState(PublicMessage, GrownMessage):
    """One seed as Kasmina records it."""

    LATER: ClassVar = frozenset({"copies"})

    seed_id: str
    slot: str
    blueprint_id: str
    ordinal: int | None
    """Position of the seed among all seeds that were grafted into its slot. None: it was not grafted."""
    stage: Stage
    alpha: float | None
    """Alpha at the last optimizer step. None: the seed is not in the host."""
    since_fence: int
    due: bool
    """True if the seed's next gate can be judged at this fence."""
    command_id: str
    replica_of: str | None
    required_mesh: tuple[str, ...]
    parameters: int
    gain: float | None
    z: float | None
    rate_scale: float = 1.0
    """Factor on the learning rates of the seed's schedule; see `Operation.SCALE_RATE`."""
    blend: BlendSpec | None = None
    """The blend that was commanded for the seed. None: the seed was germinated by a version without this field, and was
    never grafted."""
    copies: int = 1
    """Number of modules of the blueprint in the seed. All of them have one id, one alpha and one verdict."""


class SlotState(PublicMessage):
    """One slot as Kasmina records it."""

    spec: SlotSpec
    occupied: int
    """Number of seeds of this slot that are in the host."""
    embargoed: tuple[str, ...]
    """Blueprints that may not be tried in this slot at this fence."""
    closed: bool = False
    """True if a culled seed left a trace in the host: no further seed is grafted into the slot."""


class RegistryFacts(PublicMessage):
    """Facts of the registry at one fence. Decisions use them."""

    run_id: str
    generation: int
    fence: int
    last_fence: int
    slots: tuple[SlotState, ...]
    seeds: tuple[SeedState, ...]
    """All seeds, in the order in which they were requested."""
    options: tuple[Pair, ...]
    """Every (slot, blueprint) pair that the survey allows. At this fence a pair may be closed, which means that it may
    not be tried."""
    incubating: bool
    """True if a tournament is in flight."""
    added_parameters: int
    parameter_budget: int
    tests_used: int
    tests_allowed: int
    isolation_violations: int
    tournaments_used: int = 0
    """Number of tournaments that were commanded, without those of replicas."""
    tournaments_allowed: int | None = None
    """Largest number of tournaments. None: as many as fit into the run."""


class RegistryView(RegistryFacts):
    """The registry's state at a fence, in one message.

    A view is valid until a call changes the registry. That call returns the new view; see the port `Registrar`.
    """

    due: bool
    """True if the tournament in flight must be concluded at this fence."""
    resetting: dict[str, str]
    """Seed id -> slot of every culled seed whose embargo is over. G5 is due for these seeds."""
    has_twin: bool
    compares_with_twin: bool
    """True if a seed must be compared with the twin at this fence."""
    step_flops: int
    """Modelled FLOPs of one optimizer step of the live host, with its seeds."""

    @property
    def stages(self) -> dict[str, Stage]:
        """Return the recorded stage of every seed, by seed id."""
        return {seed.seed_id: seed.stage for seed in self.seeds}


class RoundState(RegistryFacts):
    """The whole input of a decision at one fence."""

    training: TrainingState
    level: Level | None = None
    """Emergency level. None: no level is set."""
    checkpoints: tuple[int, ...] = ()
    """The fences that the run can go back to, in ascending order."""
    rollbacks: int = 0
    """How often the run went back. Without this count, a policy would see the same state at the same fence again, and
    would command the run to go back again."""
    spent_flops: int = 0
    """Modelled FLOPs of the live host and of all incubation so far, without the twin."""

    @classmethod
    def of(
        cls,
        view: RegistryView,
        training: TrainingState,
        level: Level | None,
        *,
        checkpoints: tuple[int, ...] = (),
        rollbacks: int = 0,
        spent_flops: int = 0,
    ) -> RoundState:
        """Join the registry's facts, the trainer's measurements, the emergency level, the checkpoints, the number of
        rollbacks and the FLOPs so far.
        """
        facts = {name: getattr(view, name) for name in RegistryFacts.model_fields}
        return cls(
            training=training,
            level=level,
            checkpoints=checkpoints,
            rollbacks=rollbacks,
            spent_flops=spent_flops,
            **facts,
        )
