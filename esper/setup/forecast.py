"""Forecasts the candidates, the cost and the waits of a run. `esper plan` prints the forecast. Compute is modelled from
the dry run. Seconds are measured on networks that are discarded afterwards, because small kernels take longer than
their modelled FLOPs suggest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from esper.ground.clock import SystemClock
from esper.ground.random_streams import generator
from esper.kasmina.incubation.placebo_plans import placebo_plans, placebo_weights
from esper.leyline.decisions import Hold, Pair
from esper.leyline.ids import new_run_id
from esper.leyline.incubation import Received
from esper.leyline.reports import GraftPlan, Weights
from esper.setup.assembly import RunKey, make_fork_factory, make_incubator, make_kasmina, make_tamiyo, make_trainer
from esper.setup.candidates import candidate_rows, first_state, first_tournament, left_out_by_budgets, why_nothing_grows
from esper.setup.survey import Survey
from esper.setup.total_cost import looks_flops, run_flops
from esper.setup.tournament_cost import Heat, heats_of, last_units, placebos_of, tournament_flops

DRAWS = 50
"""Number of random orders of the candidates over which the seconds of a tournament are averaged."""
WARM_UP_STEPS, TIMED_STEPS = 2, 6
TIMED_PROBES_EVERY = 3
"""Every third candidate is probed. A probe of each other candidate is assumed to take as long, because probing all
candidates would take too much time."""


def forecast(survey: Survey) -> dict[str, Any]:
    """Return sizes, slots, candidates, the modelled cost of the host and of a first tournament, and expected waits."""
    growth, data = survey.config.growth, survey.data
    first = first_tournament(survey) if survey.can_grow else ()
    tried = () if isinstance(first, Hold) else first
    step, (least, most) = survey.host_flops, tournament_flops(survey, tried)
    return {
        "steps": survey.total_steps,
        "rounds": len(survey.fence_steps) - 1,
        "batch_size": data.batch_size,
        "samples": {name: len(shard) for name, shard in data.shards.items()},
        "host_parameters": survey.host_parameters,
        "parameter_budget": survey.parameter_budget,
        **batch_facts(survey),
        "g2_z": survey.g2_limit() if growth.enabled else None,
        "g2_tests": survey.g2_tests if growth.enabled else None,
        "g2_tests_of": growth.tests if growth.enabled else None,
        "g2_tests_of_looks": survey.g2_tests_of_looks if growth.enabled and survey.looks else None,
        "g2_z_of_looks": survey.g2_limit(look=True) if growth.enabled and survey.looks else None,
        "later_looks": survey.looks if survey.can_grow else 0,
        "g2_units": survey.judged_units if growth.enabled else None,
        "germinates_at_fences": [survey.first_fence, survey.last_germination] if survey.can_grow else None,
        "first_snapshot_step": survey.fence_steps[survey.first_fence] if survey.can_grow else None,
        "why_nothing_grows": why_nothing_grows(survey),
        "preset": growth.preset,
        "preset_sets": {key: ours for key, (told, ours) in growth.of_preset.items() if told == ours},
        "preset_overridden": {key: ours for key, (told, ours) in growth.of_preset.items() if told != ours},
        "preset_left_out": growth.preset_left_out,
        "without_effect": growth.without_effect,
        "first_hold": first.model_dump(mode="json") if isinstance(first, Hold) else None,
        "slots": [spec.model_dump(mode="json") | {"varies": spec.path in survey.varying} for spec in survey.specs],
        "left_out": [{"slot": path, "why": why} for path, why in survey.left_out.items()],
        "candidates": candidate_rows(survey, tried),
        "left_out_by_budgets": left_out_by_budgets(survey),
        "host_gflops": survey.total_steps * step / 1e9,
        "tournament_gflops": (least + most) / 2e9,
        "tournament_gflops_least": least / 1e9,
        "tournament_gflops_most": most / 1e9,
        "looks_gflops_most": looks_flops(survey, tried, step) / 1e9 if tried else 0.0,
        "rungs": _rungs(survey, len(tried)),
        "total_gflops_most": _total_flops(survey, tried) / 1e9 if tried else None,
        "max_cost_gflops": growth.max_cost,
        "placebos": growth.placebos if tried else 0,
        "twin_gflops": _twin_steps(survey) * step / 1e9,
        "tournament_bytes": 4 * _fork_bytes(survey, tried),
        **foretell_waits(survey, measure(survey)),
    }


def batch_facts(survey: Survey) -> dict[str, Any]:
    """Return whether loss and network make the loss of a sample depend on the other samples of its batch. A value of
    None means that it could not be determined; the key that ends in `_unknown` then has the reason.
    """
    return {
        "loss_depends_on_batch": survey.loss_depends_on_batch,
        "loss_depends_on_batch_unknown": survey.loss_dependence_unknown,
        "network_mixes_samples": survey.mixing.mixes,
        "network_mixes_samples_unknown": survey.mixing.why,
        "mixed_by": survey.mixing.module,
    }


# -- compute -----------------------------------------------------------------------------------------------------


def _twin_steps(survey: Survey) -> int:
    """Return the steps of a twin that starts when the first tournament ends. Return 0 if the run has no twin."""
    growth = survey.config.growth
    if not (growth.twin and survey.can_grow):
        return 0
    return survey.total_steps - survey.fence_steps[survey.first_fence + survey.due_rounds]


def _fork_bytes(survey: Survey, tried: Sequence[Pair]) -> int:
    """Return the bytes of the parameters of all forks of a first tournament, its control included."""
    if not tried:
        return 0
    copies = survey.config.growth.copies
    seeds = [pair.parameters for pair in tried]
    seeds += [made.parameters(spec, copies) for made, spec in placebos_of(survey, tried)]
    return sum(survey.host_bytes + 4 * seed for seed in (0, *seeds))


def _total_flops(survey: Survey, tried: Sequence[Pair]) -> float:
    """Return the largest FLOPs of a run with one tournament, which is between some pairs."""
    key = RunKey(new_run_id(), 0, b"plan")
    view = make_kasmina(survey, key, SystemClock()).view(survey.first_fence)
    return run_flops(survey, first_state(survey, key, view), tried, replica=False)


def _rungs(survey: Survey, seeds: int) -> list[dict[str, int]]:
    """Return the rungs of a first tournament as JSON values: the steps of the forks since the snapshot, the judged
    samples, and the number of candidates that train up to the rung.
    """
    heats, steps = heats_of(survey, seeds), 0
    found = []
    for heat in heats:
        steps += heat.steps
        sizes = {"candidates_least": heat.least, "candidates_most": heat.most}
        found.append({"step": steps, "samples": heat.samples, **sizes})
    return found


def _incubating_steps(survey: Survey) -> int:
    """Return the steps that the live host takes during a first tournament."""
    last = len(survey.fence_steps) - 1
    due = min(survey.first_fence + survey.due_rounds, last)
    return survey.fence_steps[due] - survey.fence_steps[max(0, due - survey.due_rounds)]


# -- seconds -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Measured seconds of one network."""

    making_s: float
    step_s: float
    evaluation_s: float
    """Seconds to evaluate the slice of a judging shard on which the last rung judges."""

    def beside(self, other: Work, host: Work) -> Work:
        """Return the seconds of a host with the seeds of both networks. Each of them alone is that of a host with a
        seed.
        """
        step_s, evaluation_s = self.step_s + other.step_s, self.evaluation_s + other.evaluation_s
        return Work(self.making_s, step_s - host.step_s, evaluation_s - host.evaluation_s)

    def heat(self, steps: int, share: float = 1.0) -> float:
        """Return the seconds of the training steps and of the evaluation after them.

        Args:
            share: Number of the judged samples, divided by that of the last rung.
        """
        return steps * self.step_s + share * self.evaluation_s


