"""The gates G0-G5. Each is a function from evidence to a report, without clock, I/O or state.

If a seed fails a gate, the report has `passed` False. If evidence was not measured, the gate raises `EvidenceMissing`
and returns no report.
"""

from __future__ import annotations

from typing import TypeVar

from esper.errors import EvidenceMissing
from esper.kasmina.judging.statistics import placebo_limit, stouffer, z_limit
from esper.kasmina.settings import GrowthConfig
from esper.leyline.evidence import (
    GradientEvidence,
    ImpactEvidence,
    InterfaceEvidence,
    Marks,
    PairedLosses,
    PerformanceStatus,
    ResetEvidence,
    SanityEvidence,
    SeedObservation,
    StabilityEvidence,
    Stages,
)
from esper.leyline.reports import Check, Gate, GateReport

T = TypeVar("T")

LEAK_LIMIT = 1e-9
"""Relative changes of an output up to this size count as rounding in double precision."""


def sanity_gate(evidence: SanityEvidence, seed_id: str, fence: int) -> GateReport:
    """Judge G0. It requires a known blueprint, an output of the slot's shape, sizes within the budgets, and no leaks.

    A leak is an output that depends on a later position of a causal slot, or on another sample.

    Raises:
        EvidenceMissing: a known blueprint in a known slot was not probed.
    """
    if (failed := _failed(Gate.G0, _marks(evidence.marks), seed_id, fence)) is not None:
        return failed
    checks = [
        *_marks(evidence.marks),
        Check(name="blueprint_known", reason="unknown_blueprint", measured=evidence.blueprint_known, equals=True),
    ]
    if not evidence.blueprint_known:
        return _report(Gate.G0, seed_id, fence, checks)
    if evidence.spec is None or evidence.probe is None:
        raise EvidenceMissing("G0", "sanity probe of a known blueprint", evidence.probe, "a probe in a known slot")
    probe, spec = evidence.probe, evidence.spec
    shape = Check(name="output_shape", reason="shape_mismatch", measured=probe.output_shape, equals=probe.slot_shape)
    dtype = Check(name="output_dtype", reason="shape_mismatch", measured=probe.output_dtype, equals=spec.dtype)
    finite = Check(name="parameters_finite", reason="parameter_invalid", measured=probe.parameters_finite, equals=True)
    checks += [finite, shape, dtype]
    if shape.passed and spec.causal:
        leak = _need("G0", "causality", probe.causality_leak)
        checks.append(Check(name="causality_leak", reason="causality_broken", measured=leak, at_most=LEAK_LIMIT))
    if shape.passed and (spec.samples_independent or spec.samples_independent_evaluated):
        leak = _need("G0", "sample independence", probe.sample_leak)
        checks.append(Check(name="sample_leak", reason="samples_mixed", measured=leak, at_most=LEAK_LIMIT))
    budget = evidence.parameter_budget
    added = evidence.added_parameters
    memory, most = _need("G0", "memory of the seed", evidence.memory_ratio), evidence.memory_budget
    checks.append(Check(name="added_parameters", reason="budget_exceeded", measured=added, at_most=budget))
    checks.append(Check(name="memory_ratio", reason="budget_exceeded", measured=memory, at_most=most))
    return _report(Gate.G0, seed_id, fence, checks)


def gradient_gate(evidence: GradientEvidence, limits: GrowthConfig, seed_id: str, fence: int) -> GateReport:
    """Judge G1: is the seed's gradient finite, not zero and bounded, and does it stay out of the host's parameters?

    Raises:
        EvidenceMissing: no backward pass was made, or the code path of the probe was not recorded.
    """
    first = _fallback_checks(evidence.fallbacks)
    if (failed := _failed(Gate.G1, first, seed_id, fence)) is not None:
        return failed
    probe = _need("G1", "gradient probe", evidence.probe)
    leaves = probe.reachable_host_parameters
    isolation = Check(name="reachable_host_parameters", reason="isolation_violated", measured=leaves, equals=())
    if not probe.batches and not isolation.passed:  # the seed was not attached, so nothing more was measured
        return _report(Gate.G1, seed_id, fence, [*first, isolation])
    _need("G1", "code path, device and dtype of the probe", evidence.fallbacks)
    if probe.batches < 1:
        raise EvidenceMissing("G1", "probe batches", probe.batches, 1)
    checks = [
        *first,
        Check(name="nonfinite_gradients", reason="gradient_nonfinite", measured=probe.nonfinite, at_most=0),
        isolation,
    ]
    if probe.nonfinite == 0:
        norm, most = probe.norm, limits.max_gradient_norm
        checks += [
            Check(name="gradient_norm", reason="gradient_dead", measured=norm, above=0.0),
            Check(name="gradient_norm", reason="gradient_exploding", measured=norm, at_most=most),
        ]
    return _report(Gate.G1, seed_id, fence, checks)


