"""One tournament of useless seeds, and the verdicts of gate G2: at its end, and at later looks at its refused seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esper.ground.temporary_rng import temporary_rng
from esper.kasmina.blueprints.placebos import kind_of
from esper.kasmina.incubation.incubator import Field, run_tournament
from esper.kasmina.incubation.placebo_plans import placebo_plans, placebo_weights
from esper.kasmina.incubation.planning import later_look, plan_seed
from esper.kasmina.incubation.rungs import candidates_of, course, next_look
from esper.kasmina.judging.gates import stability_gate
from esper.kasmina.registry.gate_evidence import stability_evidence
from esper.kasmina.registry.selection import deserves_a_look, gains_of
from esper.leyline.commands import BlendMode, BlendSpec, Candidate
from esper.leyline.incubation import ForkResult, IncubationOrder, IncubationResult
from esper.leyline.reports import Check, GateReport, GraftPlan
from esper.leyline.slots import SlotSpec
from esper.setup.assembly import RunKey, make_fork_factory
from esper.setup.survey import Survey

KEY = RunKey("", 0, b"null")
Named = tuple[SlotSpec, str]
"""Slot and name of a useless candidate."""


@dataclass(frozen=True)
class NullVerdict:
    """The verdict of one tournament between useless seeds, or of a later look at its refused seeds."""

    run_seed: int
    accepted: bool
    kind: str | None
    """Kind of the first seed. None: the training of every seed diverged."""
    reasons: tuple[str, ...]
    """Why G2 refused the first seed. Empty if it was accepted, or if there is no first seed."""
    figures: dict[str, dict[str, float | None]]
    """Check of G2 -> its value ("measured") and the limit above which it must be ("above")."""
    number: int = 1
    """Number of the tournament in its run, from 1."""
    placebo_gains: tuple[tuple[str, float | None], ...] = ()
    """Kind and gain of each placebo on the gate shard. None: its training diverged."""
    look: int = 0
    """Number of the later look, from 1. 0: the verdict at the end of the tournament."""

    @property
    def only_placebos_refuse(self) -> bool:
        """Whether the first seed met every limit of G2, or every limit but that of the placebos."""
        return self.kind is not None and set(self.reasons) <= {"within_placebo"}


class NullTournament:
    """A tournament of useless seeds that has ended, perhaps with later looks.

    The gates G0 and G1 are left out, because G0 would refuse some of these seeds.
    """

    def __init__(self, survey: Survey, fence: int, named: Sequence[Named], snapshot: object, size: int) -> None:
        """Hold the tournament.

        Args:
            snapshot: Snapshot of the host at the fence.
            size: Number of candidates in the first tournament of the run.
        """
        growth, run_seed = survey.config.growth, survey.config.run.seed
        specs = {spec.path: spec for spec in survey.specs}
        plans, weights = zip(*(_planned(survey, fence, place, one) for place, one in enumerate(named)), strict=True)
        placebos = placebo_plans(plans, growth.placebos, specs, survey.blueprints, run_seed)
        self._survey, self._snapshot, self._size = survey, snapshot, size
        self._blobs = {plan.weights_digest: blob for plan, blob in zip(plans, weights, strict=True)}
        for one in placebos:
            self._blobs[one.weights_digest] = placebo_weights(one, specs[one.slot], survey.blueprints, run_seed)
        self._field: Field[Any] | None = None  # Any: the forks of `make_fork_factory`
        self.result = self._run(_order(survey, fence, plans, placebos))

    def _run(self, order: IncubationOrder) -> IncubationResult:
        forks, field = make_fork_factory(self._survey, KEY), self._field
        with temporary_rng(0):
            result, self._field = run_tournament(
                order, self._blobs, forks, self._snapshot, field=field.chosen(order) if field is not None else None
            )
        self._order = order
        return result

    @property
    def due_fence(self) -> int:
        """The fence of the last verdict."""
        return self._order.due_fence

    def go_on(self, most: int) -> int:
        """Let the best refused seeds train on to their next look; see `growth.beside`. `result` is then that of the
        look.

        Args:
            most: Largest number of seeds that may go on.

        Returns:
            The number of seeds that went on. 0: there is no later look.
        """
        growth, fences = self._survey.resolved.growth, self._survey.fence_steps
        due = next_look(growth, fences, self._order.fence, self.due_fence)
        field, report = self._field, self._report()
        assert field is not None, "the tournament was held"
        seed_ids = [entry.seed_id for entry in field.entries[: growth.beside]]
        gains = gains_of(self.result)
        if due is None or report is None or len(seed_ids) > most or not deserves_a_look(report, gains):
            return 0
        self.result = self._run(later_look(self._order, "null", seed_ids, due, fences[due]))
        return len(seed_ids)

    def verdict(self, number: int, look: int) -> NullVerdict:
        """Judge the first seed by G2, with the limits of the config."""
        run_seed, report = self._survey.config.run.seed, self._report()
        told = tuple(
            (one.kind, one.gate.relative_gain if one.gate is not None else None) for one in self.result.placebos
        )
        if report is None:
            return NullVerdict(run_seed, False, None, (), {}, number, told, look)
        blueprints = {plan.seed_id: plan.blueprint_id for plan in self._order.plans}
        figures = {check.name: _figure(check) for check in report.checks if check.above is not None}
        kind = kind_of(blueprints[report.seed_id])
        return NullVerdict(run_seed, report.passed, kind, report.reasons, figures, number, told, look)

    def _report(self) -> GateReport | None:
        """Return the report of G2 for the first seed, with the evidence that the registry makes. None: the training of
        every seed diverged.
        """
        first = next((fork for fork in self.result.forks if fork.rank == 1), None)
        return self._judged(first) if first is not None else None

    def _judged(self, first: ForkResult) -> GateReport:
        survey, fence = self._survey, self.result.fence
        growth = survey.config.growth
        changes = 0 if growth.entry == "adopt" else None
        gains, total, look = None, None, self._order.goes_on_from is not None
        if growth.placebos:
            gains = gains_of(self.result)
            total = candidates_of(survey.resolved.growth, survey.fence_steps, self._size, look=look)
        tests = survey.g2_tests_of_looks if look else survey.g2_tests
        evidence = stability_evidence(None, first, None, fence, changes, gains, tests, total)
        return stability_gate(evidence, growth, first.seed_id, fence)


def _figure(check: Check) -> dict[str, float | None]:
    value = check.measured
    return {"measured": float(value) if isinstance(value, int | float) else None, "above": check.above}


def _planned(survey: Survey, fence: int, place: int, named: Named) -> tuple[GraftPlan, bytes]:
    """Return the plan and the weights of a useless seed."""
    growth, (spec, name) = survey.config.growth, named
    return plan_seed(
        Candidate(slot=spec.path, blueprint_id=name, seed_id=f"useless-{place}", copies=growth.copies),
        spec,
        survey.blueprints.get(name),
        run_id=KEY.run_id,
        generation=KEY.generation,
        command_id="null",
        run_seed=survey.config.run.seed,
        fence=fence,
        step=survey.fence_steps[fence],
        ordinal=0,
        blend=BlendSpec(mode=BlendMode.RESIDUAL, ramp_steps=growth.probe_ramp_steps),
        warmup_steps=growth.probe_warmup_steps,
    )


def _order(
    survey: Survey, fence: int, plans: tuple[GraftPlan, ...], placebos: tuple[GraftPlan, ...]
) -> IncubationOrder:
    found, first = course(survey.config.growth, survey.fence_steps, fence, len(plans)), survey.fence_steps[fence]
    stops = tuple(first + step for step in found.steps)
    return IncubationOrder(
        order_id="null",
        generation=KEY.generation,
        fence=fence,
        due_fence=fence + found.rounds,
        first_step=first,
        last_step=stops[-1],
        halving_step=None,
        rungs=stops,
        rung_units=found.units,
        plans=plans,
        placebos=placebos,
        batch_size=survey.data.batch_size,
        base_flops=survey.host_flops,
        seed_flops=(0,) * len(plans),
        placebo_flops=(0,) * len(placebos),
    )