@dataclass(frozen=True)
class Timings:
    """Seconds of a task's networks, measured on this machine."""

    host: Work
    forks: tuple[Work, ...]
    """Forks of the first tournament, one per candidate. Empty: no seed can germinate."""
    probe_s: float
    """Seconds to measure one candidate for G0 and G1."""
    placebos: tuple[Work, ...] = ()
    """Forks of the first tournament's placebos."""

    @property
    def fork(self) -> Work:
        """The average of the seconds over the forks of all candidates."""
        return Work(
            statistics.fmean(work.making_s for work in self.forks),
            statistics.fmean(work.step_s for work in self.forks),
            statistics.fmean(work.evaluation_s for work in self.forks),
        )


def foretell_waits(survey: Survey, measured: Timings) -> dict[str, Any]:
    """Return the seconds that the trainer waits for Kasmina's managers. Values are None if no seed can germinate. The
    wait for a replica is also None if the run has no replicas, and that for a second tournament if the run has no time
    for one, or if its candidates are not the best of the first.

    Each process is assumed to have a core.
    """
    growth, steps = survey.config.growth, _incubating_steps(survey)
    count = len(measured.forks)
    forks = 1 + count + len(measured.placebos)
    heats = heats_of(survey, count)
    found: dict[str, Any] = {"step_s": measured.host.step_s, "managers": growth.managers}
    if not count:
        waits = ("first", "again", "replica", "least")
        nothing = (*(f"fence_wait_{one}_s" for one in waits), "managers_for_no_wait", "tournament_s")
        return found | dict.fromkeys(nothing)

    def first(managers: int) -> float:
        whole = (tournament_s(measured, sizes, managers) for sizes in _both(heats))
        return statistics.fmean(max(0.0, one - steps * measured.host.step_s) for one in whole)

    again = min(growth.best_again, count) if growth.best_again is not None and survey.tournaments > 1 else None
    least = first(forks)
    waitless = (managers for managers in range(1, forks + 1) if least == 0.0 and first(managers) == 0.0)
    alone = statistics.fmean(tournament_s(measured, sizes, 1) for sizes in _both(heats))
    return found | {
        "fence_wait_first_s": probes_s(measured, count, growth.managers) + first(growth.managers),
        "fence_wait_again_s": _again_wait_s(survey, measured, again) if again else None,
        "fence_wait_replica_s": _replica_wait_s(survey, measured, heats) if growth.replicas > 1 else None,
        "fence_wait_least_s": probes_s(measured, count, forks) + least,
        "managers_for_no_wait": next(waitless, None),
        "tournament_s": probes_s(measured, count, 1) + alone,
    }


