"""Incubation: trains forks (copies of the host with one candidate each) and a control (a copy without a candidate).

Forks are ranked by the mean paired gain on the pick shard. Gates decide whether a seed may continue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from torch import nn

from esper.errors import DivergenceUnrecoverable, IsolationViolation
from esper.kasmina.blueprints.catalogue import BlueprintRegistry
from esper.kasmina.blueprints.placebos import kind_of
from esper.kasmina.blueprints.seed_weights import load_weights
from esper.kasmina.host.isolation import sharing_memory
from esper.kasmina.incubation.live_guard import LiveGuard, LiveHost
from esper.kasmina.incubation.rungs import NEAR, survivors
from esper.kasmina.judging.sanity import probe_seed
from esper.kasmina.judging.statistics import mean_and_spread, paired
from esper.leyline.evidence import GradientProbe, PairedLosses, SampleLosses, SanityProbe, best_first
from esper.leyline.host_ports import Fork, ForkFactory, ProbedFork
from esper.leyline.incubation import (
    CandidateProbe,
    ForkResult,
    IncubationOrder,
    IncubationResult,
    PlaceboResult,
    TwinReport,
)
from esper.leyline.reports import GraftPlan, Weights
from esper.leyline.slots import SlotSpec
from esper.telemetry.context import span

T = TypeVar("T")
F = TypeVar("F", bound=Fork)

PROBE_BATCHES = 2
"""Number of backward passes in the gradient probe of a candidate. G1 judges this probe."""


@dataclass
class _Entry(Generic[F]):
    """A fork of a tournament, or its control, with the results so far."""

    fork: F
    guard: LiveGuard
    plan: GraftPlan | None = None
    seed_flops: int = 0
    losses: list[float] = field(default_factory=list)
    evaluated: int = 0
    pick: PairedLosses | None = None
    picks: list[PairedLosses] = field(default_factory=list)
    """The comparison with the control at each rung. The last one is `pick`."""
    rank: int | None = None
    diverged: bool = False
    leaks: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] | None = None
    """How the calls of the seed differ from the seed's plan (dtype, device, code path). None: no call was observed."""
    before: int = 0
    """Steps that an earlier order has counted."""

    def go_on(self, guard: LiveGuard) -> None:
        """Begin a new order with the fork as it is. Only what follows is counted."""
        self.guard, self.before, self.evaluated = guard, len(self.losses), 0
        self.pick, self.picks, self.rank = None, [], None

    @property
    def seed_id(self) -> str:
        """Id of the fork's seed."""
        assert self.plan is not None, "the control has no seed"
        return self.plan.seed_id

    def graft(self, weights: Weights) -> None:
        """Attach the candidate. If it shares memory with the fork or changes it, record `leaks`.

        A fork with leaks is left out of the tournament.
        """
        assert self.plan is not None, "the control has no candidate"
        with self.guard.around(self.plan):
            try:
                self.fork.graft(self.plan, weights)
            except IsolationViolation as violation:
                self.leaks = violation.leaves

    def train_and_measure(self, step: int, fence: int, units: int | None) -> SampleLosses:
        """Train up to a step. Return the losses on the slice of the pick shard for the fence, of `units` samples.

        A fork that diverges stops and gets no rank, because a bad candidate must not end the run.

        Raises:
            DivergenceUnrecoverable: the control diverged. No candidate can be the cause.
            IsolationViolation: the candidate changed the live host.
        """
        self.train(step)
        found = self.sample_losses("pick", fence, units)
        self.observe(fence)
        return found

    def train(self, step: int) -> None:
        """Train up to a step; see `train_and_measure`."""
        with self.guard.around(self.plan):
            try:
                self.losses += self.fork.train_to(step)
            except DivergenceUnrecoverable:
                if self.plan is None:
                    raise
                self.diverged = True

    def observe(self, fence: int) -> None:
        """Add the leaks and the fallbacks of the candidate since the last call."""
        if self.plan is None:
            return
        for seen in self.fork.observe(fence, {}).seeds:
            if seen.seed_id == self.plan.seed_id:
                self.leaks = seen.isolation_leaks or ()
                if seen.fallbacks is not None:
                    self.fallbacks = tuple(dict.fromkeys((*(self.fallbacks or ()), *seen.fallbacks)))

    def sample_losses(self, shard: str, fence: int, units: int | None) -> SampleLosses:
        with self.guard.around(self.plan):
            found = self.fork.sample_losses(shard, fence, units)
        self.evaluated += len(found.losses)
        return found

    def place(self) -> tuple[float, str, str]:
        """Return the sort key. The best mean gain comes first, and not-a-number comes last.

        Equal gains are ordered by (slot, blueprint).
        """
        assert self.pick is not None, "ranked before it was measured"
        assert self.plan is not None, "the control has no rank"
        return best_first(self.pick.mean), self.plan.slot, self.plan.blueprint_id

    def flops(self, order: IncubationOrder) -> float:
        """Return the modelled FLOPs of the fork's steps and evaluations. A forward pass counts as a third of a step."""
        passes = len(self.losses) - self.before + self.evaluated / order.batch_size / 3
        return passes * (order.base_flops + self.seed_flops)


