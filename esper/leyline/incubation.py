"""The order and the result of an incubation, which trains forks of the host, each with one candidate, and a control."""

from __future__ import annotations

from esper.leyline.base import Message
from esper.leyline.evidence import GradientProbe, PairedLosses, SanityProbe
from esper.leyline.reports import FieldReport, GateReport, GraftPlan, HostPlan, Transition
from esper.leyline.state import RegistryView


class IncubationOrder(Message):
    """Order to train a control and one fork per plan from the snapshot of `fence`; the result is due at `due_fence`."""

    order_id: str
    """Id of the command that requested it."""
    generation: int
    fence: int
    due_fence: int
    first_step: int
    last_step: int
    halving_step: int | None
    """Step after which only the better half of the forks continues. None: all forks are trained to the end."""
    plans: tuple[GraftPlan, ...]
    """The graft of each candidate, one per fork."""
    batch_size: int
    base_flops: int
    """Modelled FLOPs of one optimizer step of the control."""
    seed_flops: tuple[int, ...]
    """Modelled FLOPs that each candidate adds per step, in the order of `plans`."""


class CandidateProbe(Message):
    """Measurements of a candidate before its training: evidence for G0 and G1."""

    seed_id: str
    sanity: SanityProbe | None
    """Evidence for G0. None: the blueprint or the slot is not known."""
    gradient: GradientProbe | None
    """Evidence for G1. None: the output does not fit the slot, so the candidate was not grafted."""
    fallbacks: tuple[str, ...] | None = None
    """Differences between requested and actual execution in the backward passes. None: it did not run."""


class ForkResult(Message):
    """Result of one seeded fork, compared with the control."""

    seed_id: str
    steps: int
    """Optimizer steps for which the fork was trained."""
    required_steps: int
    """Optimizer steps of the control."""
    rank: int | None
    """Rank by mean paired gain on the pick shard among the forks trained to the end. None: dropped at the halving."""
    pick: PairedLosses
    """Losses on the pick shard at the end, or at the halving for a fork that was dropped there."""
    gate: PairedLosses | None
    """Losses on the gate shard. Measured only for the first of the tournament; None for others."""
    loss_variation: float | None
    fallbacks: tuple[str, ...] | None = None
    """Differences between requested and actual execution in the fork. Measured only for the first of the tournament."""


class IncubationResult(Message):
    """The results of all forks of one order."""

    order_id: str
    generation: int
    fence: int
    forks: tuple[ForkResult, ...]
    fork_steps: int
    """Optimizer steps of all forks together, the control's included."""
    flops: int
    """Modelled FLOPs of all forks together, control and evaluations included."""


class Answer(Message):
    """Result of an operation of Kasmina: everything that other components must carry out or record, in order."""

    transitions: tuple[Transition, ...] = ()
    gates: tuple[GateReport, ...] = ()
    plans: tuple[HostPlan, ...] = ()
    order: IncubationOrder | None = None
    field_reports: tuple[FieldReport, ...] = ()
    keep_twin: bool = False
    """True if the control of the incubation that just ended becomes the run's twin."""


class InFlight(Message):
    """Order of the tournament that was running when the registry's state was saved."""

    order: IncubationOrder
    weights: dict[str, bytes]
    """Weights of the order's plans; see `esper.leyline.reports.Weights`."""


class Received(Message):
    """Kasmina's reply to an admitted command."""

    plans: tuple[GraftPlan, ...]
    """Plans of the candidates to measure on a fork before the command is carried out. Empty unless GERMINATE."""
    weights: dict[str, bytes]
    """Weights of these plans; see `esper.leyline.reports.Weights`."""
    flops: int
    """Modelled FLOPs of measuring them."""


class Changed(Message):
    """Kasmina's reply to a call that changed the registry."""

    answer: Answer
    view: RegistryView
    """The registry after the change."""
    weights: dict[str, bytes]
    """Weights of the answer's grafts and of its order's plans; see `esper.leyline.reports.Weights`."""


class Compared(Message):
    """Comparison of the live host with its twin on one slice of a shard."""

    losses: PairedLosses
    flops: int
    """Modelled FLOPs of measuring host and twin."""


class TwinReport(Message):
    """Report on the twin: the host's training without growth."""

    steps: int
    """Optimizer steps since it became the twin."""
    test_loss: float
    weights_sha256: str
