"""The order and the result of an incubation. An incubation trains one fork of the host for each candidate, and a
control without a candidate."""

from __future__ import annotations

from typing import ClassVar

from esper.leyline.base import GrownMessage, Message
from esper.leyline.evidence import GradientProbe, PairedLosses, SanityProbe
from esper.leyline.reports import FieldReport, GateReport, GraftPlan, HostPlan, Transition
from esper.leyline.state import RegistryView


class IncubationOrder(GrownMessage):
    """Order to train a control and one fork per plan. Each starts from the snapshot of `fence`. The result is due at
    `due_fence`."""

    LATER: ClassVar = frozenset({"adopts", "rungs", "rung_units", "placebos", "placebo_flops", "keeps", "goes_on_from"})

    order_id: str
    """Id of the command that requested the incubation."""
    generation: int
    fence: int
    due_fence: int
    first_step: int
    last_step: int
    halving_step: int | None
    """Step after which only the better half of the forks continues. None: all forks are trained to the end, or the
    order has `rungs`."""
    plans: tuple[GraftPlan, ...]
    """The graft of each candidate, one per fork."""
    batch_size: int
    base_flops: int
    """Modelled FLOPs of one optimizer step of the control."""
    seed_flops: tuple[int, ...]
    """Modelled FLOPs that each candidate adds per step, in the order of `plans`."""
    adopts: bool = False
    """True: the fork of rank 1 is kept after the tournament, because it may become the live host."""
    rungs: tuple[int, ...] = ()
    """Steps of the run at which the forks are judged, ascending. The last is `last_step`. Empty: see `halving_step`."""
    rung_units: tuple[int, ...] = ()
    """Number of samples, or of groups, that each rung judges on. The gate shard is judged on as many as the last rung.
    Empty: the number that a fence draws."""
    placebos: tuple[GraftPlan, ...] = ()
    """The graft of each useless seed that trains beside the candidates, one per fork."""
    placebo_flops: tuple[int, ...] = ()
    """Modelled FLOPs that each placebo adds per step, in the order of `placebos`."""
    keeps: int = 0
    """Number of forks, the best first, that may train on after the order if G2 refuses the first."""
    goes_on_from: int | None = None
    """Step of the run to which an earlier order has trained the same forks. They have the bits of forks that train from
    `first_step` on. Steps, FLOPs and evaluations up to this step are not counted again. None: there was no such order.
    """

    @property
    def stops(self) -> tuple[tuple[int, int | None], ...]:
        """Return the step of each rung and its number of samples, or of groups. None: the number that a fence draws."""
        steps = self.rungs or tuple(step for step in (self.halving_step, self.last_step) if step is not None)
        return tuple(zip(steps, self.rung_units or (None,) * len(steps), strict=True))


class CandidateProbe(Message):
    """Measurements of a candidate before its training: evidence for G0 and G1."""

    seed_id: str
    sanity: SanityProbe | None
    """Evidence for G0. None: the blueprint or the slot is not known."""
    gradient: GradientProbe | None
    """Evidence for G1. None: the output does not fit the slot, so the candidate was not grafted."""
    fallbacks: tuple[str, ...] | None = None
    """Differences between requested and actual execution in the backward passes. None: the candidate did not run."""


class ForkResult(GrownMessage):
    """Result of one seeded fork, compared with the control."""

    LATER: ClassVar = frozenset({"leaks", "weights_sha256", "control_sha256"})

    seed_id: str
    steps: int
    """Optimizer steps for which the fork was trained."""
    required_steps: int
    """Optimizer steps of the control."""
    rank: int | None
    """Rank among the forks that were trained to the end, by mean paired gain on the pick shard. None: the fork was not
    trained to the end."""
    pick: PairedLosses | None
    """Losses on the pick shard, at the end of the fork's training. None: the candidate was not attached; see `leaks`.
    """
    gate: PairedLosses | None
    """Losses on the gate shard. Measured only for the fork of rank 1. None for all other forks."""
    loss_variation: float | None
    fallbacks: tuple[str, ...] | None = None
    """Differences between requested and actual execution in the fork. Measured only for the fork of rank 1."""
    leaks: tuple[str, ...] = ()
    """Tensors of the fork whose memory the candidate shares. If not empty, the candidate was not attached."""
    weights_sha256: str | None = None
    """Digest of the fork's weights at its last step. Measured only for the fork of rank 1, if the order adopts."""
    control_sha256: str | None = None
    """Digest of the control's weights at its last step. Measured only for the fork of rank 1, if the order adopts."""


class PlaceboResult(Message):
    """Result of one useless seed, compared with the control. It has no rank."""

    kind: str
    """Kind of the placebo, such as "bias"."""
    slot: str
    picks: tuple[PairedLosses, ...]
    """Losses on the pick shard at each rung to which the placebo was trained."""
    gate: PairedLosses | None
    """Losses on the gate shard at the end. None: its training diverged."""


class IncubationResult(GrownMessage):
    """The results of all forks of one order."""

    LATER: ClassVar = frozenset({"placebos"})

    order_id: str
    generation: int
    fence: int
    forks: tuple[ForkResult, ...]
    fork_steps: int
    """Optimizer steps of all forks together, including the steps of the control."""
    flops: int
    """Modelled FLOPs of all forks together, including the control and all evaluations."""
    placebos: tuple[PlaceboResult, ...] = ()
    """The results of the useless seeds, in the order of the order's `placebos`."""


class Answer(Message):
    """Result of an operation of Kasmina. The answer contains, in order, everything that other components must carry out
    or record.
    """

    transitions: tuple[Transition, ...] = ()
    gates: tuple[GateReport, ...] = ()
    plans: tuple[HostPlan, ...] = ()
    order: IncubationOrder | None = None
    field_reports: tuple[FieldReport, ...] = ()
    keep_twin: bool = False
    """True if the control of the last incubation becomes the run's twin."""


class InFlight(Message):
    """Order of the tournament that was running when the registry's state was saved."""

    order: IncubationOrder
    weights: dict[str, bytes]
    """Weights of the order's plans; see `esper.leyline.reports.Weights`."""


class Received(Message):
    """Kasmina's reply to an admitted command."""

    plans: tuple[GraftPlan, ...]
    """Plans of the candidates that must be measured on a fork before the command is carried out. Empty for all
    operations except GERMINATE."""
    weights: dict[str, bytes]
    """Weights of these plans; see `esper.leyline.reports.Weights`."""
    flops: int
    """Modelled FLOPs of these measurements."""
    command_id: str
    """Id of the command that Kasmina got."""


class Changed(Message):
    """Kasmina's reply to a call that changed the registry."""

    answer: Answer
    view: RegistryView
    """The registry after the change."""
    weights: dict[str, bytes]
    """Weights for the graft plans of the answer and of its order; see `esper.leyline.reports.Weights`."""
    command_id: str | None = None
    """Id of the command that Kasmina got. None: the call had no command."""


class Compared(Message):
    """Comparison of the live host with its twin on one slice of a shard."""

    losses: PairedLosses
    flops: int
    """Modelled FLOPs of measuring host and twin."""


class TwinReport(Message):
    """Report on the twin, which is the host trained without growth."""

    steps: int
    """Optimizer steps since the control became the twin."""
    weights_sha256: str