@dataclass
class Field(Generic[F]):
    """The forks of a tournament."""

    control: _Entry[F]
    entries: list[_Entry[F]]
    """The forks of the candidates. After the tournament: those that were trained to the end, the best first."""
    placebos: list[_Entry[F]]

    @property
    def everyone(self) -> list[_Entry[F]]:
        """All forks, the control first."""
        return [self.control, *self.entries, *self.placebos]

    def chosen(self, order: IncubationOrder) -> Field[F]:
        """Return the forks of an order that lets some of these forks train on."""
        own = {entry.seed_id: entry for entry in self.entries}
        return Field(self.control, [own[plan.seed_id] for plan in order.plans], self.placebos)

    def first(self, count: int) -> Field[F] | None:
        """Return the best `count` forks with the control and the placebos. None: `count` is 0, or there is no fork."""
        return Field(self.control, self.entries[:count], self.placebos) if count and self.entries else None


class Incubator:
    """Runs tournaments, one at a time, and trains the twin. It works on forks, never on the live host.

    Call order: `begin` with an order at one fence, `collect` at the order's due fence. A `restore` in between drops the
    order. In this case the caller calls `begin` again.
    """

    def __init__(
        self,
        fork: ForkFactory[ProbedFork],
        specs: Mapping[str, SlotSpec],
        blueprints: BlueprintRegistry,
        live: LiveHost | None = None,
    ) -> None:
        """Make the incubator.

        Args:
            live: The live host, if it is in this process.
        """
        self._live = live
        self._fork, self._specs, self._blueprints = fork, specs, blueprints
        self._pending: tuple[IncubationOrder, Weights, Any] | None = None  # Any: a snapshot, see leyline's ports
        self._control: Fork | None = None  # control of the last tournament; None after `keep_twin`
        self._winner: Fork | None = None  # first fork of the last tournament; None after `drop_winner`
        self._field: Field[ProbedFork] | None = None
        """Forks that train on under the pending order, or that may do so. None: no forks, or they must train again."""
        self._origin: Any = None  # Any: the snapshot of the last tournament, see leyline's ports
        self._twin: Fork | None = None
        self._twin_steps = 0

    def probe_candidates(
        self,
        plans: Sequence[GraftPlan],
        weights: Weights,
        snapshot: Any,  # Any: see leyline's ports
    ) -> tuple[CandidateProbe, ...]:
        """Measure candidates before they train, on a separate fork. The fork is discarded afterwards.

        Raises:
            SeedBuildFailed: a candidate's module cannot be built or run.
            IsolationViolation: a candidate changed the live host.
        """
        fork, guard = self._fork(snapshot), LiveGuard(self._live)
        activations = {slot: fork.activation(slot) for slot in sorted({plan.slot for plan in plans})}
        probes = []
        for plan in plans:
            with guard.around(plan):
                probes.append(self._probe_candidate(fork, plan, weights, activations[plan.slot]))
            if (gradient := probes[-1].gradient) is not None and gradient.reachable_host_parameters:
                with guard.around(None):
                    fork = self._fork(snapshot)  # the candidate may have changed the fork
        return tuple(probes)

    def _probe_candidate(
        self,
        fork: ProbedFork,
        plan: GraftPlan,
        weights: Weights,
        activation: Any,  # Any: torch.Tensor
    ) -> CandidateProbe:
        spec, blueprint, before = self._specs[plan.slot], self._blueprints.get(plan.blueprint_id), fork.held()
        module = blueprint.build(spec, seed_key=0, copies=plan.copies)
        shared = _shared(module, blueprint.build(spec, seed_key=0, copies=plan.copies))
        if shared:
            module = deepcopy(module)  # the candidate's weights must not be loaded into shared memory
        load_weights(module, weights[plan.weights_digest])
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
            told=seen.told,
        )
        if (sanity.output_shape, sanity.output_dtype) != (sanity.slot_shape, spec.dtype):
            return CandidateProbe(seed_id=plan.seed_id, sanity=sanity, gradient=None)
        shared = (*shared, *fork.changed_since(before))
        full = plan.blend.model_copy(update={"ramp_steps": 1})
        gradient, fallbacks = _unrun(shared), None
        if not shared:
            gradient, fallbacks = _gradients(fork, plan.model_copy(update={"blend": full}), weights)
        dead = gradient.norm == 0.0 and not gradient.nonfinite  # the largest of the norms 0 and nan is 0
        if gradient.batches and dead and plan.blend != full:
            # With CONVEX and full alpha, the zeros of a new seed replace the slot's output. A ReLU after the slot then
            # passes no gradient, but it does at the first alpha of the ramp.
            gradient, told = _gradients(fork, plan, weights)
            fallbacks = None if told is None else tuple(dict.fromkeys((*(fallbacks or ()), *told)))
        return CandidateProbe(seed_id=plan.seed_id, sanity=sanity, gradient=gradient, fallbacks=fallbacks)

    def begin(self, order: IncubationOrder, weights: Weights, snapshot: Any) -> None:  # Any: see leyline's ports
        """Accept an order. `collect` runs it and returns its result."""
        assert self._pending is None, "one tournament is in flight per run"
        self._pending, self._field = (order, weights, snapshot), None

    def go_on(self, order: IncubationOrder, weights: Weights) -> None:
        """Accept an order that lets forks of the last tournament train on. `collect` runs it, as after `begin`."""
        assert self._pending is None, "one tournament is in flight per run"
        assert self._field is not None, "no forks were kept"
        self._pending, self._field = (order, weights, self._origin), self._field.chosen(order)

    def collect(self) -> IncubationResult:
        """Run the pending order to its end. Raises: IsolationViolation: a candidate changed the live host."""
        assert self._pending is not None, "nothing was begun"
        (order, weights, snapshot), field = self._pending, self._field
        self._pending = self._field = None
        with span("kasmina incubate", role="kasmina", forks=len(order.plans), order_id=order.order_id):
            result, ended = run_tournament(order, weights, self._fork, snapshot, live=self._live, field=field)
        self._winner = ended.entries[0].fork if order.adopts and ended.entries else None
        self._field, self._origin = ended.first(order.keeps), snapshot
        self._control = ended.control.fork if self._twin is None else None  # a run has at most one twin
        return result

    def keep_twin(self) -> None:
        """Make the control of the last tournament the twin of the run."""
        assert self._control is not None, "no tournament has ended"
        self._twin, self._control = self._control, None

    def winner(self) -> Any:  # Any: see leyline's ports
        """Return the snapshot of the first fork of the last tournament, which has ended at this fence."""
        assert self._winner is not None, "no tournament whose order adopts has ended at this fence"
        return self._winner.snapshot()

    def drop_winner(self) -> None:
        """Drop the first fork of the last tournament, and the forks that could have gone on and do not."""
        self._winner = None
        if self._pending is None:
            self._field = self._origin = None

    def advance_twin(self, step: int) -> None:
        """Train the twin up to an optimizer step of the run, without seeds, on the same batches."""
        self._twin_steps += len(self.twin.train_to(step))

    def twin_losses(self, fence: int) -> SampleLosses:
        """Return the losses of the twin on the slice of the gate shard for this fence."""
        return self.twin.sample_losses("gate", fence)

    def twin_means(self, shard: str, most: int | None = None) -> dict[str, float]:
        """Return the twin's mean loss ("loss") and the metrics over a shard, or over `most` of its samples."""
        return self.twin.shard_means(shard, most)

    def twin_report(self) -> TwinReport:
        """Return the twin's number of steps and digest of weights."""
        return TwinReport(steps=self._twin_steps, weights_sha256=self.twin.weights_sha256())

    def state(self, fence: int) -> dict[str, Any]:  # Any: see leyline's ports
        """Return the state for a checkpoint: the twin, and the snapshot from which the pending order began.

        The snapshot (`origin`) is None if no order is pending. It is also None if the order began at this fence,
        because the checkpoint contains the host of this fence.
        """
        origin = self._pending[2] if self._pending is not None and self._pending[0].fence != fence else None
        twin = self._twin.snapshot() if self._twin is not None else None
        return {"twin": twin, "twin_steps": self._twin_steps, "origin": origin}

    def restore(self, state: Mapping[str, Any]) -> None:  # Any: see leyline's ports
        """Load the twin of `state`. If `state` has no twin, remove the twin. The pending order is dropped."""
        self._pending = self._control = self._winner = self._field = self._origin = None
        self._twin = self._fork(state["twin"]) if state["twin"] is not None else None
        self._twin_steps = state["twin_steps"]

    @property
    def twin(self) -> Fork:
        """The twin: a copy of the host that trains without seeds."""
        assert self._twin is not None, "no twin is kept"
        return self._twin


