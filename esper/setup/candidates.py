"""The place of each candidate in a planned run, and the reason why a run of this length cannot grow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from esper.errors import ConfigError
from esper.ground.clock import SystemClock
from esper.leyline.decisions import Hold, Pair
from esper.leyline.ids import new_run_id
from esper.leyline.state import RoundState
from esper.setup.assembly import RunKey, make_kasmina, make_tamiyo, make_trainer
from esper.setup.fences import fences
from esper.setup.survey import Prospect
from esper.tamiyo.eligibility import over_budgets

MOST_MORE_EPOCHS = 1000
"""Most additional epochs that are tried in the search for a run that is long enough."""

NO_SETTING = "no one of run.epochs, run.round_steps and growth.ramp_steps is enough alone: change several"

FIRST, QUEUED, NONE = "first tournament", "queued", "nothing grows"


def first_tournament(prospect: Prospect) -> tuple[Pair, ...] | Hold:
    """Return the pairs that the run's policy and risk limits put into the first tournament; or the reason for none.

    Raises:
        EsperError: the policy fails.
    """
    key, clock = RunKey(new_run_id(), 0, b"plan"), SystemClock()
    training = make_trainer(prospect, key).untrained()
    view = make_kasmina(prospect, key, clock).view(prospect.config.growth.first_fence)
    state = RoundState.of(view, training, None)
    outcome = make_tamiyo(prospect, key, clock).decide(state).outcome
    if isinstance(outcome, Hold):
        return outcome
    chosen = {(candidate.slot, candidate.blueprint_id) for candidate in outcome.candidates}
    return tuple(pair for pair in prospect.options if (pair.slot, pair.blueprint_id) in chosen)


def candidate_rows(prospect: Prospect, tried: tuple[Pair, ...]) -> list[dict[str, Any]]:
    """Return every candidate with its size, its cost, and its place in a run, as JSON values.

    `place` is `over` and the keys of the budgets that it exceeds, `NONE` where no candidate can germinate, `FIRST`, or
    `QUEUED` (a later tournament may try it).
    """
    return [
        {
            "slot": pair.slot,
            "blueprint": pair.blueprint_id,
            "parameters": pair.parameters,
            "cost_ratio": pair.flops / prospect.host_flops,
            "risk": pair.risk,
            "in_first_tournament": pair in tried,
            "place": _place(prospect, pair, tried),
        }
        for pair in prospect.options
    ]


def _place(prospect: Prospect, pair: Pair, tried: tuple[Pair, ...]) -> str:
    if pair in tried:
        return FIRST
    if budgets := over_budgets(pair, prospect.growth_window, prospect.parameter_budget):
        return f"over {', '.join(budgets)}"
    return QUEUED if prospect.can_grow else NONE


def why_nothing_grows(prospect: Prospect) -> str | None:
    """Return why no seed can germinate in a run of this length, with the mend; None if a seed can, or growth is off."""
    growth = prospect.config.growth
    if prospect.can_grow or not growth.enabled:
        return None
    rounds, length = len(prospect.fence_steps) - 1, prospect.fence_steps[1]
    enough = settings_that_suffice(prospect)
    return (
        f"the run has {rounds} rounds; a seed that germinates at fence {growth.first_fence} (growth.first_fence) needs"
        f" {prospect.fences_to_fossil} more to become a part of the network: growth.due_rounds {growth.due_rounds},"
        f" growth.ramp_steps {growth.ramp_steps} in rounds of {length} steps"
        f" {math.ceil(growth.ramp_steps / length)}, beside the twin 1, growth.probation_rounds"
        f" {growth.probation_rounds}; {'each of these is enough alone: ' + ', '.join(enough) if enough else NO_SETTING}"
    )


def settings_that_suffice(prospect: Prospect) -> list[str]:
    """Return settings as KEY=VALUE: for each key the smallest change with which a seed can germinate in the run."""
    epochs = prospect.config.run.epochs or prospect.task.epochs
    tried = (
        ("run", "epochs", range(epochs + 1, epochs + MOST_MORE_EPOCHS)),
        ("run", "round_steps", range(prospect.fence_steps[1] - 1, 0, -1)),
        ("growth", "ramp_steps", range(prospect.config.growth.ramp_steps - 1, 0, -1)),
    )
    return [
        f"{table}.{key}={value}"
        for table, key, values in tried
        for value in _first_enough(prospect, table, key, values)
    ]


def _first_enough(prospect: Prospect, table: str, key: str, values: Iterable[int]) -> Iterator[int]:
    """Yield the first of the values with which a seed can germinate; nothing if no value is enough."""
    for value in values:
        section = getattr(prospect.config, table).model_copy(update={key: value})
        config = prospect.config.model_copy(update={table: section})
        try:
            steps = fences(prospect.task, config, prospect.data)
        except ConfigError:  # too many rounds, or rounds longer than the run
            return
        if replace(prospect, config=config, fence_steps=steps).can_grow:
            yield value
            return
