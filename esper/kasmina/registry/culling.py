"""The end of a seed: the seed is culled, and after the embargo the gate G5 judges its slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esper.kasmina.judging import gates
from esper.kasmina.registry.answers import joined, plan_ids
from esper.kasmina.registry.run_records import RunRecords
from esper.kasmina.registry.seed_record import SeedRecord
from esper.leyline.evidence import ResetEvidence, ResetProbe
from esper.leyline.incubation import Answer
from esper.leyline.reports import Gate, Outcome, RemovePlan
from esper.leyline.stages import LIVE, Stage


def cull(
    records: RunRecords, seeds: Sequence[SeedRecord], fence: int, cause: str, reasons: tuple[str, ...], command_id: str
) -> Answer:
    """Cull seeds. The answer has a field report of each seed, and plans that remove the seeds in the live host.

    Args:
        cause: The cause in the transitions: "command", or the gate that failed.
        reasons: Reasons in the field reports.
    """
    outcome = Outcome.REGRESSION if "worse_than_twin" in reasons else Outcome.ABORTED
    answer = Answer()
    for seed in seeds:
        report = records.field_report(seed, outcome, reasons, fence)
        steps = records.roster.retire(seed.seed_id, fence, cause, command_id)
        plans: tuple[RemovePlan, ...] = ()
        if seed.stage in LIVE:
            plans = (RemovePlan(seed_id=seed.seed_id, fence=fence, **plan_ids(records.facts, command_id)),)
        answer = joined(answer, Answer(transitions=tuple(steps), plans=plans, field_reports=(report,)))
    return answer


def reset(records: RunRecords, probes: Mapping[str, ResetProbe], fence: int) -> Answer:
    """Judge G5 for every seed whose embargo has ended. If it passes, the seed becomes DORMANT, else TERMINATED.

    The slot of a TERMINATED seed is closed for further seeds, because parts of the seed are left in it. Candidates for
    that slot whose tournament is in flight are culled, because none of them could be grafted.

    Args:
        probes: Seed id -> comparison of the seed's slot with an unseeded host.

    Raises:
        EvidenceMissing: a slot was not compared with an unseeded host; nothing was changed.
    """
    judged = []
    for seed in records.roster.resetting(fence):
        evidence = ResetEvidence(probe=probes.get(seed.seed_id))
        judged.append((seed, gates.reset_gate(evidence, seed.seed_id, fence)))
    answer = Answer()
    for seed, report in judged:
        steps = [records.roster.move(seed.seed_id, Stage.RESETTING, fence, "embargo over", seed.command_id)]
        records.judged(report, seed)
        end = Stage.DORMANT if report.passed else Stage.TERMINATED
        steps.append(records.roster.move(seed.seed_id, end, fence, Gate.G5, seed.command_id))
        answer = joined(answer, Answer(transitions=tuple(steps), gates=(report,)))
    closed = records.roster.closed()
    for seed in records.roster.having((Stage.TRAINING,)):
        if seed.slot in closed:
            culled = cull(records, [seed], fence, "slot closed", ("slot_closed",), seed.command_id)
            answer = joined(answer, culled)
    return answer
