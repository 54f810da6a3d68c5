"""The end of a tournament: the gate G2 of every seed. If the first seed passes, it is grafted into the live host."""

from __future__ import annotations

import math
from collections.abc import Sequence

from esper.errors import EvidenceMissing
from esper.kasmina.incubation.rungs import candidates_of, number_of_tests
from esper.kasmina.judging import gates
from esper.kasmina.registry.answers import adopt_plan, joined, live_plan, order_to_go_on
from esper.kasmina.registry.gate_evidence import stability_evidence
from esper.kasmina.registry.run_records import RunRecords
from esper.kasmina.registry.seed_record import SeedRecord
from esper.leyline.commands import Command
from esper.leyline.incubation import Answer, IncubationOrder, IncubationResult
from esper.leyline.reports import TOO_SMALL, AdoptPlan, Gate, GateReport, GraftPlan, Outcome
from esper.leyline.stages import Stage


def conclude(records: RunRecords, result: IncubationResult, fence: int) -> Answer:
    """Record a tournament's results. A later command judges G2 of the first seed.

    All other seeds fail G2 now, except those that may train on together with the first.

    The losers are judged before any record changes, so that missing evidence changes no record.

    Raises:
        EvidenceMissing: the result is not of the order in flight; nothing was changed.
    """
    _check_result(records, result)
    seeds = [records.roster[fork.seed_id].model_copy(update={"result": fork}) for fork in result.forks]
    waiting = _waiting(records, seeds)
    losers = [seed for seed in seeds if seed.seed_id not in waiting]
    judged = [(seed, _judge(records, None, seed, fence)) for seed in losers if seed.stage is Stage.TRAINING]
    records.order = None
    records.placebo_gains = gains_of(result) or records.placebo_gains
    answer = Answer()
    for seed in seeds:
        records.roster.enter(seed)
    for seed, report in judged:
        records.judged(report, seed)
        answer = joined(answer, _cull(records, seed, report, fence))
    return answer


def graft(records: RunRecords, command: Command, seed: SeedRecord, fence: int) -> Answer:
    """Judge G2 of the first seed of a tournament. If G2 fails, cull the seed.

    If G2 passes, the seed is grafted into the live host, or its fork is adopted; see `growth.entry`.

    Raises:
        EvidenceMissing: the gate could not judge; nothing was changed.
    """
    report = _judge(records, command, seed, fence)
    plan = _plan(records, command, seed, fence) if report.passed else None
    others = [one for one in records.roster.having((Stage.TRAINING,)) if one.seed_id != seed.seed_id]
    beaten = [(one, _judge(records, None, one, fence)) for one in others]
    records.judged(report, seed)
    if plan is None and (order := _order_to_go_on(records, command, report, seed, others)) is not None:
        return _go_on(records, report, order)
    ended = Answer()
    for one, failed in beaten:
        records.judged(failed, one)
        ended = joined(ended, _cull(records, one, failed, fence))
    if plan is None:
        return joined(_cull(records, seed, report, fence), ended)
    step = records.roster.move(seed.seed_id, Stage.BLENDING, fence, Gate.G2, command.command_id)
    entered = plan.graft if isinstance(plan, AdoptPlan) else plan
    records.roster.grafted(seed.seed_id, entered, command.mesh_host_layers)
    keep = records.limits.twin and not records.twin_kept
    records.twin_kept = records.twin_kept or keep
    return joined(Answer(transitions=(step,), gates=(report,), plans=(plan,), keep_twin=keep), ended)


def _waiting(records: RunRecords, seeds: Sequence[SeedRecord]) -> set[str]:
    """Return the seeds of a tournament that are not judged yet: the first, and those that may train on with it."""
    assert records.order is not None, "the order of the result is in flight"
    ranks = {seed.result.rank: seed for seed in seeds if seed.result is not None and seed.result.rank is not None}
    first = ranks.get(1)
    most = records.order.keeps if first is not None and first.stage is Stage.TRAINING else 1
    return {seed.seed_id for rank, seed in ranks.items() if rank <= max(1, most)}


def _order_to_go_on(
    records: RunRecords, command: Command, report: GateReport, seed: SeedRecord, others: Sequence[SeedRecord]
) -> IncubationOrder | None:
    """Return the order by which a refused seed trains on in its fork, with some others of its tournament. None: they do
    not train on.
    """
    before, seed_ids = records.book.order_of(seed), {seed.seed_id, *(one.seed_id for one in others)}
    spent = records.tests_used + len(seed_ids) > records.limits.max_tests
    if not before.keeps or spent or not deserves_a_look(report, records.placebo_gains):
        return None
    return order_to_go_on(before, command, seed_ids, records.roster, records.facts, records.limits)


