"""Builds the evidence of each gate from records and measurements."""

from __future__ import annotations

from esper.errors import EvidenceMissing
from esper.kasmina.judging.gates import performance_status
from esper.kasmina.registry.roster import Roster
from esper.kasmina.registry.run_facts import RunFacts
from esper.kasmina.registry.seed_record import SeedRecord
from esper.kasmina.settings import GrowthConfig
from esper.leyline.commands import Candidate, Command
from esper.leyline.evidence import (
    GradientEvidence,
    HostObservation,
    ImpactEvidence,
    InterfaceEvidence,
    Marks,
    SanityEvidence,
    SeedObservation,
    StabilityEvidence,
)
from esper.leyline.incubation import CandidateProbe, ForkResult
from esper.leyline.slots import SlotSpec
from esper.leyline.stages import Stage


def sanity_evidence(
    command: Command,
    candidate: Candidate,
    measured: CandidateProbe | None,
    roster: Roster,
    facts: RunFacts,
    limits: GrowthConfig,
) -> SanityEvidence:
    """Return the evidence for G0: the candidate's measurements from before its training."""
    probe = measured.sanity if measured is not None else None
    return SanityEvidence(
        marks=_marks(command, _recorded(roster, candidate), Stage.DORMANT),
        ids={
            "command": command.command_id,
            "seed": candidate.seed_id,
            "slot": candidate.slot,
            "blueprint": candidate.blueprint_id,
        },
        blueprint_known=roster.known(candidate.slot, candidate.blueprint_id),
        probe=probe,
        spec=roster.specs.get(candidate.slot),
        added_parameters=roster.added_parameters() + (probe.parameters if probe is not None else 0),
        parameter_budget=roster.parameter_budget(),
        memory_ratio=probe.parameter_bytes / facts.host_bytes if probe is not None else None,
        memory_budget=limits.memory_budget,
    )


def gradient_evidence(
    command: Command, candidate: Candidate, measured: CandidateProbe | None, roster: Roster
) -> GradientEvidence:
    """Return the evidence for G1: the backward passes of the candidate's probe.

    G0 and G1 are judged together, before the candidate has a record; so both expect the stage DORMANT.
    """
    fallbacks = measured.fallbacks if measured is not None else None
    marks = _marks(command, _recorded(roster, candidate), Stage.DORMANT, fallbacks)
    return GradientEvidence(marks=marks, probe=measured.gradient if measured is not None else None)


def stability_evidence(
    command: Command | None, seed: SeedRecord, fork: ForkResult, winner: SeedRecord | None, fence: int
) -> StabilityEvidence:
    """Return the evidence for G2: a fork compared with its control. For a replica also the evidence of the winner."""
    carried = winner.judged if winner is not None else None
    return StabilityEvidence(
        marks=_marks(command, seed.stage, Stage.TRAINING, fork.fallbacks),
        steps=fork.steps,
        required_steps=fork.required_steps,
        rank=fork.rank,
        pairs=fork.gate,
        loss_variation=fork.loss_variation,
        carried=carried,
        carried_from=winner.seed_id if winner is not None else None,
        carried_age_fences=fence - carried.fence if carried is not None else None,
    )


def interface_evidence(
    command: Command, seed: SeedRecord, spec: SlotSpec, observation: HostObservation
) -> InterfaceEvidence:
    """Return the evidence for G3: the trainer's observation of the seed.

    Raises:
        EvidenceMissing: the seed was not observed, or is isolated and was never audited.
    """
    seen = find_seed("G3", seed, observation)
    return InterfaceEvidence(
        marks=_marks(command, seed.stage, seen.stage, seen.fallbacks),
        alpha=seen.alpha,
        alpha_target=seen.alpha_target,
        output_shape=seen.output_shape,
        expected_shape=seen.slot_shape,
        output_dtype=seen.output_dtype,
        expected_dtype=spec.dtype,
        device=seen.device,
        expected_device=spec.device,
        required_mesh=seed.required_mesh,
        registered_layers=observation.registered_layers,
        isolation_leaks=_leaks("G3", seen),
    )


def impact_evidence(
    command: Command,
    seed: SeedRecord,
    observation: HostObservation,
    facts: RunFacts,
    limits: GrowthConfig,
    *,
    twin_kept: bool,
) -> ImpactEvidence:
    """Return the evidence for G4: the seed's cost, how it runs, and the comparison of the host with its twin.

    Raises:
        EvidenceMissing: the seed was not observed, was not called since the last fence, or is isolated and was never
            audited.
    """
    seen = find_seed("G4", seed, observation)
    cost_ratio = seed.flops / facts.host_flops
    return ImpactEvidence(
        marks=_marks(command, seed.stage, seen.stage),
        status=performance_status(seen, cost_ratio, limits.cost_budget),
        twin_kept=twin_kept,
        twin_zs=seed.twin_zs if twin_kept else None,
        cost_ratio=cost_ratio,
        cost_budget=limits.cost_budget,
        memory_ratio=seed.parameter_bytes / facts.host_bytes,
        memory_budget=limits.memory_budget,
        isolation_leaks=_leaks("G4", seen),
    )


def find_seed(gate: str, seed: SeedRecord, observation: HostObservation) -> SeedObservation:
    """Return the trainer's observation of one seed.

    Raises:
        EvidenceMissing: the trainer observed no such seed.
    """
    for seen in observation.seeds:
        if seen.seed_id == seed.seed_id:
            return seen
    raise EvidenceMissing(gate, "observation of the seed", None, seed.seed_id)


def _recorded(roster: Roster, candidate: Candidate) -> Stage:
    """Return the stage in a candidate's record, or DORMANT if it has no record yet."""
    return next((stage for seed_id, stage in roster.stages().items() if seed_id == candidate.seed_id), Stage.DORMANT)


def _leaks(gate: str, seen: SeedObservation) -> tuple[str, ...] | None:
    if seen.isolated and seen.isolation_leaks is None:
        raise EvidenceMissing(gate, "audit of isolation", None, seen.seed_id)
    return seen.isolation_leaks


def _marks(
    command: Command | None, recorded: Stage, evidence: Stage | None, fallbacks: tuple[str, ...] | None = None
) -> Marks:
    if evidence is None:
        raise EvidenceMissing("every gate", "stage at which the evidence was taken", None, str(recorded))
    asked = command.fallback_marks if command is not None else ()
    return Marks(
        recorded_stage=recorded, evidence_stage=evidence, command_fallbacks=asked, evidence_fallbacks=fallbacks
    )