class Together(Protocol):
    """Runs independent pieces of work and returns their results in the order of the pieces."""

    def __call__(self, pieces: Sequence[Callable[[], T]], /) -> list[T]:
        """Return all results. If a piece raises, raise the first error."""
        ...


def one_by_one(pieces: Sequence[Callable[[], T]]) -> list[T]:
    """Run the pieces in one thread, in order; see `Together`."""
    return [piece() for piece in pieces]


def run_tournament(
    order: IncubationOrder,
    weights: Weights,
    fork: ForkFactory[F],
    snapshot: Any,
    together: Together = one_by_one,
    live: LiveHost | None = None,
    field: Field[F] | None = None,
) -> tuple[IncubationResult, Field[F]]:
    """Train the control and all forks, drop some forks at each rung, rank the rest, and test the best fork.

    Args:
        together: Function that runs independent pieces, perhaps in parallel. The choice of this function changes no
            result.
        live: The live host, if it is in this process. Then `together` must be `one_by_one`.
        field: The forks of `order` at the step `order.goes_on_from`. None: they are made and trained. This changes no
            result.

    Returns:
        The result, and the forks at `order.last_step`.
    """
    if field is None:
        field = _begun(order, weights, fork, snapshot, together, live)
    for entry in field.everyone:
        entry.go_on(LiveGuard(live) if entry is field.control else field.control.guard)
    control, entries, placebos = field.control, field.entries, field.placebos
    running = [entry for entry in entries if not entry.leaks]
    beside = [entry for entry in placebos if not (entry.leaks or entry.diverged)]
    for rung, (step, units) in enumerate(order.stops):
        running, beside = _train_and_order(control, running, beside, step, order.due_fence, units, together)
        if step < order.last_step:
            running = list(survivors(running, rung, within=_within(running, beside)))
    for place, entry in enumerate(running, start=1):
        entry.rank = place
    gates = _judged_on_gate(control, [*running[:1], *beside], order, together)
    forks = tuple(
        _result(entry, plan.seed_id, control, order, gates) for entry, plan in zip(entries, order.plans, strict=True)
    )
    result = IncubationResult(
        order_id=order.order_id,
        generation=order.generation,
        fence=order.due_fence,
        forks=forks,
        placebos=tuple(_placebo(entry, gates) for entry in placebos),
        fork_steps=sum(len(entry.losses) - entry.before for entry in field.everyone),
        flops=round(sum(entry.flops(order) for entry in field.everyone)),
    )
    return result, Field(control, running, placebos)


