"""Finds the place of each candidate in a planned run, and the reason if the run is too short to grow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from esper.errors import ConfigError
from esper.ground.clock import SystemClock
from esper.leyline.decisions import Hold, Pair
from esper.leyline.ids import new_run_id
from esper.leyline.state import RegistryView, RoundState
from esper.setup.assembly import RunKey, make_kasmina, make_tamiyo, make_trainer
from esper.setup.fences import fences
from esper.setup.survey import Survey
from esper.tamiyo.eligibility import over_budgets

MOST_MORE_EPOCHS = 1000
"""Largest number of additional epochs that is tried in the search for a run that is long enough."""

NO_SETTING = "changing only one of run.epochs, run.round_steps and growth.{ramp} is not enough: change several"

AFTER_WARMUP = (
    "changing only one of run.round_steps and growth.{ramp} is not enough: change several, or run.epochs (the warm-up"
    " of a longer run may be longer)"
)

FIRST, QUEUED, NEVER, NONE = "first tournament", "queued", "not tried", "nothing grows"


def first_tournament(survey: Survey) -> tuple[Pair, ...] | Hold:
    """Return the pairs that the policy and the risk limits select for the first tournament, or the policy's hold.
    Raises: EsperError: the policy failed.
    """
    key, clock = RunKey(new_run_id(), 0, b"plan"), SystemClock()
    state = first_state(survey, key, make_kasmina(survey, key, clock).view(survey.first_fence))
    outcome = make_tamiyo(survey, key, clock).decide(state).outcome
    if isinstance(outcome, Hold):
        return outcome
    chosen = {(candidate.slot, candidate.blueprint_id) for candidate in outcome.candidates}
    return tuple(pair for pair in survey.options if (pair.slot, pair.blueprint_id) in chosen)


def first_state(survey: Survey, key: RunKey, view: RegistryView) -> RoundState:
    """Return the state at the first fence at which a seed may germinate, without measured values.

    Args:
        view: The registry at this fence.
    """
    step = survey.fence_steps[survey.first_fence]
    at = {"fence": survey.first_fence, "step": step}
    training = make_trainer(survey, key).untrained().model_copy(update=at)
    return RoundState.of(view, training, None, spent_flops=step * survey.host_flops)


def candidate_rows(survey: Survey, tried: tuple[Pair, ...]) -> list[dict[str, Any]]:
    """Return every candidate with its size, its cost, and its place in a run, as JSON values.

    `place` is one of: `over` with the keys of the budgets that the candidate exceeds; `NONE` if no candidate of the run
    can germinate; `FIRST`; `QUEUED` (a later tournament may try the candidate); `NEVER` with the key that keeps the
    candidate out of the first tournament, if no later tournament can try it.
    """
    return [
        {
            "slot": pair.slot,
            "blueprint": pair.blueprint_id,
            "parameters": pair.parameters,
            "cost_ratio": pair.flops / survey.host_flops,
            "risk": pair.risk,
            "copies": pair.copies,
            "in_first_tournament": pair in tried,
            "place": _place(survey, pair, tried),
        }
        for pair in survey.options
    ]


def _place(survey: Survey, pair: Pair, tried: tuple[Pair, ...]) -> str:
    if pair in tried:
        return FIRST
    if budgets := _over(survey, pair):
        return f"over {', '.join(budgets)}"
    if not survey.can_grow:
        return NONE
    return QUEUED if _others_later(survey, len(tried)) else f"{NEVER}: {_limit_of_first(survey, len(tried))}"


def _others_later(survey: Survey, tried: int) -> bool:
    """Return whether a later tournament can try pairs that are not among the `tried` pairs of the first. If a hold
    keeps the first tournament away from the first fence (`tried` is 0), a later fence may try any pair."""
    growth = survey.config.growth
    only_best, only_one = growth.best_again is not None, growth.max_tournaments == 1
    in_time = survey.first_fence + survey.due_rounds <= survey.last_germination
    return not tried or (in_time and tried < growth.max_tests and not (only_best or only_one))


def _limit_of_first(survey: Survey, tried: int) -> str:
    """Return the key that limits the number of pairs in the first tournament to `tried`."""
    growth = survey.config.growth
    if tried < min(growth.candidates, growth.max_tests):
        return "risk.max_cost_ratio"
    return "growth.candidates" if growth.candidates <= growth.max_tests else "growth.max_tests"


def _over(survey: Survey, pair: Pair) -> tuple[str, ...]:
    window = survey.growth_window(survey.config.growth.entry_ramp_steps)
    return over_budgets(pair, window, survey.parameter_budget)


def left_out_by_budgets(survey: Survey) -> dict[str, tuple[str, ...]]:
    """Return the candidates that no tournament of the run tries, as "BLUEPRINT at SLOT", by the key of the budget that
    they exceed. A candidate that exceeds several budgets is listed under each.
    """
    found: dict[str, list[str]] = {}
    for pair in survey.options if survey.config.growth.enabled else ():
        for key in _over(survey, pair):
            found.setdefault(key, []).append(f"{pair.blueprint_id} at {pair.slot}")
    return {key: tuple(names) for key, names in found.items()}


def why_nothing_grows(survey: Survey) -> str | None:
    """Return why no seed can germinate in a run of this length, and which settings would allow it. Return None if a
    seed can germinate, or if growth is off.
    """
    growth = survey.config.growth
    if survey.can_grow or not growth.enabled:
        return None
    rounds, enough = len(survey.fence_steps) - 1, ", ".join(settings_that_suffice(survey))
    none = AFTER_WARMUP if _waits_for_warmup(survey) else NO_SETTING
    mend = f"each of these is enough alone: {enough}" if enough else none.format(ramp=growth.ramp_key)
    return (
        f"the run has {rounds} rounds; a seed that germinates at fence {survey.first_fence}"
        f" (growth.{_key_of_first_fence(survey)}) needs"
        f" {survey.fences_to_fossil} more to become a part of the network: {_rounds(survey)},"
        f" {_ramp(survey)}, beside the twin 1, growth.probation_rounds"
        f" {growth.probation_rounds}; {mend}"
    )


def _waits_for_warmup(survey: Survey) -> bool:
    """Return whether a seed may not germinate before the end of the learning rate's warm-up."""
    return survey.config.growth.after_warmup and survey.warmup_steps > 0


