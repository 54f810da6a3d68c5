"""An incubation as an order and its result: forks of the host, each with one candidate, and one control without."""

from __future__ import annotations

from esper.leyline.base import Message
from esper.leyline.evidence import GradientProbe, PairedLosses, SanityProbe
from esper.leyline.reports import FieldReport, GateReport, GraftPlan, HostPlan, Transition
from esper.leyline.state import RegistryView


class IncubationOrder(Message):
    """Train a control and one fork per plan from the snapshot of `fence`; due at `due_fence`."""

    order_id: str
    """The command that asked for it."""
    generation: int
    fence: int
    due_fence: int
    first_step: int
    last_step: int
    halving_step: int | None
    """Step after which only the better half goes on; None: all do."""
    plans: tuple[GraftPlan, ...]
    """How each candidate is attached to its fork."""
    batch_size: int
    base_flops: int
    """Modelled FLOPs of one optimizer step of the control."""
    seed_flops: tuple[int, ...]
    """What each candidate adds to that, in the order of `plans`."""


class CandidateProbe(Message):
    """What was measured of a candidate before it may train: for G0 and G1."""

    seed_id: str
    sanity: SanityProbe | None
    """None: the blueprint or the slot is not known."""
    gradient: GradientProbe | None
    """None: its output does not fit, so that it was never put into a host."""
    fallbacks: tuple[str, ...] | None = None
    """In what it ran otherwise than asked in the backward passes; None: it did not run."""


class ForkResult(Message):
    """One seeded fork beside the control."""

    seed_id: str
    steps: int
    """Optimizer steps that it was trained for."""
    required_steps: int
    """Optimizer steps of the control."""
    rank: int | None
    """By mean paired gain on the pick shard among those that trained to the end; None: it left at the halving."""
    pick: PairedLosses
    """At the end, or at the halving for those that left there."""
    gate: PairedLosses | None
    """On the gate shard; measured for the first of the tournament alone."""
    loss_variation: float | None
    fallbacks: tuple[str, ...] | None = None
    """In what the seed ran otherwise than asked in its fork; measured for the first of the tournament alone."""


class IncubationResult(Message):
    """All forks of one order."""

    order_id: str
    generation: int
    fence: int
    forks: tuple[ForkResult, ...]
    fork_steps: int
    """Optimizer steps of all forks together, the control's included."""
    flops: int
    """Modelled FLOPs of all forks together, the control's and all that was evaluated included."""


class Answer(Message):
    """What came of something Kasmina did: everything that others have to carry out or record, in order."""

    transitions: tuple[Transition, ...] = ()
    gates: tuple[GateReport, ...] = ()
    plans: tuple[HostPlan, ...] = ()
    order: IncubationOrder | None = None
    field_reports: tuple[FieldReport, ...] = ()
    keep_twin: bool = False
    """The control of the incubation just concluded lives on as the run's twin."""


class InFlight(Message):
    """The order of the tournament that was running when the registry's state was taken."""

    order: IncubationOrder
    weights: dict[str, bytes]
    """Of the order's plans; see `esper.leyline.reports.Weights`."""


class Received(Message):
    """A command was admitted."""

    plans: tuple[GraftPlan, ...]
    """Of the candidates that must be measured on a fork before the command is carried out; for GERMINATE alone."""
    weights: dict[str, bytes]
    """Of these plans; see `esper.leyline.reports.Weights`."""
    flops: int
    """Modelled FLOPs of measuring them."""


class Changed(Message):
    """The registry changed."""

    answer: Answer
    view: RegistryView
    """After the change."""
    weights: dict[str, bytes]
    """Of the answer's grafts and of its order's plans; see `esper.leyline.reports.Weights`."""


class Compared(Message):
    """The live host beside its twin on one slice of a shard."""

    losses: PairedLosses
    flops: int
    """Modelled FLOPs of measuring both."""


class TwinReport(Message):
    """What the host came to without growth."""

    steps: int
    """Optimizer steps since it was kept."""
    test_loss: float
    weights_sha256: str
