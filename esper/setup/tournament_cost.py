"""Forecasts the modelled compute of the first tournament of a run.

It is not known before a run after which rungs the best fork is within the placebos. If it is, more forks continue. So
the cost has a lower and an upper end, and the forecast is their mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from esper.kasmina.blueprints.catalogue import Blueprint
from esper.kasmina.blueprints.placebos import name_of
from esper.kasmina.incubation.incubator import PROBE_BATCHES
from esper.kasmina.incubation.placebo_plans import place_of
from esper.kasmina.incubation.rungs import Course, course, field_sizes
from esper.leyline.decisions import Pair
from esper.leyline.slots import SlotSpec
from esper.setup.survey import Survey


@dataclass(frozen=True)
class Heat:
    """The steps of the forks up to a rung, and the judgement at the rung."""

    steps: int
    samples: int
    """Number of samples of the pick shard on which the rung judges."""
    least: int
    """Number of candidates that train up to the rung, if the best fork was better than the placebos at each rung
    before."""
    most: int
    """Number of candidates that train up to the rung, if the best fork was within the placebos at each rung before."""


def heats_of(survey: Survey, seeds: int) -> tuple[Heat, ...]:
    """Return the heats of a first tournament between `seeds` candidates. Empty: there are no candidates."""
    if not seeds:
        return ()
    found = _course(survey, seeds)
    units = found.units or (None,) * len(found.steps)
    soft = survey.config.growth.placebos > 0
    least, most = (field_sizes(seeds, len(found.steps), within=within) for within in (False, soft))
    return tuple(
        Heat(after - before, samples_of(survey, "pick", one), few, many)
        for (before, after), one, few, many in zip(pairwise((0, *found.steps)), units, least, most, strict=True)
    )


def samples_of(survey: Survey, shard: str, units: int | None) -> int:
    """Return the largest number of samples in a slice of `units` samples, or groups, of a judging shard."""
    return survey.data.most_in_slice(shard, units)


def last_units(survey: Survey, seeds: int) -> int | None:
    """Return the number of samples, or groups, of the last rung. None: the number that a fence draws."""
    units = _course(survey, seeds).units
    return units[-1] if units else None


def placebos_of(survey: Survey, tried: Sequence[Pair]) -> list[tuple[Blueprint, SlotSpec]]:
    """Return the placebos of a first tournament between some pairs, with the slots of the placebos."""
    specs, slots = {spec.path: spec for spec in survey.specs}, [pair.slot for pair in tried]
    count = survey.config.growth.placebos if tried else 0
    places = ((survey.blueprints.get(name_of(place)), place_of(place, count, slots)) for place in range(count))
    return [(made, specs[slot]) for made, slot in places]


def placebo_forks(survey: Survey, tried: Sequence[Pair], step: int) -> list[int]:
    """Return the FLOPs of one optimizer step of the fork of each placebo, if a step of the control has `step` FLOPs."""
    batch, copies = survey.data.batch_size, survey.config.growth.copies
    return [step + made.flops(spec, batch, copies) for made, spec in placebos_of(survey, tried)]


def tournament_flops(survey: Survey, tried: Sequence[Pair]) -> tuple[float, float]:
    """Return the least and the largest FLOPs of probes, heats and evaluations of a first tournament between some pairs.

    Each fork of a later heat is assumed to have the mean FLOPs of all candidates.
    """
    if not tried:
        return 0.0, 0.0
    work = _work(survey, tried, survey.host_flops, placebos=True)
    mean, heats = statistics.fmean(work.forks), heats_of(survey, len(tried))
    fixed = work.fixed + work.gate * mean
    least, most = (
        sum(each * size for each, size in zip(work.passes, sizes, strict=True)) * mean
        for sizes in ([heat.least for heat in heats], [heat.most for heat in heats])
    )
    return fixed + least, fixed + most


def largest_flops(survey: Survey, tried: Sequence[Pair], step: int, *, placebos: bool) -> float:
    """Return the FLOPs of a tournament between some pairs if as many forks as possible continue after each rung, and
    these are the most expensive ones.

    Args:
        step: FLOPs of one optimizer step of the control.
        placebos: Whether the tournament has placebos.
    """
    work = _work(survey, tried, step, placebos=placebos)
    sizes = [heat.most for heat in heats_of(survey, len(tried))]
    whole = sum(each * sum(work.forks[:size]) for each, size in zip(work.passes, sizes, strict=True))
    return work.fixed + work.gate * work.forks[0] + whole


@dataclass(frozen=True)
class _Work:
    """What a tournament has to do. A pass is as much compute as one optimizer step."""

    forks: list[int]
    """FLOPs of one optimizer step of each candidate's fork, the most expensive first."""
    passes: list[float]
    """Passes of a fork in each heat."""
    gate: float
    """Passes of a fork on the gate shard."""
    fixed: float
    """FLOPs of the probes, of the control and of the placebos."""


def _work(survey: Survey, tried: Sequence[Pair], step: int, *, placebos: bool) -> _Work:
    batch, count = survey.data.batch_size, len(tried)
    forks = sorted((step + pair.flops for pair in tried), reverse=True)
    passes = [heat.steps + heat.samples / batch / 3 for heat in heats_of(survey, count)]
    gate = samples_of(survey, "gate", last_units(survey, count)) / batch / 3
    beside = sum(placebo_forks(survey, tried, step)) if placebos else 0
    fixed = PROBE_BATCHES * sum(forks) + (sum(passes) + gate) * (step + beside)
    return _Work(forks, passes, gate, fixed)


def _course(survey: Survey, seeds: int) -> Course:
    """Return the rungs of a first tournament. If the run is too short for one, they are those of its last fences."""
    growth, last = survey.config.growth, len(survey.fence_steps) - 1
    begin = min(survey.first_fence, last - survey.due_rounds)
    steps = survey.fence_steps if begin >= 0 else (*survey.fence_steps, *[survey.total_steps] * -begin)
    return course(growth, steps, max(0, begin), seeds)