def _key_of_first_fence(survey: Survey) -> str:
    """Return the key of growth that sets the first fence at which a seed may germinate."""
    if survey.first_fence == survey.config.growth.first_fence:
        return "first_fence"
    return "after_warmup" if survey.resolved.growth.first_step > survey.config.growth.first_step else "first_step"


def _rounds(survey: Survey) -> str:
    rungs = survey.config.growth.rungs
    return f"growth.due_rounds {survey.due_rounds}" if rungs is None else f"growth.rungs {survey.due_rounds} rounds"


def _ramp(survey: Survey) -> str:
    """Return the fences of a seed's ramp after its entry into the live host, with the key of the ramp, in words."""
    growth, length = survey.config.growth, survey.fence_steps[1]
    window, ramp = survey.growth_window(growth.entry_ramp_steps), growth.entry_ramp_steps
    fences = window.fences_to_fossil(ramp) - window.fences_beside_ramp
    begun = f", begun in the fork {survey.due_rounds} rounds before," if growth.entry == "adopt" else ""
    return f"growth.{growth.ramp_key} {ramp} in rounds of {length} steps{begun} {fences}"


def settings_that_suffice(survey: Survey) -> list[str]:
    """Return settings as KEY=VALUE. Each setting alone is the smallest change of its key after which a seed can
    germinate. `run.epochs` is left out if a seed waits for the end of the warm-up, which may depend on the length.
    """
    epochs = survey.config.run.epochs or survey.task.epochs
    tried = (
        ("run", "epochs", range(epochs + 1, epochs + MOST_MORE_EPOCHS)),
        ("run", "round_steps", range(survey.fence_steps[1] - 1, 0, -1)),
        ("growth", survey.config.growth.ramp_key, range(survey.config.growth.entry_ramp_steps - 1, 0, -1)),
    )
    return [
        f"{table}.{key}={value}"
        for table, key, values in tried
        if key != "epochs" or not _waits_for_warmup(survey)
        for value in _first_enough(survey, table, key, values)
    ]


def _first_enough(survey: Survey, table: str, key: str, values: Iterable[int]) -> Iterator[int]:
    """Yield the first value after which a seed can germinate. Yield nothing if there is no such value."""
    for value in values:
        section = getattr(survey.config, table).model_copy(update={key: value})
        config = survey.config.model_copy(update={table: section})
        try:
            steps = fences(survey.task, config, survey.data)
        except ConfigError:  # too many rounds, or rounds longer than the run
            return
        if replace(survey, config=config, fence_steps=steps).can_grow:
            yield value
            return