def stability_gate(evidence: StabilityEvidence, limits: GrowthConfig, seed_id: str, fence: int) -> GateReport:
    """Judge G2: does the seeded fork beat its control on samples not used for ranking, and train steadily?

    A replica repeats a winner. The gain of a replica is judged by the evidence of the winner. The evidence of the
    replica must show no harm. A fork that may be adopted lacks the changes of the live host since it began, so there
    must be none.

    Raises:
        EvidenceMissing: a seed whose fork trained to the end has no rank; or the first seed of a tournament was not
            tested, or was tested on too few pairs; or the run has placebos, and none was measured.
    """
    first = [*_marks(evidence.marks), *_isolation(evidence.leaks)]
    if (failed := _failed(Gate.G2, first, seed_id, fence)) is not None:
        return failed
    steps = Check(name="steps", reason="not_enough_steps", measured=evidence.steps, at_least=evidence.required_steps)
    checks = [*first, steps]
    if evidence.rank is None and not steps.passed:  # its fork was dropped early, so there are no losses to test
        return _report(Gate.G2, seed_id, fence, checks)
    rank = Check(
        name="rank",
        reason="outperformed",
        measured=_need("G2", "place in its tournament", evidence.rank),
        at_most=1,
    )
    checks.append(rank)
    if rank.passed:
        pairs = _enough("G2", evidence.pairs, limits)
        _need("G2", "code path, device and dtype in the fork", evidence.marks.evidence_fallbacks)
        variation = _need("G2", "loss variation", evidence.loss_variation)
        checks += _no_harm(pairs, limits)
        own = _enough("G2", evidence.carried, limits) if evidence.carried else pairs
        checks += _improves(own, limits, _need("G2", "number of tests", evidence.tests))
        checks += _beats_placebos(own, limits, evidence)
        most = limits.max_loss_variation
        checks.append(Check(name="loss_variation", reason="unstable", measured=variation, at_most=most))
        checks += _same_host(evidence.host_changes)
    return _report(Gate.G2, seed_id, fence, checks)


def _same_host(changes: int | None) -> list[Check]:
    """Return the check that the live host did not change since a fork that may be adopted began."""
    if changes is None:
        return []
    return [Check(name="host_changes", reason="host_changed", measured=changes, at_most=0)]


def interface_gate(evidence: InterfaceEvidence, seed_id: str, fence: int) -> GateReport:
    """Judge G3: is the seed fully blended, does its output fit the slot, and does every required host layer exist?

    Raises:
        EvidenceMissing: no call of the seed was recorded since the last fence.
    """
    first = [*_marks(evidence.marks), _same_stage(evidence.stages)]
    if (failed := _failed(Gate.G3, first, seed_id, fence)) is not None:
        return failed
    _need("G3", "code path of the seed", evidence.marks.evidence_fallbacks)
    shape = _need("G3", "output shape", evidence.output_shape)
    expected = _need("G3", "slot shape", evidence.expected_shape)
    dtype = _need("G3", "output dtype", evidence.output_dtype)
    device = _need("G3", "device", evidence.device)
    broken = "interface_broken"
    checks = [
        *first,
        Check(name="alpha", reason="alpha_short", measured=evidence.alpha, at_least=evidence.alpha_target),
        Check(name="output_shape", reason=broken, measured=shape, equals=expected),
        Check(name="output_dtype", reason=broken, measured=dtype, equals=evidence.expected_dtype),
        Check(name="device", reason=broken, measured=device, equals=evidence.expected_device),
        *_isolation(evidence.isolation_leaks),
        Check(name="mesh_missing", reason="mesh_incomplete", measured=missing_layers(evidence), equals=()),
    ]
    return _report(Gate.G3, seed_id, fence, checks)