def _begun(
    order: IncubationOrder,
    weights: Weights,
    fork: ForkFactory[F],
    snapshot: Any,
    together: Together,
    live: LiveHost | None,
) -> Field[F]:
    """Make the control and all forks of an order, and train them to `order.goes_on_from`."""
    guard, costs = LiveGuard(live), order.seed_flops
    control = _Entry(fork(snapshot), guard)
    entries = [_Entry(fork(snapshot), guard, plan, cost) for plan, cost in zip(order.plans, costs, strict=True)]
    useless = zip(order.placebos, order.placebo_flops, strict=True)
    placebos = [_Entry(fork(snapshot), guard, plan, cost) for plan, cost in useless]
    together([partial(entry.graft, weights) for entry in (*entries, *placebos)])
    made = Field(control, entries, placebos)
    if order.goes_on_from is not None:
        together([partial(entry.train, order.goes_on_from) for entry in made.everyone if not entry.leaks])
    return made


def _train_and_order(
    control: _Entry[F],
    entries: list[_Entry[F]],
    placebos: list[_Entry[F]],
    step: int,
    fence: int,
    units: int | None,
    together: Together,
) -> tuple[list[_Entry[F]], list[_Entry[F]]]:
    """Train the control and all forks up to `step`, and compare each fork with the control on the pick shard.

    Returns:
        The forks of candidates without divergence and without leaks, the best first; and the forks of placebos without
        divergence.
    """
    everyone = (control, *entries, *placebos)
    base, *losses = together([partial(entry.train_and_measure, step, fence, units) for entry in everyone])
    for entry, found in zip(everyone[1:], losses, strict=True):
        entry.pick = paired(base, found)
        entry.picks.append(entry.pick)
    sound = [entry for entry in entries if not (entry.diverged or entry.leaks)]
    return sorted(sound, key=_Entry.place), [entry for entry in placebos if not entry.diverged]