def _again_wait_s(survey: Survey, measured: Timings, count: int) -> float:
    """Return the seconds that the trainer waits for a second tournament, between `count` candidates, if the first has
    accepted a seed. All networks but the twin, which trains meanwhile, then have one seed more.
    """
    growth, steps, one = survey.config.growth, _incubating_steps(survey), measured.fork
    forks = (one.beside(one, measured.host),) * count
    placebos = tuple(made.beside(one, measured.host) for made in measured.placebos)
    later = Timings(one, forks, measured.probe_s, placebos)
    whole = statistics.fmean(tournament_s(later, sizes, growth.managers) for sizes in _both(heats_of(survey, count)))
    twin = steps * measured.host.step_s / growth.managers if growth.twin else 0.0
    return probes_s(later, count, growth.managers) + max(0.0, whole + twin - steps * one.step_s)


def _replica_wait_s(survey: Survey, measured: Timings, heats: Sequence[Heat]) -> float:
    """Return the seconds that the trainer waits for the first replica."""
    growth, trained = survey.config.growth, sum(heat.steps for heat in heats)
    whole = replica_s(measured, trained, growth.managers, twin=growth.twin)
    beside = whole - _incubating_steps(survey) * measured.fork.step_s
    return probes_s(measured, 1, growth.managers) + max(0.0, beside)


def busiest(pieces: Iterable[tuple[int, float]], managers: int) -> float:
    """Return the seconds until all pieces of work are done. A piece is (number, seconds). Manager `number % managers`
    does this piece; a manager does its pieces one after the other.
    """
    loads = [0.0] * managers
    for number, seconds in pieces:
        loads[number % managers] += seconds
    return max(loads)


def probes_s(measured: Timings, count: int, managers: int) -> float:
    """Return the seconds in which the managers measure `count` candidates. The trainer always waits for these
    measurements.
    """
    return busiest([(number, measured.probe_s) for number in range(count)], managers)


Field = tuple[int, float, int]
"""A heat as `tournament_s` needs it: steps, judged samples over those of the last rung, number of candidates."""


def _both(heats: Sequence[Heat]) -> tuple[list[Field], list[Field]]:
    """Return the heats with the least and with the largest numbers of candidates."""
    last = heats[-1].samples
    least = [(heat.steps, heat.samples / last, heat.least) for heat in heats]
    return least, [(heat.steps, heat.samples / last, heat.most) for heat in heats]


def tournament_s(measured: Timings, heats: Sequence[Field], managers: int) -> float:
    """Return the seconds of a first tournament.

    The control has number 0, and the forks of the candidates and then those of the placebos have the next numbers. A
    fork stays with the manager of its number. It is not known which forks reach the later heats. So the seconds are the
    mean over `DRAWS` random orders of the candidates.
    """
    numbered = list(enumerate((measured.host, *measured.forks, *measured.placebos)))
    seeds, beside = numbered[1 : 1 + len(measured.forks)], [numbered[0], *numbered[1 + len(measured.forks) :]]
    making = {number: work.making_s for number, work in numbered}

    def whole(ranked: Sequence[tuple[int, Work]]) -> float:
        """Return the seconds if the candidates have this order at each rung."""
        seconds = 0.0
        for place, (steps, share, size) in enumerate(heats):
            running = [*beside, *ranked[:size]]
            pieces = [(number, work.heat(steps, share) + (0 if place else making[number])) for number, work in running]
            seconds += busiest(pieces, managers)
        judged = [*beside, ranked[0]]
        return seconds + busiest([(number, work.evaluation_s) for number, work in judged], managers)

    draws = 1 if managers == 1 else DRAWS
    orders = (generator(0, "forecast", draw).permutation(len(seeds)) for draw in range(draws))
    return statistics.fmean(whole([seeds[place] for place in order]) for order in orders)