def missing_layers(evidence: InterfaceEvidence) -> tuple[str, ...]:
    """Return the required host layers that are not registered, in the order of `required_mesh`."""
    return tuple(layer for layer in evidence.required_mesh if layer not in evidence.registered_layers)


def attachment_gate(leaks: tuple[str, ...], seed_id: str, fence: int) -> GateReport:
    """Judge G3 of a seed if the trainer did not attach it to the live host, because it shares memory there.

    Args:
        leaks: The tensors whose memory the seed shares.
    """
    return _report(Gate.G3, seed_id, fence, _isolation(leaks))


def impact_gate(evidence: ImpactEvidence, limits: GrowthConfig, seed_id: str, fence: int) -> GateReport:
    """Judge G4: does the seed run as planned, isolated and within its budgets, and is the host as good as its twin?

    Without a twin (`twin_kept` False) there is no causal evidence. In this case the gate judges all other evidence, and
    the report has a note. If forks are adopted, or the run ends with the better of host and twin, the comparison is a
    note, too: it culls nothing, because a cull in the middle of a run harms more than it helps
    (docs/adr/0012-adoption.md).

    Raises:
        EvidenceMissing: the performance was not measured, or a twin exists, and the host was not compared with the
            twin.
    """
    first = [*_marks(evidence.marks), _same_stage(evidence.stages)]
    if (failed := _failed(Gate.G4, first, seed_id, fence)) is not None:
        return failed
    status = _need("G4", "performance status", evidence.status)
    reason = "fallback_status" if status is PerformanceStatus.FALLBACK else f"performance_{status}"
    checks = [
        *first,
        Check(name="performance_status", reason=reason, measured=str(status), among=("nominal", "healthy")),
        *_isolation(evidence.isolation_leaks),
        Check(name="cost_ratio", reason="cost_exceeded", measured=evidence.cost_ratio, at_most=evidence.cost_budget),
        Check(
            name="memory_ratio",
            reason="memory_exceeded",
            measured=evidence.memory_ratio,
            at_most=evidence.memory_budget,
        ),
    ]
    if not evidence.twin_kept:
        return _report(Gate.G4, seed_id, fence, checks, "there is no twin: no causal evidence was judged")
    zs = _need("G4", "comparison with the twin", evidence.twin_zs)
    if not zs:
        raise EvidenceMissing("G4", "fences compared with the twin", 0, 1)
    if not limits.culls_behind_twin:
        told = f"z against the twin {stouffer(zs):.3g} over {len(zs)} fences: shown, not judged"
        return _report(Gate.G4, seed_id, fence, checks, told)
    checks.append(Check(name="twin_z", reason="worse_than_twin", measured=stouffer(zs), at_least=limits.harm_z))
    return _report(Gate.G4, seed_id, fence, checks)


def reset_gate(evidence: ResetEvidence, seed_id: str, fence: int) -> GateReport:
    """Judge G5: is every part of a removed seed gone, and is its slot bit-identical to the slot of an unseeded host?

    Raises:
        EvidenceMissing: the host was not compared with an unseeded host.
    """
    left = "reset_incomplete"
    probe = _need("G5", "comparison with an unseeded host", evidence.probe)
    checks = [
        Check(name="seed_left", reason=left, measured=probe.seed_left, equals=False),
        Check(name="optimizers_left", reason=left, measured=probe.optimizers_left, at_most=0),
        Check(name="hooks_left", reason=left, measured=probe.hooks_left, at_most=0),
        Check(name="output_equal", reason=left, measured=probe.output_equal, equals=True),
        Check(name="flags_equal", reason=left, measured=probe.flags_equal, equals=True),
        Check(name="names_equal", reason=left, measured=probe.names_equal, equals=True),
    ]
    return _report(Gate.G5, seed_id, fence, checks)


