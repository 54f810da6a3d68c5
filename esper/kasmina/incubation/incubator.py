"""Fork probes: copies of the host, each with one candidate, beside a control without. It measures and ranks by one
declared measure, the mean paired gain on the pick shard; whether a seed may go on is for the gates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from esper.errors import DivergenceUnrecoverable
from esper.ground.tensors import from_bytes
from esper.kasmina.blueprints.catalogue import Registry
from esper.kasmina.judging.sanity import probe_seed
from esper.kasmina.judging.statistics import paired
from esper.leyline.evidence import PairedLosses, SampleLosses, SanityProbe
from esper.leyline.incubation import CandidateProbe, ForkResult, IncubationOrder, IncubationResult, TwinReport
from esper.leyline.ports import Fork, ForkFactory, ProbedFork
from esper.leyline.reports import GraftPlan, Weights
from esper.leyline.slots import SlotSpec
from esper.telemetry.context import span

T = TypeVar("T")
F = TypeVar("F", bound=Fork)

PROBE_BATCHES = 2
"""Backward passes on which G1 judges."""


@dataclass
class _Entry(Generic[F]):
    """One fork of a tournament, or its control, and what was done with it."""

    fork: F
    plan: GraftPlan | None = None
    seed_flops: int = 0
    losses: list[float] = field(default_factory=list)
    evaluated: int = 0
    pick: PairedLosses | None = None
    rank: int | None = None
    diverged: bool = False

    def run_heat(self, step: int, fence: int) -> SampleLosses:
        """Train up to a step and measure on the fence's slice of the pick shard.

        A seeded fork that diverges stops there and is out: what its candidate does must not end the run.

        Raises:
            DivergenceUnrecoverable: the control diverged, which has no candidate to blame.
        """
        try:
            self.losses += self.fork.train_to(step)
        except DivergenceUnrecoverable:
            if self.plan is None:
                raise
            self.diverged = True
        return self.sample_losses("pick", fence)

    def sample_losses(self, shard: str, fence: int) -> SampleLosses:
        found = self.fork.sample_losses(shard, fence)
        self.evaluated += len(found.losses)
        return found

    def place(self) -> tuple[bool, float, str, str]:
        """Best first, what is not a number last; ties break by (slot, blueprint)."""
        assert self.pick is not None, "ranked before it was measured"
        assert self.plan is not None, "the control has no rank"
        return math.isnan(self.pick.mean), -self.pick.mean, self.plan.slot, self.plan.blueprint_id

    def flops(self, order: IncubationOrder) -> float:
        """Modelled FLOPs of its steps and evaluations; a forward pass is a third of a step."""
        passes = len(self.losses) + self.evaluated / order.batch_size / 3
        return passes * (order.base_flops + self.seed_flops)


class Incubator:
    """Runs one tournament at a time and keeps the twin. It holds forks; the live host never comes here."""

    def __init__(self, fork: ForkFactory[ProbedFork], specs: Mapping[str, SlotSpec], blueprints: Registry) -> None:
        self._fork, self._specs, self._blueprints = fork, specs, blueprints
        self._pending: tuple[IncubationOrder, Weights, Any] | None = None  # Any: a snapshot, see leyline's ports
        self._control: Fork | None = None
        self._twin: Fork | None = None
        self._twin_steps = 0

    def probe_candidates(
        self,
        plans: Sequence[GraftPlan],
        weights: Weights,
        snapshot: Any,  # Any: see leyline's ports
    ) -> tuple[CandidateProbe, ...]:
        """Measure candidates before they may train, on a fork of their own that is thrown away.

        Raises:
            SeedBuildFailed: a candidate's module cannot be built or run.
        """
        fork = self._fork(snapshot)
        activations = {slot: fork.activation(slot) for slot in sorted({plan.slot for plan in plans})}
        return tuple(self._probe_candidate(fork, plan, weights, activations[plan.slot]) for plan in plans)

    def _probe_candidate(
        self,
        fork: ProbedFork,
        plan: GraftPlan,
        weights: Weights,
        activation: Any,  # Any: torch.Tensor
    ) -> CandidateProbe:
        spec = self._specs[plan.slot]
        module = self._blueprints.get(plan.blueprint_id).build(spec, seed_key=0)
        module.load_state_dict(from_bytes(weights[plan.weights_digest]))
        seen = probe_seed(module, spec, activation, plan.blueprint_id)
        sanity = SanityProbe(
            parameters=seen.parameters,
            parameter_bytes=seen.parameter_bytes,
            parameters_finite=seen.parameters_finite,
            output_shape=seen.shape,
            slot_shape=seen.slot_shape,
            output_dtype=seen.dtype,
            causality_leak=seen.causality_leak,
            sample_leak=seen.sample_leak,
        )
        if (sanity.output_shape, sanity.output_dtype) != (sanity.slot_shape, spec.dtype):
            return CandidateProbe(seed_id=plan.seed_id, sanity=sanity, gradient=None)
        full = plan.blend.model_copy(update={"ramp_steps": 1})
        fork.graft(plan.model_copy(update={"isolated": True, "blend": full}), weights)
        gradient = fork.probe_gradients(plan.seed_id, PROBE_BATCHES)
        fallbacks = _fallbacks(fork, plan.seed_id, plan.fence)
        fork.remove(plan.seed_id)
        return CandidateProbe(seed_id=plan.seed_id, sanity=sanity, gradient=gradient, fallbacks=fallbacks)

    def begin(self, order: IncubationOrder, weights: Weights, snapshot: Any) -> None:  # Any: see leyline's ports
        """Take an order; its result is there when `collect` returns."""
        assert self._pending is None, "one tournament is in flight per run"
        self._pending = order, weights, snapshot

    def collect(self) -> IncubationResult:
        """Run the pending order to its end."""
        assert self._pending is not None, "nothing was begun"
        order, weights, snapshot = self._pending
        self._pending = None
        with span("kasmina incubate", role="kasmina", forks=len(order.plans), order_id=order.order_id):
            result, control = run_tournament(order, weights, self._fork, snapshot)
        self._control = control if self._twin is None else None  # a run keeps one twin
        return result

    def keep_twin(self) -> None:
        """The last tournament's control becomes the run's twin."""
        assert self._control is not None, "no tournament has ended"
        self._twin, self._control = self._control, None

    def advance_twin(self, step: int) -> None:
        """Train the twin up to an optimizer step of the run, without any seed, on the same batches."""
        self._twin_steps += len(self.twin.train_to(step))

    def twin_losses(self, fence: int) -> SampleLosses:
        """The twin's losses on this fence's slice of the gate shard."""
        return self.twin.sample_losses("gate", fence)

    def twin_report(self) -> TwinReport:
        """What the twin came to."""
        loss, digest = self.twin.shard_means("test")["loss"], self.twin.weights_sha256()
        return TwinReport(steps=self._twin_steps, test_loss=loss, weights_sha256=digest)

    def state(self, fence: int) -> dict[str, Any]:  # Any: see leyline's ports
        """The twin, and what the order in flight began from if that was not the host as it is at this fence."""
        origin = self._pending[2] if self._pending is not None and self._pending[0].fence != fence else None
        twin = self._twin.snapshot() if self._twin is not None else None
        return {"twin": twin, "twin_steps": self._twin_steps, "origin": origin}

    def restore(self, state: Mapping[str, Any]) -> None:  # Any: see leyline's ports
        """Keep the twin of `state`, if it has one; what was in flight is given up."""
        self._pending = self._control = None
        self._twin = self._fork(state["twin"]) if state["twin"] is not None else None
        self._twin_steps = state["twin_steps"]

    @property
    def twin(self) -> Fork:
        """The host as it would be without growth."""
        assert self._twin is not None, "no twin is kept"
        return self._twin


class Together(Protocol):
    """Does pieces of work that do not touch each other, and gives their answers in the order of the pieces."""

    def __call__(self, pieces: Sequence[Callable[[], T]], /) -> list[T]:
        """All answers; the first error, if there is one."""
        ...


def one_by_one(pieces: Sequence[Callable[[], T]]) -> list[T]:
    """`Together` in one thread."""
    return [piece() for piece in pieces]


def run_tournament(
    order: IncubationOrder, weights: Weights, fork: ForkFactory[F], snapshot: Any, together: Together = one_by_one
) -> tuple[IncubationResult, F]:
    """Train the control and every fork, drop the worse half at the halving, rank the rest, test the first.

    Args:
        together: May do pieces side by side; it changes no result.

    Returns:
        The result, and the control at `order.last_step`.
    """
    control = _Entry(fork(snapshot))
    entries = [_Entry(fork(snapshot), plan, cost) for plan, cost in zip(order.plans, order.seed_flops, strict=True)]
    together([partial(entry.fork.graft, plan, weights) for entry, plan in zip(entries, order.plans, strict=True)])
    running = entries
    if order.halving_step is not None:
        running = _heat(control, running, order.halving_step, order.due_fence, together)
        running = running[: math.ceil(len(running) / 2)]
    running = _heat(control, running, order.last_step, order.due_fence, together)
    for place, entry in enumerate(running, start=1):
        entry.rank = place
    forks = tuple(
        _result(entry, plan.seed_id, control, order.due_fence) for entry, plan in zip(entries, order.plans, strict=True)
    )
    result = IncubationResult(
        order_id=order.order_id,
        generation=order.generation,
        fence=order.due_fence,
        forks=forks,
        fork_steps=sum(len(entry.losses) for entry in (control, *entries)),
        flops=round(sum(entry.flops(order) for entry in (control, *entries))),
    )
    return result, control.fork


def _heat(control: _Entry[F], entries: list[_Entry[F]], step: int, fence: int, together: Together) -> list[_Entry[F]]:
    """Train all up to `step`, compare each with the control on the pick shard, and order what still trains by it."""
    base, *losses = together([partial(entry.run_heat, step, fence) for entry in (control, *entries)])
    for entry, found in zip(entries, losses, strict=True):
        entry.pick = paired(base, found)
    return sorted((entry for entry in entries if not entry.diverged), key=_Entry.place)


def _result(entry: _Entry[F], seed_id: str, control: _Entry[F], fence: int) -> ForkResult:
    assert entry.pick is not None, "every fork is measured at the halving or the end"
    first = entry.rank == 1
    gate = paired(control.sample_losses("gate", fence), entry.sample_losses("gate", fence)) if first else None
    return ForkResult(
        seed_id=seed_id,
        steps=len(entry.losses),
        required_steps=len(control.losses),
        rank=entry.rank,
        pick=entry.pick,
        gate=gate,
        loss_variation=_variation(entry.losses) if first else None,
        fallbacks=_fallbacks(entry.fork, seed_id, fence) if first else None,
    )


def _fallbacks(fork: Fork, seed_id: str, fence: int) -> tuple[str, ...] | None:
    """In what a seed ran otherwise than asked in its fork; None: it was not seen running there."""
    found = [seen.fallbacks for seen in fork.observe(fence, {}).seeds if seen.seed_id == seed_id]
    return found[0] if found else None


def _variation(losses: list[float]) -> float:
    """How much a fork's training losses scatter in its second half, as a share of their mean.

    Scatter is the standard deviation about a straight line: a loss that falls fast is not unstable. It is not set
    against the control's: a control at chance level hardly scatters, and would make every seed that learns unstable.
    """
    late = np.asarray(losses[len(losses) // 2 :])
    steps = np.arange(len(late))
    line = np.polyval(np.polyfit(steps, late, 1), steps) if len(late) > 2 else late
    return float(np.std(late - line) / abs(late.mean()))