def _within(ranked: list[_Entry[F]], placebos: list[_Entry[F]]) -> bool:
    """Return whether the best fork is not better than the placebos of the same rung. False without placebos."""
    gains = [entry.pick.relative_gain for entry in placebos if entry.pick is not None]
    if len(gains) < 2 or not ranked:
        return bool(gains)
    mean, spread = mean_and_spread(gains)
    best = ranked[0].pick
    return best is not None and not best.relative_gain > max(mean, 0.0) + NEAR * spread


def _judged_on_gate(
    control: _Entry[F], entries: Sequence[_Entry[F]], order: IncubationOrder, together: Together
) -> dict[str, PairedLosses]:
    """Return seed id -> the losses of a fork on the gate shard, compared with those of the control."""
    if not entries:
        return {}
    where = "gate", order.due_fence, order.stops[-1][1]
    base, *losses = together([partial(entry.sample_losses, *where) for entry in (control, *entries)])
    return {entry.seed_id: paired(base, found) for entry, found in zip(entries, losses, strict=True)}


def _placebo(entry: _Entry[F], gates: Mapping[str, PairedLosses]) -> PlaceboResult:
    """Return the result of a placebo. `gates` has its losses on the gate shard if it was trained to the end."""
    assert entry.plan is not None, "a placebo has a plan"
    return PlaceboResult(
        kind=kind_of(entry.plan.blueprint_id) or entry.plan.blueprint_id,
        slot=entry.plan.slot,
        picks=tuple(entry.picks),
        gate=gates.get(entry.seed_id),
    )


def _result(
    entry: _Entry[F], seed_id: str, control: _Entry[F], order: IncubationOrder, gates: Mapping[str, PairedLosses]
) -> ForkResult:
    assert entry.pick is not None or entry.leaks, "every fork is measured at the halving or the end"
    first = entry.rank == 1
    if first:
        entry.observe(order.due_fence)
    return ForkResult(
        seed_id=seed_id,
        steps=len(entry.losses),
        required_steps=len(control.losses),
        rank=entry.rank,
        pick=entry.pick,
        gate=gates[seed_id] if first else None,
        loss_variation=loss_variation(entry.losses) if first else None,
        fallbacks=entry.fallbacks if first else None,
        leaks=entry.leaks,
        weights_sha256=entry.fork.weights_sha256() if first and order.adopts else None,
        control_sha256=control.fork.weights_sha256() if first and order.adopts else None,
    )


def _shared(one: nn.Module, other: nn.Module) -> tuple[str, ...]:
    """Return the names of the tensors whose memory two seeds of a blueprint share.

    A shared tensor was not made for one seed. The factory reuses the tensor, or took it from a host.
    """
    named = {**dict(one.named_parameters()), **dict(one.named_buffers())}
    return sharing_memory([*other.parameters(), *other.buffers()], named)


def _unrun(shared: tuple[str, ...]) -> GradientProbe:
    """Return the probe of a seed that was not attached, because it shares these tensors."""
    return GradientProbe(batches=0, nonfinite=0, norm=0.0, reachable_host_parameters=shared)


def _gradients(fork: ProbedFork, plan: GraftPlan, weights: Weights) -> tuple[GradientProbe, tuple[str, ...] | None]:
    """Measure the gradients of an isolated seed with the blend of a plan, and the fallbacks of its calls.

    The seed is removed afterwards.
    """
    try:
        fork.graft(plan.model_copy(update={"isolated": True}), weights)
    except IsolationViolation as violation:
        return _unrun(violation.leaves), None
    gradient = fork.probe_gradients(plan.seed_id, PROBE_BATCHES)
    fallbacks = _fallbacks(fork, plan.seed_id, plan.fence)
    fork.remove(plan.seed_id)
    return gradient, fallbacks


def _fallbacks(fork: Fork, seed_id: str, fence: int) -> tuple[str, ...] | None:
    """Return how the calls of a seed in its fork differ from the seed's plan (dtype, device, code path).

    None: no call of the seed was recorded.
    """
    found = [seen.fallbacks for seen in fork.observe(fence, {}).seeds if seen.seed_id == seed_id]
    return found[0] if found else None


def loss_variation(losses: list[float]) -> float:
    """Return the scatter of a fork's training losses in the second half of its steps, as a share of their mean.

    Scatter is the standard deviation about a straight line, so that a loss that falls fast does not count as unstable.
    It is not compared with the scatter of the control, because the loss of a control at chance level hardly varies.
    In such a comparison every seed that learns would count as unstable.
    """
    late = np.asarray(losses[len(losses) // 2 :])
    steps = np.arange(len(late))
    line = np.polyval(np.polyfit(steps, late, 1), steps) if len(late) > 2 else late
    return float(np.std(late - line) / abs(late.mean()))