def performance_status(seen: SeedObservation, cost_ratio: float, budget: float) -> PerformanceStatus:
    """Rate a live seed: FALLBACK if its dtype, device or code path is not as planned. Otherwise the cost decides.

    Args:
        cost_ratio: Modelled FLOPs of the seed, divided by the FLOPs of the host.
        budget: Limit of `cost_ratio`. NOMINAL: at most half the limit. HEALTHY: at most the limit. DEGRADED: above the
            limit.

    Raises:
        EvidenceMissing: no call of the seed was recorded since the last fence.
    """
    if seen.fallbacks is None:
        raise EvidenceMissing("G4", "performance of the seed", seen.calls, "a call since the last fence")
    if seen.fallbacks:
        return PerformanceStatus.FALLBACK
    if cost_ratio <= budget / 2:
        return PerformanceStatus.NOMINAL
    return PerformanceStatus.HEALTHY if cost_ratio <= budget else PerformanceStatus.DEGRADED


def _failed(gate: Gate, first: list[Check], seed_id: str, fence: int) -> GateReport | None:
    """Return a failed report if the check of fallbacks or the check of the stage fails. Return None if both pass.

    These checks are made first, so they fail the gate even if other evidence is missing.
    """
    report = _report(gate, seed_id, fence, first)
    return None if report.passed else report


def _marks(marks: Marks) -> list[Check]:
    requested = marks.command_fallbacks
    check = Check(name="command_fallbacks", reason="fallback_requested", measured=requested, equals=())
    return [check, *_fallback_checks(marks.evidence_fallbacks)]


def _fallback_checks(fallbacks: tuple[str, ...] | None) -> list[Check]:
    """Return the check of the fallbacks in the evidence. `fallbacks` is None if no call of the seed was observed."""
    if fallbacks is None:
        return []
    return [Check(name="evidence_fallbacks", reason="fallback_used", measured=fallbacks, equals=())]


def _same_stage(stages: Stages) -> Check:
    measured, recorded = str(stages.measured), str(stages.recorded)
    return Check(name="evidence_stage", reason="stage_mismatch", measured=measured, equals=recorded)


def _isolation(leaks: tuple[str, ...] | None) -> list[Check]:
    """Return the check of isolation. If `leaks` is None, the seed was never isolated, and is not checked."""
    if leaks is None:
        return []
    return [Check(name="isolation_leaks", reason="isolation_violated", measured=leaks, equals=())]


def _beats_placebos(pairs: PairedLosses, limits: GrowthConfig, evidence: StabilityEvidence) -> list[Check]:
    """Return the check of the gain against the placebos. It is empty if the run has none."""
    if not limits.placebos:
        return []
    gains = _need("G2", "gains of placebos", evidence.placebo_gains)
    found = placebo_limit(gains, limits.false_pass, _need("G2", "number of candidates", evidence.candidates))
    return [
        Check(
            name="gain_over_placebos",
            reason="within_placebo",
            measured=pairs.relative_gain,
            above=found.limit,
            placebos=found,
        )
    ]


def _improves(pairs: PairedLosses, limits: GrowthConfig, tests: float) -> list[Check]:
    z = z_limit(limits.false_pass, tests, pairs.count)
    gain = pairs.relative_gain
    return [
        Check(name="z", reason="no_improvement", measured=pairs.z, above=z),
        Check(name="relative_gain", reason="no_improvement", measured=gain, above=limits.margin),
    ]


def _no_harm(pairs: PairedLosses, limits: GrowthConfig) -> list[Check]:
    return [Check(name="own_z", reason="harmful", measured=pairs.z, at_least=limits.harm_z)]


def _enough(gate: str, pairs: PairedLosses | None, limits: GrowthConfig) -> PairedLosses:
    pairs = _need(gate, "paired losses", pairs)
    if pairs.count < limits.min_samples:
        raise EvidenceMissing(gate, "paired losses", pairs.count, limits.min_samples)
    return pairs


def _need(gate: str, what: str, value: T | None) -> T:
    if value is None:
        raise EvidenceMissing(gate, what, None, "a measurement")
    return value


def _report(gate: Gate, seed_id: str, fence: int, checks: list[Check], *notes: str) -> GateReport:
    return GateReport(gate=gate, seed_id=seed_id, fence=fence, checks=tuple(checks), notes=notes)
