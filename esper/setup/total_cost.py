"""Forecasts the largest modelled compute of a whole run, for `growth.max_cost`."""

from __future__ import annotations

from collections.abc import Sequence

from esper.leyline.decisions import Pair
from esper.leyline.stages import IN_HOST
from esper.leyline.state import RoundState
from esper.setup.survey import Survey
from esper.setup.tournament_cost import largest_flops, last_units, placebo_forks, samples_of


def run_flops(survey: Survey, state: RoundState, pairs: Sequence[Pair], *, replica: bool) -> float:
    """Return the largest modelled FLOPs of a whole run in which a tournament between some pairs begins now, and no
    other tournament after it.

    It is the sum of the FLOPs so far, of the rest of the run with the most expensive of the pairs in the host, of the
    tournament with its later looks, of the whole twin, of the comparisons with the twin, and of the choice at the end.

    Args:
        replica: True if the tournament repeats an accepted seed. Then it has no placebos.
    """
    known = {(pair.slot, pair.blueprint_id): pair.flops for pair in survey.options}
    inside = [seed for seed in state.seeds if seed.stage in IN_HOST]
    step = survey.host_flops + sum(known[seed.slot, seed.blueprint_id] for seed in inside)
    fork = step + max(pair.flops for pair in pairs)
    left = survey.total_steps - state.training.step
    tournament = largest_flops(survey, pairs, step, placebos=not replica)
    if not replica and all(seed.ordinal is None for seed in state.seeds):
        tournament += looks_flops(survey, pairs, step)
    return state.spent_flops + left * fork + tournament + _of_twin(survey, fork)


def looks_flops(survey: Survey, pairs: Sequence[Pair], step: int) -> float:
    """Return the largest FLOPs of refused candidates that train on with the control and the placebos, in all later
    looks of one tournament. After a seed was grafted, none trains on.

    Args:
        pairs: The candidates of the tournament, one or more. Each that trains on counts as the most expensive one.
        step: FLOPs of one optimizer step of the control.
    """
    growth, batch = survey.config.growth, survey.data.batch_size
    looks = survey.looks
    if not looks:
        return 0.0
    units = last_units(survey, growth.beside)
    judged = sum(samples_of(survey, shard, units) for shard in ("pick", "gate"))
    passes = survey.due_rounds * survey.fence_steps[1] + judged / batch / 3
    dearest = step + max(pair.flops for pair in pairs)
    return looks * passes * (step + growth.beside * dearest + sum(placebo_forks(survey, pairs, step)))


def _of_twin(survey: Survey, fork: int) -> float:
    """Return the FLOPs of the twin, of its comparisons with the live host while a seed is watched, and of the choice at
    the end of the run."""
    growth, data, batch = survey.config.growth, survey.data, survey.data.batch_size
    if not growth.twin:
        return 0.0
    both = survey.host_flops + fork
    first = survey.fence_steps[survey.first_fence + survey.due_rounds]
    compared = (2 + growth.probation_rounds) * samples_of(survey, "gate", None)
    measured = sum(data.count(shard, growth.finish_samples) for shard in ("pick", "gate"))
    chosen = measured if growth.finish == "better" else 0
    return (survey.total_steps - first) * survey.host_flops + (compared + chosen) / batch / 3 * both