def _go_on(records: RunRecords, report: GateReport, order: IncubationOrder) -> Answer:
    for plan in order.plans:
        records.roster.goes_on(plan.seed_id, order.due_fence)
    records.tests_used += len(order.plans)
    records.order = order
    return Answer(gates=(report,), order=order)


def _plan(records: RunRecords, command: Command, seed: SeedRecord, fence: int) -> GraftPlan | AdoptPlan:
    """Return the plan by which a seed that passed G2 enters the live host. Raises: EvidenceMissing."""
    drawn, result = records.book.plan_of(seed), seed.result
    if records.limits.entry == "graft":
        return live_plan(drawn, seed, command, fence, records.roster, records.facts, records.limits)
    assert result is not None, "G2 judged it"
    assert drawn.ordinal == records.roster.next_ordinal(seed.slot), "no seed enters a slot during a tournament"
    return adopt_plan(drawn, result, command, fence, records.facts)


def deserves_a_look(report: GateReport, placebo_gains: Sequence[float]) -> bool:
    """Return whether a seed that G2 refused may be judged again later.

    After a placebo diverged, no later look can accept a seed of its tournament.
    """
    return set(report.reasons) <= TOO_SMALL and all(map(math.isfinite, placebo_gains))


def gains_of(result: IncubationResult) -> tuple[float, ...]:
    """Return the gains of the placebos of a tournament, on the gate shard.

    The gain of a placebo that diverged is infinite, so its tournament accepts no seed.
    """
    gains = (one.gate.relative_gain if one.gate is not None else math.inf for one in result.placebos)
    return tuple(gain if math.isfinite(gain) else math.inf for gain in gains)


def _check_result(records: RunRecords, result: IncubationResult) -> None:
    order = records.order
    if order is None or (result.order_id, result.generation) != (order.order_id, order.generation):
        raise EvidenceMissing("G2", "result of the incubation in flight", result.order_id, order and order.order_id)
    measured, asked = {fork.seed_id for fork in result.forks}, {plan.seed_id for plan in order.plans}
    if measured != asked:
        raise EvidenceMissing("G2", "results of all forks of the incubation", len(measured), len(asked))
    if len(result.placebos) != len(order.placebos):
        raise EvidenceMissing("G2", "results of placebos", len(result.placebos), len(order.placebos))


def _judge(records: RunRecords, command: Command | None, seed: SeedRecord, fence: int) -> GateReport:
    if seed.result is None:
        raise EvidenceMissing("G2", "result of the seed's incubation", None, "a concluded tournament")
    winner = records.roster[seed.replica_of] if seed.replica_of is not None else None
    changes = records.book.plans_since(seed.command_id) if records.limits.entry == "adopt" else None
    gains = records.placebo_gains if records.limits.placebos else None
    look = records.book.order_of(seed).goes_on_from is not None
    tests = number_of_tests(records.limits, records.facts.fence_steps, look=look)
    total = _candidates(records, look=look)
    evidence = stability_evidence(command, seed.result, winner, fence, changes, gains, tests, total)
    return gates.stability_gate(evidence, records.limits, seed.seed_id, fence)


def _candidates(records: RunRecords, *, look: bool) -> int | None:
    """Return the number of candidates that count for the limit of the placebos, if each tournament has as many as the
    largest so far. None: the run has no placebos.

    A later tournament between the best candidates of the first counts as many as the first, because its candidates were
    chosen among all of these.
    """
    if not records.limits.placebos:
        return None
    answers = filter(None, map(records.book.answer, records.roster.commands()))
    largest = max(len(answer.order.plans) for answer in answers if answer.order is not None)
    return candidates_of(records.limits, records.facts.fence_steps, largest, look=look)


def _cull(records: RunRecords, seed: SeedRecord, report: GateReport, fence: int) -> Answer:
    outcome = Outcome.REGRESSION if "harmful" in report.reasons else Outcome.NEUTRAL
    return Answer(
        transitions=tuple(records.roster.retire(seed.seed_id, fence, report.gate, seed.command_id)),
        gates=(report,),
        field_reports=(records.field_report(seed, outcome, report.reasons, fence),),
    )