def replica_s(measured: Timings, steps: int, managers: int, *, twin: bool) -> float:
    """Return the seconds of the first replica's incubation. The control of this incubation and the twin are trained at
    the same time.

    The control has one seed, the accepted seed. The replica's fork has two seeds. The twin has number 0, because it is
    the control of the first tournament. The control and the fork have the next numbers after all forks of that
    tournament.
    """
    one, host = measured.fork, measured.host
    two = one.beside(one, host)
    number = 1 + len(measured.forks) + len(measured.placebos)
    pieces = [(number, one.making_s + one.heat(steps)), (number + 1, two.making_s + two.heat(steps))]
    if twin:
        pieces.append((0, steps * host.step_s))
    gate = busiest([(number, one.evaluation_s), (number + 1, two.evaluation_s)], managers)
    return busiest(pieces, managers) + gate


# -- measuring ---------------------------------------------------------------------------------------------------


def measure(survey: Survey) -> Timings:
    """Measure the seconds of a few steps of the host, and of a fork with each candidate and each placebo of a first
    tournament. The networks are discarded.

    Raises:
        EsperError: the error with which a run would fail at the start of its first tournament.
    """
    key, fence = RunKey(new_run_id(), 0, b"plan"), survey.first_fence
    trainer, make = make_trainer(survey, key), make_fork_factory(survey, key)
    first = _first_plans(survey, key) if survey.can_grow else None
    plans, weights = (first.plans, first.weights) if first is not None else ((), {})
    useless, of_useless = _placebos(survey, plans)
    weights = {**weights, **of_useless}
    units = last_units(survey, len(plans)) if plans else None
    # an untrained host, from which the forks begin
    snapshot = replace(trainer.snapshot(), step=plans[0].start_step if plans else 0)

    def work(plan: GraftPlan | None) -> Work:
        start = time.perf_counter()
        fork = make(snapshot)
        if plan is not None:
            fork.graft(plan, weights)
        moments = [time.perf_counter()]
        for step in range(min(WARM_UP_STEPS + TIMED_STEPS, survey.total_steps)):
            fork.train_to(snapshot.step + step + 1)
            moments.append(time.perf_counter())
        if survey.config.growth.enabled:  # if no tournament is expected, the judging shards may be empty
            fork.sample_losses("pick", fence, units)
        evaluation_s = time.perf_counter() - moments[-1]
        steps = [after - before for before, after in pairwise(moments)]
        return Work(moments[0] - start, statistics.median(steps[WARM_UP_STEPS:] or steps), evaluation_s)

    work(None)  # not timed, because the first steps of a process are slow
    host, forks, placebos = work(None), tuple(map(work, plans)), tuple(map(work, useless))
    some = plans[::TIMED_PROBES_EVERY]
    start = time.perf_counter()
    make_incubator(survey, key).probe_candidates(some, weights, snapshot)
    return Timings(host, forks, (time.perf_counter() - start) / max(1, len(some)), placebos)


def _placebos(survey: Survey, plans: Sequence[GraftPlan]) -> tuple[tuple[GraftPlan, ...], Weights]:
    """Return the plans of the placebos of a tournament, and their weights."""
    seed, specs = survey.config.run.seed, {spec.path: spec for spec in survey.specs}
    made = placebo_plans(plans, survey.config.growth.placebos if plans else 0, specs, survey.blueprints, seed)
    found = {plan.weights_digest: placebo_weights(plan, specs[plan.slot], survey.blueprints, seed) for plan in made}
    return made, found


def _first_plans(survey: Survey, key: RunKey) -> Received | None:
    """Return the plans of the forks of a run's first tournament. Return None if the policy tries no pair."""
    fence, clock = survey.first_fence, SystemClock()
    kasmina = make_kasmina(survey, key, clock)
    outcome = make_tamiyo(survey, key, clock).decide(first_state(survey, key, kasmina.view(fence))).outcome
    return None if isinstance(outcome, Hold) else kasmina.receive(outcome, fence)
