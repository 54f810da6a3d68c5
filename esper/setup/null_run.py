"""One run of useless seeds: its tournaments, and whether the gate G2 accepts the first seed of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

from esper.errors import ConfigError
from esper.ground.temporary_rng import temporary_rng
from esper.kasmina.blueprints.placebos import USELESS, kind_of, useless_name
from esper.kasmina.incubation.incubator import run_tournament
from esper.kasmina.incubation.placebo_plans import placebo_plans, placebo_weights
from esper.kasmina.incubation.planning import plan_seed
from esper.kasmina.incubation.rungs import candidates_of, course
from esper.kasmina.judging.gates import stability_gate
from esper.kasmina.registry.gate_evidence import stability_evidence
from esper.kasmina.registry.selection import gains_of
from esper.leyline.commands import BlendMode, BlendSpec, Candidate
from esper.leyline.decisions import Hold
from esper.leyline.evidence import StabilityEvidence
from esper.leyline.incubation import ForkResult, IncubationOrder, IncubationResult
from esper.leyline.reports import Check, GraftPlan
from esper.leyline.slots import SlotSpec
from esper.setup.assembly import RunKey, make_fork_factory
from esper.setup.candidates import first_tournament
from esper.setup.survey import Survey
from esper.tamiyo.fields import in_turn
from esper.tolaria.trainer import never

FIRST_NUMBER = 1000
"""Number of the first useless candidate. The placebos of a tournament have smaller numbers, so their weights differ."""
KEY = RunKey("", 0, b"null")
Named = tuple[SlotSpec, str]
"""Slot and name of a useless candidate."""


@dataclass(frozen=True)
class NullTournament:
    """The end of one tournament between useless seeds."""

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

    @property
    def only_placebos_refuse(self) -> bool:
        """Whether the first seed met every limit of G2, or every limit but that of the placebos."""
        return self.kind is not None and set(self.reasons) <= {"within_placebo"}


def null_run(
    survey: Survey, tournaments: int, size: int, told: Callable[[NullTournament], None]
) -> list[NullTournament]:
    """Train the host, hold tournaments of useless seeds one after the other, and judge the first seed of each by G2.

    The run ends with the first tournament that accepts a seed. Later tournaments are between the best seeds of the
    first; see `growth.best_again`.

    Args:
        tournaments: Largest number of tournaments.
        size: Number of candidates in the first tournament.
        told: Function that is called after each tournament.
    """
    growth, fences = survey.config.growth, survey.fence_steps
    trainer = survey.trainer(KEY.run_id, KEY.generation, "tolaria", never)
    named, found = distinct(survey.specs, size), list[NullTournament]()
    for number in range(1, tournaments + 1):
        fence = survey.first_fence + (number - 1) * survey.due_rounds
        with temporary_rng(0):
            trainer.train_to(fences[fence])
            plans, result = _held(survey, fence, named, trainer.snapshot())
        found.append(_judged(survey, plans, result, number, size))
        told(found[-1])
        if found[-1].accepted:
            break
        if number == 1 and growth.best_again is not None:
            named = _best(named, result, growth.best_again)
    return found


def candidates(survey: Survey, runs: int) -> int:
    """Return the number of candidates in the first tournament of a run. Raises: ConfigError: each of the `runs` holds
    none.
    """
    first = first_tournament(survey)
    if isinstance(first, Hold):
        known = first.measured is not None and first.limit is not None
        figures = f" ({first.measured:g}, limit {first.limit:g})" if known else ""
        raise ConfigError("--null", runs, f"a run of this config holds no tournament: {first.detail}{figures}")
    return len(first)


def distinct(specs: Sequence[SlotSpec], size: int) -> list[Named]:
    """Return `size` useless candidates that differ from each other.

    Kinds take turns, and each kind goes over the slots. A kind without random weights has at most one candidate in a
    slot, because two would have the same bits. There is one dead candidate, because its output is 0 in every slot.
    """
    return list(islice(_turns(specs), size))


def _turns(specs: Sequence[SlotSpec]) -> Iterator[Named]:
    numbers, most = count(FIRST_NUMBER), {"bias": len(specs), "noise": len(specs), "dead": 1}
    for turn in count():
        for kind in USELESS:
            if kind not in most or turn < most[kind]:
                yield specs[turn % len(specs)], useless_name(kind, next(numbers))


def _best(named: Sequence[Named], result: IncubationResult, most: int) -> list[Named]:
    """Return the candidates of a later tournament, chosen as the default policy chooses them; see `in_turn`."""

    def place(at: int) -> tuple[int, float]:
        fork = result.forks[at]
        return -fork.steps, -(fork.pick.relative_gain if fork.pick is not None else 0.0)

    ordered = [(named[at][0].path, named[at][1]) for at in sorted(range(len(named)), key=place)]
    by_name = {(spec.path, name): (spec, name) for spec, name in named}
    return [by_name[pair] for pair in in_turn(ordered)[:most]]


def _held(
    survey: Survey, fence: int, named: Sequence[Named], snapshot: object
) -> tuple[Mapping[str, str], IncubationResult]:
    """Hold one tournament. Return the blueprint of each seed by its id, and the result."""
    growth, run_seed = survey.config.growth, survey.config.run.seed
    specs = {spec.path: spec for spec in survey.specs}
    plans, weights = zip(*(_planned(survey, fence, place, one) for place, one in enumerate(named)), strict=True)
    placebos = placebo_plans(plans, growth.placebos, specs, survey.blueprints, run_seed)
    blobs = {plan.weights_digest: blob for plan, blob in zip(plans, weights, strict=True)}
    for one in placebos:
        blobs[one.weights_digest] = placebo_weights(one, specs[one.slot], survey.blueprints, run_seed)
    order = _order(survey, fence, plans, placebos)
    result, _ = run_tournament(order, blobs, make_fork_factory(survey, KEY), snapshot)
    return {plan.seed_id: plan.blueprint_id for plan in plans}, result


def _judged(
    survey: Survey, blueprints: Mapping[str, str], result: IncubationResult, number: int, size: int
) -> NullTournament:
    growth, run_seed = survey.config.growth, survey.config.run.seed
    told = tuple((one.kind, one.gate.relative_gain if one.gate is not None else None) for one in result.placebos)
    first = next((fork for fork in result.forks if fork.rank == 1), None)
    if first is None:
        return NullTournament(run_seed, False, None, (), {}, number, told)
    report = stability_gate(_evidence(survey, first, result, size), growth, first.seed_id, result.fence)
    figures = {check.name: _figure(check) for check in report.checks if check.above is not None}
    kind = kind_of(blueprints[first.seed_id])
    return NullTournament(run_seed, report.passed, kind, report.reasons, figures, number, told)


def _figure(check: Check) -> dict[str, float | None]:
    value = check.measured
    return {"measured": float(value) if isinstance(value, int | float) else None, "above": check.above}


def _evidence(survey: Survey, first: ForkResult, result: IncubationResult, size: int) -> StabilityEvidence:
    """Return the evidence of G2 for the first seed, as the registry makes it.

    Args:
        size: Number of candidates in the first tournament of the run.
    """
    growth = survey.config.growth
    changes = 0 if growth.entry == "adopt" else None
    gains, total = None, None
    if growth.placebos:
        gains, total = gains_of(result), candidates_of(survey.resolved.growth, survey.fence_steps, size)
    return stability_evidence(None, first, None, result.fence, changes, gains, survey.g2_tests, total)


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
