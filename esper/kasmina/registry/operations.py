"""The table of operations. The function of an operation applies an admitted command of Tamiyo to the records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from esper.errors import EvidenceMissing
from esper.kasmina.registry.advancing import advance
from esper.kasmina.registry.answers import plan_ids
from esper.kasmina.registry.culling import cull
from esper.kasmina.registry.germination import germinate
from esper.kasmina.registry.run_records import RunRecords
from esper.kasmina.registry.selection import graft
from esper.leyline.commands import Command, Operation
from esper.leyline.evidence import HostObservation
from esper.leyline.incubation import Answer, CandidateProbe
from esper.leyline.reports import RatePlan
from esper.leyline.stages import Stage


@dataclass(frozen=True)
class Measured:
    """The measurements that come with a command."""

    probes: Mapping[str, CandidateProbe]
    """Seed id -> measurements of a candidate before its training. Empty for commands other than GERMINATE."""
    observation: HostObservation | None
    """The trainer's observation of the live host at this fence. None for GERMINATE."""


def _germinate(records: RunRecords, command: Command, fence: int, measured: Measured) -> Answer:
    return germinate(records, command, fence, measured.probes)


def _advance(records: RunRecords, command: Command, fence: int, measured: Measured) -> Answer:
    seed = records.roster[command.seed_id]
    if seed.stage is Stage.TRAINING:
        return graft(records, command, seed, fence)
    if measured.observation is None:
        raise EvidenceMissing("G3 and G4", "observation of the host", None, "one at this fence")
    return advance(records, command, seed, fence, measured.observation)


def _cull(records: RunRecords, command: Command, fence: int, _measured: Measured) -> Answer:
    seed = records.roster[command.seed_id]
    return cull(records, [seed], fence, "command", ("commanded",), command.command_id)


def _scale_rate(records: RunRecords, command: Command, fence: int, _measured: Measured) -> Answer:
    assert command.rate_scale is not None, "admission requires it"
    seed = records.roster[command.seed_id]
    records.roster.enter(seed.model_copy(update={"rate_scale": command.rate_scale}))
    ids = plan_ids(records.facts, command.command_id)
    return Answer(plans=(RatePlan(seed_id=seed.seed_id, fence=fence, rate_scale=command.rate_scale, **ids),))


OPERATIONS: Mapping[Operation, Callable[[RunRecords, Command, int, Measured], Answer]] = {
    Operation.GERMINATE: _germinate,
    Operation.ADVANCE: _advance,
    Operation.FOSSILIZE: _advance,
    Operation.CULL: _cull,
    Operation.SCALE_RATE: _scale_rate,
}
"""Operation -> function that carries out the operation at a fence."""
