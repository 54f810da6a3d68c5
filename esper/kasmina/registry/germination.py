"""GERMINATE: the gates G0 and G1 of new candidates, and the order to incubate the candidates that pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esper.kasmina.judging import gates
from esper.kasmina.registry.answers import joined, make_order, record_of
from esper.kasmina.registry.gate_evidence import gradient_evidence, sanity_evidence
from esper.kasmina.registry.run_records import RunRecords
from esper.leyline.commands import Candidate, Command
from esper.leyline.incubation import Answer, CandidateProbe, IncubationOrder
from esper.leyline.reports import Gate, GateReport, GraftPlan, Outcome
from esper.leyline.stages import Stage


def germinate(records: RunRecords, command: Command, fence: int, probes: Mapping[str, CandidateProbe]) -> Answer:
    """Judge G0 and G1 of a command's candidates, and order a tournament of the candidates that passed both.

    All candidates are judged before any record changes, so that missing evidence changes nothing.

    Args:
        probes: Seed id -> measurements of the candidate before its training.

    Raises:
        EvidenceMissing: a gate could not judge; nothing was changed.
    """
    roster = records.roster
    judged = [(c, _judge(records, command, c, probes.get(c.seed_id), fence)) for c in command.candidates]
    alive = {c.seed_id for c, reports in judged if reports[-1].passed}
    answer = Answer(gates=tuple(report for _, reports in judged for report in reports))
    for candidate, reports in judged:
        roster.enter(record_of(command, candidate, probes.get(candidate.seed_id), roster, fence))
        answer = joined(answer, _settle(records, candidate.seed_id, reports, fence))
    plans = [plan for plan in records.book.plans(command.command_id) if plan.seed_id in alive]
    records.tests_used += len(plans)
    records.order = _order(records, command, plans, fence) if plans else None
    return answer.model_copy(update={"order": records.order})


def _order(records: RunRecords, command: Command, plans: Sequence[GraftPlan], fence: int) -> IncubationOrder:
    """Return the order of a tournament, with its placebos. A replica relies on the placebos of its winner."""
    placebos = records.placebo_plans(plans) if command.replica_of is None else ()
    flops = records.placebo_flops(placebos)
    return make_order(command, fence, plans, placebos, flops, records.roster, records.facts, records.limits)


def _judge(
    records: RunRecords, command: Command, candidate: Candidate, measured: CandidateProbe | None, fence: int
) -> tuple[GateReport, ...]:
    """Judge G0, and G1 if G0 passed."""
    sanity = sanity_evidence(command, candidate, measured, records.roster, records.facts, records.limits)
    first = gates.sanity_gate(sanity, candidate.seed_id, fence)
    if not first.passed:
        return (first,)
    gradient = gradient_evidence(measured)
    return first, gates.gradient_gate(gradient, records.limits, candidate.seed_id, fence)


def _settle(records: RunRecords, seed_id: str, reports: Sequence[GateReport], fence: int) -> Answer:
    """Record the judgements, and move the seed to TRAINING. If G1 failed, cull the seed.

    If G0 failed, the seed stays DORMANT.
    """
    roster, seed = records.roster, records.roster[seed_id]
    for report in reports:
        records.judged(report, seed)
    steps = []
    if reports[0].passed:
        steps.append(roster.move(seed_id, Stage.GERMINATED, fence, Gate.G0, seed.command_id))
    if reports[-1].passed:
        steps.append(roster.move(seed_id, Stage.TRAINING, fence, Gate.G1, seed.command_id))
        return Answer(transitions=tuple(steps))
    if reports[0].passed:
        steps += roster.retire(seed_id, fence, Gate.G1, seed.command_id)
    ended = records.field_report(seed, Outcome.ABORTED, reports[-1].reasons, fence)
    return Answer(transitions=tuple(steps), field_reports=(ended,))
