"""The gates: every reason of failure, every pass, and that nothing unmeasured or not a number gets through."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from growing import SPOTLESS, slot
from scipy import stats

from esper.errors import EvidenceMissing
from esper.kasmina.judging import gates
from esper.kasmina.judging.statistics import z_limit
from esper.kasmina.settings import GrowthConfig
from esper.leyline.evidence import (
    GradientEvidence,
    GradientProbe,
    ImpactEvidence,
    InterfaceEvidence,
    Marks,
    PairedLosses,
    PerformanceStatus,
    ResetEvidence,
    ResetProbe,
    SanityEvidence,
    SanityProbe,
    SeedObservation,
    StabilityEvidence,
    Stages,
)
from esper.leyline.reports import Gate, GateReport
from esper.leyline.slots import Kind
from esper.leyline.stages import Stage
from esper.testing import telling

LIMITS = GrowthConfig(preset="none")
NAN = math.nan
MARKS = Marks(evidence_fallbacks=())
STAGES = Stages(recorded=Stage.BLENDING, measured=Stage.BLENDING)
SPEC = slot("mix", Kind.NTC, (6, 8), causal=True)
SANITY = SanityProbe(
    slot_shape=(6, 8),
    parameters=100,
    parameter_bytes=400,
    parameters_finite=True,
    output_shape=(6, 8),
    output_dtype="torch.float32",
    causality_leak=0.0,
    sample_leak=1e-17,
)
GRADIENT = GradientProbe(batches=2, nonfinite=0, norm=0.5, reachable_host_parameters=())
Z = z_limit(LIMITS.false_pass, LIMITS.max_tests, 256)
PAIRS = PairedLosses(shard="gate", fence=3, count=256, grouped=False, mean=0.1, sd=0.2, z=Z + 0.01, control_mean=2.0)
HARMLESS = PAIRS.model_copy(update={"mean": -0.01, "z": -2.9})

SOUND: dict[Gate, Any] = {
    Gate.G0: SanityEvidence(
        marks=MARKS,
        blueprint_known=True,
        probe=SANITY,
        spec=SPEC,
        added_parameters=100,
        parameter_budget=100,
        memory_ratio=0.5,
        memory_budget=1.0,
    ),
    Gate.G1: GradientEvidence(fallbacks=(), probe=GRADIENT),
    Gate.G2: StabilityEvidence(
        marks=MARKS,
        steps=40,
        required_steps=40,
        rank=1,
        pairs=PAIRS,
        loss_variation=LIMITS.max_loss_variation,
        tests=LIMITS.max_tests,
    ),
    Gate.G3: InterfaceEvidence(
        marks=MARKS,
        stages=STAGES,
        alpha=1.0,
        alpha_target=1.0,
        output_shape=(6, 8),
        expected_shape=(6, 8),
        output_dtype="torch.float32",
        expected_dtype="torch.float32",
        device="cpu",
        expected_device="cpu",
        required_mesh=("mix", "head"),
        registered_layers=("embed", "head", "mix"),
        isolation_leaks=(),
    ),
    Gate.G4: ImpactEvidence(
        marks=MARKS,
        stages=STAGES,
        status=PerformanceStatus.HEALTHY,
        twin_kept=True,
        twin_zs=(-3.0,),
        cost_ratio=1.0,
        cost_budget=1.0,
        memory_ratio=1.0,
        memory_budget=1.0,
        isolation_leaks=(),
    ),
    Gate.G5: ResetEvidence(probe=SPOTLESS),
}
"""Evidence that just passes: every number lies at its limit."""

JUDGES: dict[Gate, Callable[[Any], GateReport]] = {
    Gate.G0: lambda evidence: gates.sanity_gate(evidence, "seed-1", 3),
    Gate.G1: lambda evidence: gates.gradient_gate(evidence, LIMITS, "seed-1", 3),
    Gate.G2: lambda evidence: gates.stability_gate(evidence, LIMITS, "seed-1", 3),
    Gate.G3: lambda evidence: gates.interface_gate(evidence, "seed-1", 3),
    Gate.G4: lambda evidence: gates.impact_gate(evidence, LIMITS, "seed-1", 3),
    Gate.G5: lambda evidence: gates.reset_gate(evidence, "seed-1", 3),
}


LIVE = (Gate.G3, Gate.G4)
"""The gates of a seed in the live host, whose stage is in its evidence."""


def judge(gate: Gate, **changes: Any) -> GateReport:
    return JUDGES[gate](SOUND[gate].model_copy(update=changes))


def sanity(**changes: Any) -> SanityProbe:
    return SANITY.model_copy(update=changes)


def gradient(**changes: Any) -> GradientProbe:
    return GRADIENT.model_copy(update=changes)


def pairs(**changes: Any) -> PairedLosses:
    return PAIRS.model_copy(update=changes)


def reset(**changes: Any) -> ResetProbe:
    return SPOTLESS.model_copy(update=changes)


REFUSED: list[tuple[Gate, dict[str, Any], tuple[str, ...]]] = [
    (Gate.G0, {"blueprint_known": False, "probe": None}, ("unknown_blueprint",)),
    (Gate.G0, {"probe": sanity(parameters_finite=False)}, ("parameter_invalid",)),
    (Gate.G0, {"probe": sanity(output_shape=(8, 6), causality_leak=None, sample_leak=None)}, ("shape_mismatch",)),
    (Gate.G0, {"probe": sanity(output_dtype="torch.float64")}, ("shape_mismatch",)),
    (Gate.G0, {"probe": sanity(causality_leak=1e-6)}, ("causality_broken",)),
    (Gate.G0, {"probe": sanity(causality_leak=NAN)}, ("causality_broken",)),
    (Gate.G0, {"probe": sanity(sample_leak=1e-6)}, ("samples_mixed",)),
    (Gate.G0, {"memory_ratio": 1.01}, ("budget_exceeded",)),
    (Gate.G0, {"probe": sanity(sample_leak=NAN)}, ("samples_mixed",)),
    (Gate.G0, {"added_parameters": 101}, ("budget_exceeded",)),
    (Gate.G1, {"fallbacks": ("loss of the last round",), "probe": None}, ("fallback_used",)),
    (Gate.G1, {"probe": gradient(nonfinite=1, norm=NAN)}, ("gradient_nonfinite",)),
    (Gate.G1, {"probe": gradient(norm=0.0)}, ("gradient_dead",)),
    (Gate.G1, {"probe": gradient(norm=1000.1)}, ("gradient_exploding",)),
    (Gate.G1, {"probe": gradient(norm=math.inf)}, ("gradient_exploding",)),
    (Gate.G1, {"probe": gradient(norm=NAN)}, ("gradient_dead", "gradient_exploding")),
    (Gate.G1, {"probe": gradient(reachable_host_parameters=("body.weight",))}, ("isolation_violated",)),
    (
        Gate.G2,
        {"steps": 18, "rank": None, "pairs": None, "loss_variation": None},
        ("not_enough_steps",),
    ),
    (Gate.G2, {"steps": 39}, ("not_enough_steps",)),
    (Gate.G2, {"rank": 2, "pairs": None, "loss_variation": None}, ("outperformed",)),
    (Gate.G2, {"pairs": pairs(z=Z - 0.01)}, ("no_improvement",)),
    (Gate.G2, {"pairs": pairs(mean=0.0039)}, ("no_improvement",)),
    (Gate.G2, {"pairs": pairs(mean=0.0, sd=0.0, z=0.0)}, ("no_improvement",)),
    (Gate.G2, {"pairs": pairs(z=Z + 0.01, count=128)}, ("no_improvement",)),
    (Gate.G2, {"pairs": pairs(mean=-0.1, z=-3.1)}, ("harmful", "no_improvement")),
    (Gate.G2, {"pairs": pairs(z=NAN, mean=NAN)}, ("harmful", "no_improvement")),
    (Gate.G2, {"loss_variation": 4.1}, ("unstable",)),
    (Gate.G2, {"loss_variation": math.inf}, ("unstable",)),
    (Gate.G2, {"loss_variation": NAN}, ("unstable",)),
    (Gate.G2, {"pairs": pairs(mean=-0.1, z=-3.1), "carried": PAIRS, "carried_from": "seed-0"}, ("harmful",)),
    (Gate.G2, {"pairs": HARMLESS, "carried": pairs(z=Z - 0.01), "carried_from": "seed-0"}, ("no_improvement",)),
    *(
        (gate, {"stages": Stages(recorded=Stage.SHADOWING, measured=Stage.BLENDING)}, ("stage_mismatch",))
        for gate in LIVE
    ),
    (Gate.G3, {"alpha": 0.99}, ("alpha_short",)),
    (Gate.G3, {"alpha": NAN}, ("alpha_short",)),
    (Gate.G3, {"output_shape": (5, 8)}, ("interface_broken",)),
    (Gate.G3, {"output_dtype": "torch.bfloat16"}, ("interface_broken",)),
    (Gate.G3, {"device": "cuda:0"}, ("interface_broken",)),
    (Gate.G3, {"required_mesh": ("mix", "gone", "head", "lost")}, ("mesh_incomplete",)),
    (Gate.G4, {"status": PerformanceStatus.FALLBACK}, ("fallback_status",)),
    (Gate.G4, {"status": PerformanceStatus.DEGRADED}, ("performance_degraded",)),
    (Gate.G4, {"twin_zs": (-3.01,)}, ("worse_than_twin",)),
    (Gate.G4, {"twin_zs": (-1.8, -1.8, -1.8)}, ("worse_than_twin",)),
    (Gate.G4, {"twin_zs": (0.5, NAN)}, ("worse_than_twin",)),
    (Gate.G4, {"cost_ratio": 1.01}, ("cost_exceeded",)),
    (Gate.G4, {"cost_ratio": NAN}, ("cost_exceeded",)),
    (Gate.G4, {"memory_ratio": 1.01}, ("memory_exceeded",)),
    (Gate.G4, {"memory_ratio": NAN}, ("memory_exceeded",)),
    (Gate.G4, {"isolation_leaks": ("body.weight",)}, ("isolation_violated",)),
    (Gate.G5, {"probe": reset(seed_left=True)}, ("reset_incomplete",)),
    (Gate.G5, {"probe": reset(optimizers_left=1)}, ("reset_incomplete",)),
    (Gate.G5, {"probe": reset(hooks_left=1)}, ("reset_incomplete",)),
    (Gate.G5, {"probe": reset(output_equal=False)}, ("reset_incomplete",)),
    (Gate.G5, {"probe": reset(flags_equal=False)}, ("reset_incomplete",)),
    (Gate.G5, {"probe": reset(names_equal=False)}, ("reset_incomplete",)),
]

MARKED: list[tuple[dict[str, Any], str]] = [
    ({"command_fallbacks": ("policy: rule of thumb",)}, "fallback_requested"),
    ({"evidence_fallbacks": ("loss of the last round",)}, "fallback_used"),
]

REASONS = {
    *("fallback_requested", "fallback_used", "stage_mismatch"),
    *("unknown_blueprint", "parameter_invalid", "shape_mismatch", "causality_broken", "samples_mixed"),
    *("budget_exceeded", "gradient_nonfinite", "gradient_dead", "gradient_exploding", "isolation_violated"),
    *("not_enough_steps", "no_improvement", "harmful", "unstable", "outperformed"),
    *("alpha_short", "interface_broken", "mesh_incomplete"),
    *("fallback_status", "performance_degraded", "worse_than_twin", "cost_exceeded", "memory_exceeded"),
    "reset_incomplete",
}


@pytest.mark.parametrize("gate", Gate)
def test_sound_evidence_passes_at_its_very_limits(gate):
    report = judge(gate)
    assert report.passed
    assert report.reasons == ()
    assert (report.gate, report.seed_id, report.fence) == (gate, "seed-1", 3)


@pytest.mark.parametrize(("gate", "changes", "reasons"), REFUSED)
def test_every_failure_has_its_reason_and_its_number_beside_the_limit(gate, changes, reasons):
    report = judge(gate, **changes)
    assert not report.passed
    assert report.reasons == reasons
    for check in report.checks:
        limits = (check.at_least, check.above, check.at_most, check.equals, check.among)
        assert check.measured is not None
        assert any(limit is not None for limit in limits)


@pytest.mark.parametrize("gate", [Gate.G0, Gate.G2, *LIVE])  # G1 has the command of G0; at G5 no seed runs
@pytest.mark.parametrize(("marks", "reason"), MARKED)
def test_no_gate_lets_a_fallback_through(gate, marks, reason):
    report = judge(gate, marks=MARKS.model_copy(update=marks))
    assert report.reasons == (reason,)


def test_every_reason_of_the_design_has_a_case_here():
    tried = {reason for _, _, reasons in REFUSED for reason in reasons} | {reason for _, reason in MARKED}
    assert tried == REASONS


@pytest.mark.parametrize(
    ("gate", "changes", "evidence"),
    [
        (Gate.G0, {"probe": None}, "sanity probe"),
        (Gate.G0, {"spec": None}, "sanity probe"),
        (Gate.G0, {"probe": sanity(causality_leak=None)}, "causality"),
        (Gate.G0, {"probe": sanity(sample_leak=None)}, "sample independence"),
        (Gate.G1, {"probe": None}, "gradient probe"),
        (Gate.G1, {"probe": gradient(batches=0)}, "probe batches"),
        (Gate.G1, {"fallbacks": None}, "code path, device and dtype"),
        (Gate.G2, {"marks": MARKS.model_copy(update={"evidence_fallbacks": None})}, "code path, device and dtype"),
        (Gate.G2, {"pairs": None}, "paired losses"),
        (Gate.G2, {"pairs": pairs(count=127)}, "paired losses"),
        (Gate.G2, {"carried": pairs(count=127)}, "paired losses"),
        (Gate.G2, {"loss_variation": None}, "loss variation"),
        (Gate.G2, {"tests": None}, "number of tests"),
        (Gate.G2, {"rank": None}, "place in its tournament"),
        (Gate.G3, {"marks": MARKS.model_copy(update={"evidence_fallbacks": None})}, "code path"),
        (Gate.G3, {"output_shape": None}, "output shape"),
        (Gate.G3, {"output_dtype": None}, "output dtype"),
        (Gate.G3, {"device": None}, "device"),
        (Gate.G4, {"status": None}, "performance status"),
        (Gate.G4, {"twin_zs": None}, "comparison with the twin"),
        (Gate.G4, {"twin_zs": ()}, "fences compared"),
        (Gate.G5, {"probe": None}, "unseeded host"),
    ],
)
def test_what_was_not_measured_is_neither_a_no_nor_a_pass(gate, changes, evidence):
    with pytest.raises(EvidenceMissing, check=telling(gate=gate, evidence=re.compile(evidence))):
        judge(gate, **changes)


def test_a_seed_that_never_was_isolated_has_no_isolation_to_judge():
    for gate in (Gate.G3, Gate.G4):
        report = judge(gate, isolation_leaks=None)
        assert report.passed
        assert "isolation_leaks" not in [check.name for check in report.checks]


def test_what_the_host_itself_does_is_not_held_against_a_seed():
    free = slot("mix", Kind.NTC, (6, 8), samples_independent=False)
    assert judge(Gate.G0, spec=free, probe=sanity(causality_leak=None, sample_leak=None)).passed


def test_a_replica_passes_on_its_winners_evidence_if_it_does_no_harm_itself():
    assert not judge(Gate.G2, pairs=HARMLESS).passed
    assert judge(Gate.G2, pairs=HARMLESS, carried=PAIRS, carried_from="seed-0", carried_age_fences=4).passed


def test_a_gain_within_the_placebos_is_refused_and_one_beyond_them_passes():
    asked = LIMITS.model_copy(update={"placebos": 3})
    gains = (0.003, -0.004, 0.0, 0.005)
    rms = (46e-6 / 3 * 1.25) ** 0.5
    quantile = stats.t.isf(LIMITS.false_pass / 24, df=3)
    limit = 0.005 + quantile * rms
    for factor, reasons in ((0.99, ("within_placebo",)), (1.01, ())):
        mean = factor * limit * PAIRS.control_mean
        evidence = SOUND[Gate.G2].model_copy(
            update={"pairs": pairs(mean=mean), "placebo_gains": gains, "candidates": 24}
        )
        report = gates.stability_gate(evidence, asked, "seed-1", 3)
        assert report.reasons == reasons
        told = {check.name: (check.measured, check.above) for check in report.checks if check.above is not None}
        assert told["gain_over_placebos"] == (pytest.approx(factor * limit), pytest.approx(limit))
        (basis,) = (check.placebos for check in report.checks if check.placebos is not None)
        assert (basis.count, basis.tests) == (4, 24)
        assert (basis.rms, basis.factor) == (pytest.approx(rms), pytest.approx(quantile))
        assert GateReport.model_validate_json(report.model_dump_json()) == report
        assert told["relative_gain"][1] == LIMITS.margin
        assert told["z"] == (PAIRS.z, pytest.approx(Z))
    assert "gain_over_placebos" not in [check.name for check in judge(Gate.G2).checks]


def test_the_chance_of_a_false_pass_is_divided_among_the_tests_of_the_evidence():
    report = judge(Gate.G2, tests=3)
    assert [check.above for check in report.checks if check.name == "z"] == [pytest.approx(z_limit(0.05, 3, 256))]
    assert z_limit(0.05, 3, 256) < 2.2 < Z


def test_a_placebo_that_diverged_leaves_no_gain_beyond_it():
    asked = LIMITS.model_copy(update={"placebos": 2})
    update = {"pairs": pairs(mean=1e6), "placebo_gains": (0.001, math.inf), "candidates": 3}
    report = gates.stability_gate(SOUND[Gate.G2].model_copy(update=update), asked, "seed-1", 3)
    assert report.reasons == ("within_placebo",)
    assert GateReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize("gains", [None, ()])
def test_where_placebos_were_asked_and_none_was_measured_nothing_is_judged(gains):
    evidence = SOUND[Gate.G2].model_copy(update={"placebo_gains": gains, "candidates": 1})
    with pytest.raises(EvidenceMissing, match="gains of placebos"):
        gates.stability_gate(evidence, LIMITS.model_copy(update={"placebos": 1}), "seed-1", 3)


@pytest.mark.parametrize("grouped", [False, True])
def test_few_samples_or_groups_are_held_to_the_limit_of_their_number(grouped):
    limit = z_limit(LIMITS.false_pass, LIMITS.max_tests, 128)
    assert limit > Z + 0.05
    assert judge(Gate.G2, pairs=pairs(grouped=grouped, count=128, z=limit + 0.01)).passed
    refused = judge(Gate.G2, pairs=pairs(grouped=grouped, count=128, z=limit - 0.01))
    assert [check.above for check in refused.checks if not check.passed] == [pytest.approx(limit)]


def test_without_a_twin_g4_judges_the_rest_and_says_that_nothing_causal_was_judged():
    report = judge(Gate.G4, twin_kept=False, twin_zs=None)
    assert report.passed
    assert report.notes == ("there is no twin: no causal evidence was judged",)
    assert "twin_z" not in [check.name for check in report.checks]
    assert judge(Gate.G4, twin_kept=False, twin_zs=None, cost_ratio=2.0).reasons == ("cost_exceeded",)
    assert judge(Gate.G4).notes == ()


def test_a_bad_fence_among_good_ones_does_not_cull():
    assert judge(Gate.G4, twin_zs=(-3.5, 1.0, 1.0)).passed


def test_missing_layers_are_named_in_their_required_order():
    report = judge(Gate.G3, required_mesh=("lost", "mix", "gone"))
    (check,) = [check for check in report.checks if not check.passed]
    assert check.measured == ("lost", "gone")


# -- how a seed runs ---------------------------------------------------------------------------------------------


def seen(**changes: Any) -> SeedObservation:
    fields: dict[str, Any] = {
        "seed_id": "seed-1",
        "slot": "mix",
        "alpha": 1.0,
        "alpha_target": 1.0,
        "calls": 3,
        "output_shape": (6, 8),
        "output_dtype": "torch.float32",
        "device": "cuda:0",
        "path": "eager",
        "asked_dtype": "torch.float32",
        "asked_device": "cuda",
        "asked_path": "eager",
        "isolated": True,
        "parameter_bytes": 400,
    }
    return SeedObservation(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "cost_ratio", "status"),
    [
        ({}, 0.5, PerformanceStatus.NOMINAL),
        ({}, 0.51, PerformanceStatus.HEALTHY),
        ({}, 1.0, PerformanceStatus.HEALTHY),
        ({}, 1.01, PerformanceStatus.DEGRADED),
        ({}, NAN, PerformanceStatus.DEGRADED),
        ({"asked_device": "cuda:1"}, 0.1, PerformanceStatus.FALLBACK),
        ({"device": "cpu"}, 0.1, PerformanceStatus.FALLBACK),
        ({"asked_path": "compiled"}, 0.1, PerformanceStatus.FALLBACK),
        ({"output_dtype": "torch.bfloat16"}, 0.1, PerformanceStatus.FALLBACK),
        ({"path": "eager and compiled"}, 0.1, PerformanceStatus.FALLBACK),
    ],
)
def test_performance_is_what_ran_beside_what_was_asked(changes, cost_ratio, status):
    assert gates.performance_status(seen(**changes), cost_ratio, 1.0) is status


@pytest.mark.parametrize("unseen", [{"device": None}, {"path": None}, {"output_dtype": None}])
def test_a_seed_that_was_not_called_has_no_performance(unseen):
    with pytest.raises(
        EvidenceMissing,
        check=telling(
            gate="G4", evidence="performance of the seed", measured=0, required="a call since the last fence"
        ),
    ):
        gates.performance_status(seen(calls=0, **unseen), 0.1, 1.0)


@pytest.mark.parametrize("entry", ["graft", "adopt"])
@pytest.mark.parametrize("finish", ["live", "better"])
def test_g4_removes_a_seed_behind_the_twin_only_if_it_was_grafted_and_the_run_cannot_end_with_the_twin(
    entry: str, finish: str
) -> None:
    limits = LIMITS.model_copy(update={"entry": entry, "finish": finish})
    behind = gates.impact_gate(SOUND[Gate.G4].model_copy(update={"twin_zs": (-9.0,)}), limits, "seed-1", 3)
    judged = (entry, finish) == ("graft", "live")
    assert behind.reasons == (("worse_than_twin",) if judged else ())
    assert behind.notes == (() if judged else ("z against the twin -9 over 1 fences: shown, not judged",))
