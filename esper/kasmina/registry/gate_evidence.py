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
    Stages,
)
from esper.leyline.incubation import CandidateProbe, ForkResult
from esper.leyline.slots import SlotSpec


def sanity_evidence(
    command: Command,
    candidate: Candidate,
    measured: CandidateProbe | None,
    roster: Roster,
    facts: RunFacts,
    limits: GrowthConfig,
) -> SanityEvidence:
    """Return the evidence for G0: measurements of the candidate before its training."""
    probe = measured.sanity if measured is not None else None
    return SanityEvidence(
        marks=_marks(command, probe.told if probe is not None else None),
        blueprint_known=roster.known(candidate),
        probe=probe,
        spec=roster.specs.get(candidate.slot),
        added_parameters=roster.added_parameters() + (probe.parameters if probe is not None else 0),
        parameter_budget=roster.parameter_budget(),
        memory_ratio=probe.parameter_bytes / facts.host_bytes if probe is not None else None,
        memory_budget=limits.memory_within(facts.host_parameters),
    )


def gradient_evidence(measured: CandidateProbe | None) -> GradientEvidence:
    """Return the evidence for G1: the backward passes of the candidate's probe."""
    if measured is None:
        return GradientEvidence(fallbacks=None, probe=None)
    return GradientEvidence(fallbacks=measured.fallbacks, probe=measured.gradient)


def stability_evidence(
    command: Command | None,
    fork: ForkResult,
    winner: SeedRecord | None,
    fence: int,
    host_changes: int | None = None,
    placebo_gains: tuple[float, ...] | None = None,
    tests: float | None = None,
    candidates: int | None = None,
) -> StabilityEvidence:
    """Return the evidence for G2: a fork compared with its control. For a replica, the winner's evidence is added.

    Args:
        host_changes, placebo_gains, tests, candidates: As in `StabilityEvidence`.
    """
    carried = winner.judged if winner is not None else None
    return StabilityEvidence(
        marks=_marks(command, fork.fallbacks),
        steps=fork.steps,
        required_steps=fork.required_steps,
        rank=fork.rank,
        pairs=fork.gate,
        loss_variation=fork.loss_variation,
        leaks=fork.leaks,
        host_changes=host_changes,
        carried=carried,
        carried_from=winner.seed_id if winner is not None else None,
        carried_age_fences=fence - carried.fence if carried is not None else None,
        placebo_gains=placebo_gains,
        tests=tests,
        candidates=candidates,
    )


def interface_evidence(
    command: Command, seed: SeedRecord, spec: SlotSpec, observation: HostObservation, fence: int
) -> InterfaceEvidence:
    """Return the evidence for G3: the trainer's observation of the seed.

    A difference of dtype or device from the plan does not count as a fallback here, because the gate judges both as
    parts of the interface.

    Raises:
        EvidenceMissing: the seed was not observed at this fence, or it is isolated and was never audited.
    """
    seen = find_seed("G3", seed, observation, fence)
    ran = seen.differences
    path = (*seen.told, *(text for what, text in ran.items() if what == "path")) if ran is not None else seen.told
    return InterfaceEvidence(
        marks=_marks(command, path if ran is not None or path else None),
        stages=_stages("G3", seed, seen),
        alpha=seen.alpha,
        alpha_target=seen.alpha_target,
        output_shape=seen.output_shape,
        expected_shape=spec.expected(seen.output_shape) if seen.output_shape is not None else None,
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
    fence: int,
    facts: RunFacts,
    limits: GrowthConfig,
    *,
    twin_kept: bool,
) -> ImpactEvidence:
    """Return the evidence for G4: the seed's cost and performance status, and the comparison with the twin.

    A difference of dtype, device or code path from the plan makes the performance status `fallback`.

    Raises:
        EvidenceMissing: the seed was not observed at this fence, it was not called since the last fence, or it is
            isolated and was never audited.
    """
    seen = find_seed("G4", seed, observation, fence)
    cost_ratio, cost_budget = seed.flops / facts.host_flops, limits.cost_within(facts.host_parameters)
    return ImpactEvidence(
        marks=_marks(command, seen.told),
        stages=_stages("G4", seed, seen),
        status=performance_status(seen, cost_ratio, cost_budget),
        twin_kept=twin_kept,
        twin_zs=seed.twin_zs if twin_kept else None,
        cost_ratio=cost_ratio,
        cost_budget=cost_budget,
        memory_ratio=seen.parameter_bytes / facts.host_bytes,
        memory_budget=limits.memory_within(facts.host_parameters),
        isolation_leaks=_leaks("G4", seen),
    )


def find_seed(gate: str, seed: SeedRecord, observation: HostObservation, fence: int) -> SeedObservation:
    """Return the trainer's observation of one seed at a fence.

    Raises:
        EvidenceMissing: the observation is of another fence, or does not contain the seed.
    """
    if observation.fence != fence:
        raise EvidenceMissing(gate, "observation of the host", f"that of fence {observation.fence}", f"fence {fence}")
    for seen in observation.seeds:
        if seen.seed_id == seed.seed_id:
            return seen
    raise EvidenceMissing(gate, "observation of the seed", None, seed.seed_id)


def _leaks(gate: str, seen: SeedObservation) -> tuple[str, ...] | None:
    if seen.isolated and seen.isolation_leaks is None:
        raise EvidenceMissing(gate, "audit of isolation", None, seen.seed_id)
    return seen.isolation_leaks


def _stages(gate: str, seed: SeedRecord, seen: SeedObservation) -> Stages:
    if seen.stage is None:
        raise EvidenceMissing(gate, "stage at which the seed was observed", None, str(seed.stage))
    return Stages(recorded=seed.stage, measured=seen.stage)


def _marks(command: Command | None, fallbacks: tuple[str, ...] | None) -> Marks:
    asked = command.fallback_marks if command is not None else ()
    return Marks(command_fallbacks=asked, evidence_fallbacks=fallbacks)
