"""Measures how often useless seeds pass the gate G2 on a task: tournaments between seeds that cannot help.

The gate has an assumed chance of a false pass. This trial measures it on the user's own host, data and config. Each
tournament has a host of its own: another run seed, so other first weights, batches and judged samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from esper.errors import ConfigError
from esper.ground.temporary_rng import temporary_rng
from esper.kasmina.blueprints.placebos import USELESS, kind_of, useless_name
from esper.kasmina.incubation.incubator import run_tournament
from esper.kasmina.incubation.placebo_plans import placebo_plans, placebo_weights
from esper.kasmina.incubation.planning import plan_seed
from esper.kasmina.incubation.rungs import course
from esper.kasmina.judging.gates import stability_gate
from esper.kasmina.judging.statistics import exact_interval
from esper.kasmina.registry.gate_evidence import stability_evidence
from esper.kasmina.registry.selection import gains_of
from esper.leyline.commands import BlendMode, BlendSpec, Candidate
from esper.leyline.incubation import IncubationOrder
from esper.leyline.reports import Check, GraftPlan
from esper.setup.assembly import RunKey, make_fork_factory
from esper.setup.survey import Survey, open_data
from esper.tolaria.trainer import never

FIRST_NUMBER = 1000
"""Number of the first useless candidate. The placebos of a tournament have smaller numbers, so their weights differ."""
KEY = RunKey("", 0, b"null")


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


@dataclass(frozen=True)
class NullTrial:
    """The results of all tournaments of a trial."""

    tournaments: tuple[NullTournament, ...]
    candidates: int
    """Number of useless seeds in each tournament."""
    placebos: int
    tests: int
    """Number of tests among which G2 divided the chance of a false pass."""

    @property
    def accepted(self) -> int:
        """Number of tournaments that accepted a useless seed."""
        return sum(one.accepted for one in self.tournaments)

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval of the share of tournaments that accept a useless seed."""
        return exact_interval(self.accepted, len(self.tournaments))

    def as_json(self) -> dict[str, Any]:
        """Return JSON values. `interval` is the exact 95 % interval of the share, by Clopper and Pearson."""
        count = len(self.tournaments)
        return {
            "tournaments": count,
            "candidates": self.candidates,
            "placebos": self.placebos,
            "tests": self.tests,
            "accepted": self.accepted,
            "share": self.accepted / count,
            "interval": list(self.interval),
            "accepted_by_kind": dict(Counter(one.kind for one in self.tournaments if one.accepted)),
            "first_by_kind": dict(Counter(str(one.kind) for one in self.tournaments)),
            "refused_by_reason": dict(Counter(reason for one in self.tournaments for reason in one.reasons)),
            "each": [vars(one) | {"reasons": list(one.reasons)} for one in self.tournaments],
        }


def null_trial(survey: Survey, tournaments: int, told: Callable[[NullTournament], None] = lambda _: None) -> NullTrial:
    """Hold tournaments between useless seeds, and judge the first seed of each by G2, with the limits of the config.

    The gates G0 and G1 are left out, because G0 would refuse some of these seeds. With `growth.placebos`, the limit of
    the placebos comes from the same tournament alone.

    Args:
        tournaments: Number of tournaments, 1 or more.
        told: Function that is called after each tournament.

    Raises:
        ConfigError: no seed can germinate in a run of this task and config, so it holds no tournament.
        DivergenceUnrecoverable: the training of a control diverged.
        EvidenceMissing: no placebo was trained to the end.
    """
    if not survey.can_grow:
        mend = "no seed can germinate in this run, so there is no tournament to repeat; see `esper plan`"
        raise ConfigError("--null", tournaments, mend)
    found = []
    for number in range(tournaments):
        with temporary_rng(0):
            found.append(_tournament(_reseeded(survey, survey.config.run.seed + 1 + number)))
        told(found[-1])
    growth = survey.config.growth
    return NullTrial(tuple(found), _candidates(survey), growth.placebos, survey.g2_tests)


def _candidates(survey: Survey) -> int:
    return min(survey.config.growth.candidates, len(survey.options))


def _reseeded(survey: Survey, run_seed: int) -> Survey:
    """Return the survey of the same task with another run seed."""
    config = survey.config.model_copy(update={"run": survey.config.run.model_copy(update={"seed": run_seed})})
    return replace(survey, config=config, data=open_data(survey.task, config))


def _tournament(survey: Survey) -> NullTournament:
    growth, run_seed, fence = survey.config.growth, survey.config.run.seed, survey.first_fence
    specs = {spec.path: spec for spec in survey.specs}
    trainer = survey.trainer(KEY.run_id, KEY.generation, "tolaria", never)
    trainer.train_to(survey.fence_steps[fence])
    plans, weights = zip(*_useless(survey, fence), strict=True)
    placebos = placebo_plans(plans, growth.placebos, specs, survey.blueprints, run_seed)
    blobs = {plan.weights_digest: blob for plan, blob in zip(plans, weights, strict=True)}
    for one in placebos:
        blobs[one.weights_digest] = placebo_weights(one, specs[one.slot], survey.blueprints, run_seed)
    order = _order(survey, fence, plans, placebos)
    result, _ = run_tournament(order, blobs, make_fork_factory(survey, KEY), trainer.snapshot())
    first = next((fork for fork in result.forks if fork.rank == 1), None)
    if first is None:
        return NullTournament(run_seed, accepted=False, kind=None, reasons=(), figures={})
    gains = gains_of(result) if growth.placebos else None
    changes = 0 if growth.entry == "adopt" else None
    evidence = stability_evidence(None, first, None, order.due_fence, changes, gains, survey.g2_tests)
    report = stability_gate(evidence, growth, first.seed_id, order.due_fence)
    kind = next(kind_of(plan.blueprint_id) for plan in plans if plan.seed_id == first.seed_id)
    figures = {check.name: _figure(check) for check in report.checks if check.above is not None}
    return NullTournament(run_seed, report.passed, kind, report.reasons, figures)


def _figure(check: Check) -> dict[str, float | None]:
    value = check.measured
    return {"measured": float(value) if isinstance(value, int | float) else None, "above": check.above}


def _useless(survey: Survey, fence: int) -> Iterator[tuple[GraftPlan, bytes]]:
    """Yield the plan and the weights of each useless seed. Kinds take turns, and then slots."""
    growth, kinds = survey.config.growth, tuple(USELESS)
    for place in range(_candidates(survey)):
        spec = survey.specs[place // len(kinds) % len(survey.specs)]
        name = useless_name(kinds[place % len(kinds)], FIRST_NUMBER + place)
        yield plan_seed(
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
