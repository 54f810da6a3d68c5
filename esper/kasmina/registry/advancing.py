"""The gates G3 and G4 of a seed in the live host, and the changes that follow from them."""

from __future__ import annotations

from esper.kasmina.host.blending import next_confidence
from esper.kasmina.judging import gates
from esper.kasmina.registry.answers import plan_ids
from esper.kasmina.registry.culling import cull
from esper.kasmina.registry.gate_evidence import impact_evidence, interface_evidence
from esper.kasmina.registry.lifecycle import STAGE_AFTER
from esper.kasmina.registry.run_records import RunRecords
from esper.kasmina.registry.seed_record import SeedRecord
from esper.leyline.commands import Command
from esper.leyline.evidence import HostObservation
from esper.leyline.incubation import Answer
from esper.leyline.reports import ConfidencePlan, GateReport, JoinPlan, Outcome
from esper.leyline.stages import Stage
from esper.telemetry.events import Severity, severe

JOINED_AT = {"none": None, "blended": Stage.SHADOWING, "fossilized": Stage.FOSSILIZED}
"""`growth.isolate_until` -> stage. A seed's isolation ends when it enters the stage. None: seeds are never isolated."""


def advance(
    records: RunRecords, command: Command, seed: SeedRecord, fence: int, observation: HostObservation
) -> Answer:
    """Judge the next gate of a seed in the live host.

    If it passes, move the seed to its next stage; else cull the seed.

    Args:
        observation: The trainer's observation at this fence.

    Raises:
        EvidenceMissing: the gate could not judge; nothing was changed.
    """
    judge = _judge_interface if seed.stage is Stage.BLENDING else _judge_impact
    report = judge(records, command, seed, fence, observation)
    records.judged(report, seed)
    if not report.passed:
        return _fail(records, seed, report, fence, command.command_id)
    after = STAGE_AFTER[seed.stage]
    step = records.roster.move(seed.seed_id, after, fence, report.gate, command.command_id)
    plans = _plans(records, command, seed, fence, joins=JOINED_AT[records.limits.isolate_until] is after)
    done = after is Stage.FOSSILIZED
    reports = (records.field_report(seed, Outcome.SUCCESS, (), fence),) if done else ()
    return Answer(transitions=(step,), gates=(report,), plans=plans, field_reports=reports)


def not_attached(records: RunRecords, seed: SeedRecord, leaks: tuple[str, ...], fence: int) -> Answer:
    """Fail G3 of a seed. The trainer did not attach the seed at this fence, because the seed shares memory; see
    `leaks`.

    Args:
        leaks: The tensors of the live host, or of other seeds, whose memory the seed shares.
    """
    report = gates.attachment_gate(leaks, seed.seed_id, fence)
    records.judged(report, seed)
    answer = _fail(records, seed, report, fence, seed.command_id)
    return answer.model_copy(update={"plans": ()})  # the seed is not in the host, so there is nothing to remove


def _plans(
    records: RunRecords, command: Command, seed: SeedRecord, fence: int, *, joins: bool
) -> tuple[JoinPlan | ConfidencePlan, ...]:
    """Return the plan that follows a passed gate. It ends the seed's isolation, changes its confidence, or both."""
    assert seed.graft is not None, "a seed in the host without its graft"
    applied = seed.graft.confidence
    confidence = next_confidence(seed.graft.blend, command.confidence_logits, applied)
    ids = plan_ids(records.facts, command.command_id)
    if confidence is not None and confidence != applied:
        records.roster.set_confidence(seed.seed_id, confidence)
        return (ConfidencePlan(seed_id=seed.seed_id, fence=fence, confidence=confidence, joins=joins, **ids),)
    return (JoinPlan(seed_id=seed.seed_id, fence=fence, **ids),) if joins else ()


def _judge_interface(
    records: RunRecords, command: Command, seed: SeedRecord, fence: int, observation: HostObservation
) -> GateReport:
    evidence = interface_evidence(command, seed, records.roster.specs[seed.slot], observation, fence)
    report = gates.interface_gate(evidence, seed.seed_id, fence)
    if "mesh_incomplete" in report.reasons:
        severe(
            "mesh_coverage_missing",
            Severity.ERROR,
            seed_id=seed.seed_id,
            missing=list(gates.missing_layers(evidence)),
            required=list(seed.required_mesh),
            available=list(observation.registered_layers),
        )
    return report


def _judge_impact(
    records: RunRecords, command: Command, seed: SeedRecord, fence: int, observation: HostObservation
) -> GateReport:
    facts, limits = records.facts, records.limits
    evidence = impact_evidence(command, seed, observation, fence, facts, limits, twin_kept=records.twin_kept)
    return gates.impact_gate(evidence, limits, seed.seed_id, fence)


def _fail(records: RunRecords, seed: SeedRecord, report: GateReport, fence: int, command_id: str) -> Answer:
    """Cull a live seed that failed its gate.

    If the host is worse than its twin, cull every live seed that is not fossilised, because the comparison does not
    show which seed harms the host.
    """
    failed = records.roster.newest_first() if "worse_than_twin" in report.reasons else [seed]
    answer = cull(records, failed, fence, report.gate, report.reasons, command_id)
    return answer.model_copy(update={"gates": (report,)})
