"""The table of the gates, row by row: each reason of failure, and each missing piece of evidence, reached in a run.

The limits themselves are tried in judging/test_gates.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from growing import slot
from torch import Tensor, nn

from esper import fell_back
from esper.config.joined import RunConfig
from esper.errors import DependencyViolationError, EvidenceMissing, StateNotKept
from esper.kasmina.blueprints.catalogue import Blueprint
from esper.kasmina.blueprints.nc import mlp
from esper.kasmina.blueprints.placebos import Frozen
from esper.kasmina.blueprints.seed_modules import zeroed
from esper.leyline.commands import Candidate, Command
from esper.leyline.evidence import HostObservation
from esper.leyline.incubation import CandidateProbe, IncubationResult
from esper.leyline.reports import Gate, GateReport, GraftReceipt, RemovePlan
from esper.leyline.slots import Kind, SlotSpec
from esper.leyline.stages import Stage
from esper.testing import Bands, tiny_config, tiny_task

PAGE = Path(__file__).parents[2] / "docs" / "gates.md"
Live = Callable[..., Any]
GRAFTED, BLENDED, WATCHED, LASTING = 2, 4, 5, 6
"""The fences of a seed that germinates at fence 1: of its graft (G2), of G3, of G4, and of G4 again."""


# -- hosts -----------------------------------------------------------------------------------------------------------


class Layer(nn.Linear):
    """A slot. It changes its ways after `at` training steps."""

    def __init__(self, at: int, change: Callable[[Layer, Tensor], Tensor]) -> None:
        super().__init__(8, 8)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._at, self._change = at, change

    def forward(self, x_BC: Tensor) -> Tensor:
        self.step += int(self.training and torch.is_grad_enabled())
        h_BC = super().forward(x_BC)
        return self._change(self, h_BC) if int(self.step) > self._at else h_BC


class Host(nn.Module):
    """[B, 8] -> [B, 4], with a slot "body" [B, 8]."""

    weight: ClassVar[nn.Parameter]
    """The weight of "body" in the last host that was run, within the reach of a seed."""
    lends: ClassVar[bool] = False
    lent: ClassVar[nn.Parameter | None] = None
    """See `lending`."""

    def __init__(self, at: int = 10**6, change: Callable[[Layer, Tensor], Tensor] = lambda _layer, h: h) -> None:
        super().__init__()
        self.body, self.head = Layer(at, change), nn.Linear(8, 4)
        if Host.lends:
            Host.lent = self.head.bias

    def forward(self, x_BC: Tensor) -> Tensor:
        Host.weight = self.body.weight
        scores: Tensor = self.head(self.body(x_BC)[:, :8].float())
        return scores


class Rows(Bands):
    """The same points as rows of time, [4, 2]."""

    def __init__(self, count: int, key: int) -> None:
        super().__init__(count, key)
        self.inputs = self.inputs.view(-1, 4, 2)


class Two(Host):
    """[B, 4, 2] -> [B, 4], with two further slots, which are causal: "time" [B, 4, 2], and "signal" [B, 2, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.signal = nn.Linear(2, 2), nn.Conv1d(2, 2, 1)

    def forward(self, x_BTC: Tensor) -> Tensor:
        h_BCT = self.signal(self.time(x_BTC).transpose(1, 2))
        return super().forward(h_BCT.transpose(1, 2).flatten(1))


def in_double(_layer: Layer, h: Tensor) -> Tensor:
    return h.double()


def wider(_layer: Layer, h: Tensor) -> Tensor:
    return torch.cat([h, h], -1)


def hooked(layer: Layer, h: Tensor) -> Tensor:
    if not layer._forward_hooks:
        layer.register_forward_hook(lambda _module, _args, output: output)
    return h


# -- blueprints ------------------------------------------------------------------------------------------------------

Trick = Callable[["Seed", Tensor, Tensor], Tensor]
"""(seed, its input, its sound output) -> the output instead."""


class Seed(nn.Module):
    """A sound seed, which plays a trick after `at` training calls: 20 are in its fork, 20 in each later round."""

    count = 0

    def __init__(self, trick: Trick, at: int, work: nn.Module) -> None:
        super().__init__()
        self.work, self._trick, self._at = work, trick, at
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, h: Tensor) -> Tensor:
        s: Tensor = self.work(h)
        if h.is_meta:
            return s
        self.calls += int(self.training and torch.is_grad_enabled())
        return self._trick(self, h, s) if int(self.calls) > self._at else s


class Squares(nn.Module):
    """The squares of its input, in the input's own shape and type, times a number that begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, h: Tensor) -> Tensor:
        squares: Tensor = h.square() * self.gain
        return squares


def tells(seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
    fell_back(seed, "the fast kernel is missing")
    return s


def leaks(_seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
    return s + 0.0 * Host.weight.sum()


def grows(seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
    if not hasattr(seed, "more"):
        seed.more = nn.Parameter(torch.zeros(4000))
    return s


def strays(seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
    if not hasattr(seed, "aside"):
        seed.aside = nn.Parameter(torch.zeros(1, device="meta"))
    return s


def compiles_itself(seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
    seed.compile(backend="eager")
    return s


def harms(_seed: Seed, h: Tensor, s: Tensor) -> Tensor:
    return s + 100.0 * (100.0 * h).sin()


def not_a_number(seed: Seed, h: Tensor, s: Tensor) -> Tensor:
    root = (0.0 * next(seed.parameters()).sum()).sqrt()  # 0, with a gradient of 0 * inf
    return s + 0.0 * root * h


def dies(_seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
    return s.detach()


def explodes(_seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
    return 1e7 * s


def mixes(_seed: Seed, h: Tensor, s: Tensor) -> Tensor:
    return s + h.mean(0, keepdim=True)


def looks_ahead(_seed: Seed, h: Tensor, s: Tensor) -> Tensor:
    return s + h.flip(1)


def pointwise() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 8, 1), nn.ReLU(), zeroed(nn.Conv1d(8, 2, 1)))


def looks_ahead_in_a_signal(_seed: Seed, h_BCT: Tensor, s_BCT: Tensor) -> Tensor:
    return s_BCT + h_BCT.flip(2)


def tells_elsewhere(_seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
    fell_back(nn.Linear(1, 1), "the fast kernel is missing")
    return s


def writes_to_data(_seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
    Host.weight.data.mul_(1.001)
    return s


def counts(seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
    seed.count += 1
    return s * (1 + seed.count % 7)


class Keeping(Seed):
    """A seed that lets checkpoints save its count."""

    def get_extra_state(self) -> int:
        return self.count

    def set_extra_state(self, state: int) -> None:
        self.count = state


def narrows(_seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
    return s[..., :-1]


def doubles(_seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
    return s.double()


def borrow(seed: nn.Module) -> None:
    """Lay the one parameter of a `Squares` into the memory of the last host that was run."""
    if not seed.gain.is_meta:  # else the seed is only measured
        seed.gain = nn.Parameter(Host.weight.data[0, :1])


def borrow_if_lent(seed: nn.Module) -> None:
    if Host.lent is not None:
        seed.gain = nn.Parameter(Host.lent.data[:1])


def lending(call: Any, *arguments: Any) -> Any:
    """During this call, the trainer's host lends memory to seeds, or else the last host that was made does."""
    Host.lends, Host.lent = True, call.__self__.host.head.bias if hasattr(call.__self__, "host") else None
    try:
        return call(*arguments)
    finally:
        Host.lends, Host.lent = False, None


KEPT = nn.Parameter(torch.zeros(1))


def share(seed: nn.Module) -> None:
    """Give a `Squares` a parameter that every other seed of its blueprint has, too."""
    if not seed.gain.is_meta:
        seed.gain = KEPT


def made(
    name: str,
    trick: Trick | None = None,
    at: int = -1,
    *,
    kind: Kind = Kind.NC,
    work: Callable[[int], nn.Module] = lambda channels: mlp(channels, 4),
    mesh: Callable[[str], tuple[str, ...]] = lambda slot: (slot,),
    after: Callable[[nn.Module], None] = lambda _module: None,
) -> Blueprint:
    def factory(spec: SlotSpec) -> nn.Module:
        module = Seed(trick, at, work(spec.shape[-1])) if trick is not None else work(spec.shape[-1])
        after(module)
        return module

    return Blueprint(name, (kind,), 0.1, factory, mesh)


SOUND = made("sound")


# -- runs ------------------------------------------------------------------------------------------------------------


def task(host: Callable[[], nn.Module] = Host, of: type[Bands] = Bands, **changes: Any) -> Any:
    sizes = {"train": (320, 1), "valid": (64, 2), "test": (64, 3), "pick": (128, 4), "gate": (128, 5)}
    return tiny_task(model=host, **{name: of(count, key=key) for name, (count, key) in sizes.items()}, **changes)


def config(candidates: int = 1, **growth: Any) -> RunConfig:
    """One tournament, which the first passes if it is of any use at all."""
    keys = {
        "judge_samples": 128, "false_pass": 0.9, "margin": 1e-9, "max_tests": candidates, "candidates": candidates,
        "replicas": 1, "probation_rounds": 1, "isolation_audit_steps": 1, "embargo_rounds": 1, **growth,
    }  # fmt: skip
    return tiny_config(run__epochs=18, **{f"growth__{name}": value for name, value in keys.items()})


def failed(lived: Any) -> list[GateReport]:
    return [report for report in lived.gates if not report.passed]


CRITICAL = {"fallback_requested", "fallback_used", "fallback_status", "stage_mismatch"}
CRITICAL |= {"isolation_violated", "reset_incomplete"}
OWN_EVENT = {
    "fallback_requested": "tamiyo_fallback_requested",
    "fallback_status": "fallback_status_rejected",
    "mesh_incomplete": "mesh_coverage_missing",
}
SOURCE = {"fallback_requested": "command", "fallback_used": "evidence", "fallback_status": "status"}


def check_told(lived: Any) -> None:
    """Every judgement is counted; every failed one is told by name and severity, before the seed is moved."""
    for gate in Gate:
        reports = [report for report in lived.gates if report.gate is gate]
        for passed in (True, False):
            wanted = sum(report.passed is passed for report in reports)
            assert lived.total("esper.gate.evaluations", gate=str(gate), passed=str(passed).lower()) == wanted
    failures = [event for event in lived.events if event["name"] == "gate_failure"]
    told = {(event["fields"]["seed_id"], event["fields"]["gate"]): event for event in failures}
    assert len(told) == len(failures) == len(failed(lived))
    for report in failed(lived):
        event = told[report.seed_id, report.gate]
        assert event["fields"]["reasons"] == list(report.reasons)
        assert {"slot", *(check.name for check in report.checks if not check.passed)} <= event["fields"].keys()
        assert event["severity"] == ("CRITICAL" if CRITICAL & set(report.reasons) else "WARNING")
    reasons = [reason for report in failed(lived) for reason in report.reasons]
    for reason, name in OWN_EVENT.items():
        events = [event for event in lived.events if event["name"] == name]
        assert len(events) == reasons.count(reason) == lived.total("esper.severe_events", event=name)
        assert {event["severity"] for event in events} <= {"ERROR" if reason == "mesh_incomplete" else "CRITICAL"}
    for reason, source in SOURCE.items():
        assert lived.total("esper.fallbacks", source=source) == reasons.count(reason)
    assert lived.total("esper.fallbacks") == sum(reason in SOURCE for reason in reasons)


def no_number(module: nn.Module) -> None:
    for p in module.parameters():
        nn.init.constant_(p, float("nan"))


UNSOUND = [
    (Gate.G0, "parameter_invalid", made("of no number", after=no_number)),
    (Gate.G0, "shape_mismatch", made("narrow", narrows)),
    (Gate.G0, "shape_mismatch", made("double", doubles)),
    (Gate.G0, "samples_mixed", made("mixing", mixes)),
    (Gate.G0, "causality_broken", made("looking ahead", looks_ahead, kind=Kind.NTC)),
    (
        Gate.G0,
        "causality_broken",
        made("looking ahead in a signal", looks_ahead_in_a_signal, kind=Kind.NCT, work=lambda _: pointwise()),
    ),
    (Gate.G0, "budget_exceeded", made("huge", work=lambda channels: mlp(channels, 400))),
    (Gate.G0, "unknown_blueprint", made("of another kind", kind=Kind.NCHW)),
    (Gate.G0, "fallback_used", made("telling at birth", after=lambda module: fell_back(module, "built small"))),
    (Gate.G0, "fallback_used", made("telling in forward", tells)),
    (Gate.G0, "fallback_used", made("telling of a module elsewhere", tells_elsewhere)),
    (Gate.G1, "fallback_used", made("telling in backward", tells, 0)),
    (Gate.G1, "gradient_nonfinite", made("gradient of no number", not_a_number)),
    (Gate.G1, "gradient_dead", made("dead", dies)),
    (Gate.G1, "gradient_exploding", made("exploding", explodes)),
    (Gate.G1, "isolation_violated", made("leaking", leaks, 0)),
    (Gate.G1, "isolation_violated", made("writing to data", writes_to_data)),
    (Gate.G1, "isolation_violated", made("borrowing", work=lambda _: Squares(), after=borrow)),
    (Gate.G1, "isolation_violated", made("sharing", work=lambda _: Squares(), after=share)),
]
"""Gate, reason and blueprint of each candidate that fails before or in its fork."""


def test_seeds_that_no_gate_should_pass(live: Live) -> None:
    """G0, G1 and the losers' G2: one tournament of sound and unsound candidates in three slots."""

    sound = [SOUND, made("square", work=lambda _: Squares()), made("wider", work=lambda channels: mlp(channels, 5))]
    rows = made("rows", kind=Kind.NTC)  # the survey tries each slot with a sound seed
    signals = made("signals", kind=Kind.NCT, work=lambda _: pointwise())
    named = [made.name for _, _, made in UNSOUND] + [made.name for made in sound]

    def commanded(_command: Command, place: int) -> dict[str, Any]:
        slots = dict.fromkeys(named, "body") | {"looking ahead": "time", "looking ahead in a signal": "signal"}
        every = [Candidate(slot=slots[name], blueprint_id=name, seed_id=name) for name in named]
        return {"candidates": tuple(every)} if place == 0 else {}

    lived = live(
        task(Two, of=Rows, slots=["body", "time", "signal"]),
        config(len(named)),
        blueprints=(*(one for _, _, one in UNSOUND), *sound, rows, signals),
        commanded=commanded,
        stop=3,
    )
    check_told(lived)
    found = {(report.seed_id, report.gate): report.reasons for report in failed(lived)}
    for gate, reason, one in UNSOUND:
        assert found.pop((one.name, gate)) == (reason,), one.name
    losers = sorted((gate, reasons) for (_, gate), reasons in found.items())
    assert losers == [(Gate.G2, ("not_enough_steps",)), (Gate.G2, ("outperformed",))]
    passed = {report.gate for report in lived.gates if report.passed}
    assert passed == {Gate.G0, Gate.G1, Gate.G2, Gate.G5}
    assert {Stage.DORMANT} == {step.after for step in lived.transitions if step.cause == Gate.G5}


def test_a_leak_in_the_only_candidate_does_not_stop_the_survey_and_fails_g1(live: Live) -> None:
    def write(_seed: Seed, _h: Tensor, s: Tensor) -> Tensor:
        Host.weight.data.add_(0.01)
        return s

    lived = live(task(), config(), blueprints=(made("writing", write),), stop=2)
    check_told(lived)
    assert [(report.gate, report.reasons) for report in failed(lived)] == [(Gate.G1, ("isolation_violated",))]


# -- one seed, on its way into the host ------------------------------------------------------------------------------


def marked(place: int) -> Callable[[Command, int], dict[str, Any]]:
    """Tamiyo's command number `place` has a fallback mark: 0 GERMINATE, 1 ADVANCE into the host, 2 G3, 3 G4, 4 G4."""
    return lambda _command, at: {"fallback_marks": ("rule of thumb",)} if at == place else {}


def requiring(layer: str) -> Callable[[Command, int], dict[str, Any]]:
    return lambda command, at: {"mesh_host_layers": (*command.mesh_host_layers, layer)} if at == 1 else {}


def too_early(advance: Any, state: Any) -> Any:
    """Tamiyo takes a seed for fully blended as soon as it is in the host for a round."""
    seeds = tuple(
        seed.model_copy(update={"due": seed.due or (seed.stage is Stage.BLENDING and seed.since_fence < state.fence)})
        for seed in state.seeds
    )
    return advance(state.model_copy(update={"seeds": seeds}))


def observing(at: int, **changes: Any) -> dict[str, Callable[..., Any]]:
    """A trainer whose observations of the seeds at a fence are others."""

    def observe(original: Any, fence: int, stages: Any) -> HostObservation:
        found = original(fence, stages)
        seeds = tuple(seed.model_copy(update=changes) for seed in found.seeds)
        return found.model_copy(update={"seeds": seeds}) if fence == at else found

    return {"trainer.observe": observe}


def costly(_command: Command, at: int) -> dict[str, Any]:
    return {"candidates": (Candidate(slot="body", blueprint_id="costly", seed_id="costly"),)} if at == 0 else {}


def useless(channels: int) -> nn.Module:
    """A random module that does not train, times a number that does."""
    return Frozen(slot("body", Kind.NC, (channels,)))


SQUARE = made("square", work=lambda _: Squares())
BORROWING = made("borrowing", work=lambda _: Squares(), after=borrow_if_lent)


@dataclass(frozen=True)
class Case:
    """A run whose one seed fails a gate."""

    gate: Gate
    reasons: tuple[str, ...]
    fence: int
    blueprints: tuple[Blueprint, ...] = (SOUND,)
    host: Callable[[], nn.Module] = Host
    growth: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    events: tuple[str, ...] = ()
    """Severe events that only this failure has."""
    slow: bool = True


def late(trick: Trick, at: int) -> tuple[Blueprint, ...]:
    return (made("late", trick, at),)


SELDOM = {"isolation_audit_steps": 200}

CASES = {
    "G0 mark in the command": Case(Gate.G0, ("fallback_requested",), 1, run={"commanded": marked(0)}),
    "G2 no use": Case(Gate.G2, ("no_improvement",), GRAFTED, growth={"margin": 10.0}),
    "G2 of no more use than placebos": Case(
        Gate.G2, ("no_improvement", "within_placebo"), GRAFTED, (made("useless", work=useless),), growth={"placebos": 3}
    ),
    "G2 harm": Case(Gate.G2, ("harmful", "no_improvement"), GRAFTED, late(harms, 5)),
    "G2 unsteady": Case(Gate.G2, ("unstable",), GRAFTED, growth={"max_loss_variation": 1e-9}),
    "G2 mark in the command": Case(Gate.G2, ("fallback_requested",), GRAFTED, run={"commanded": marked(1)}),
    "G2 told in the fork": Case(Gate.G2, ("fallback_used",), GRAFTED, late(tells, 10), slow=False),
    "G2 memory of the fork": Case(
        Gate.G2, ("isolation_violated",), GRAFTED, (BORROWING,), run={"wrap": {"incubator.collect": lending}}
    ),
    "G2 a leak that begins late": Case(Gate.G2, ("isolation_violated",), GRAFTED, late(leaks, 15), growth=SELDOM),
    "G2 a write that begins late": Case(
        Gate.G2, ("isolation_violated",), GRAFTED, late(writes_to_data, 15), growth=SELDOM
    ),
    "G3 a leak that begins late": Case(Gate.G3, ("isolation_violated",), BLENDED, late(leaks, 35), growth=SELDOM),
    "G4 a write that begins late": Case(
        Gate.G4, ("isolation_violated",), WATCHED, late(writes_to_data, 55), growth=SELDOM
    ),
    "G3 too early": Case(Gate.G3, ("alpha_short",), 3, run={"wrap": {"tamiyo.advance": too_early}}),
    "G3 another type": Case(Gate.G3, ("interface_broken",), BLENDED, (SQUARE,), lambda: Host(65, in_double)),
    "G3 other channels": Case(Gate.G3, ("interface_broken",), BLENDED, (SQUARE,), lambda: Host(65, wider)),
    "G3 another device": Case(Gate.G3, ("interface_broken",), BLENDED, late(strays, 25)),
    "G3 a layer that is not": Case(
        Gate.G3, ("mesh_incomplete",), BLENDED, (made("upstairs", mesh=lambda slot: (slot, "attic")),), slow=False
    ),
    "G3 a layer that is commanded": Case(Gate.G3, ("mesh_incomplete",), BLENDED, run={"commanded": requiring("attic")}),
    "G3 a leak": Case(Gate.G3, ("isolation_violated",), BLENDED, late(leaks, 25)),
    "G3 memory of the host": Case(
        Gate.G3,
        ("isolation_violated",),
        GRAFTED,
        (BORROWING,),
        run={"wrap": {"trainer.apply": lending}},
        events=("isolation_violated",),
    ),
    "G3 mark in the command": Case(Gate.G3, ("fallback_requested",), BLENDED, run={"commanded": marked(2)}),
    "G3 told in the host": Case(Gate.G3, ("fallback_used",), BLENDED, late(tells, 25)),
    "G3 another path": Case(Gate.G3, ("fallback_used",), BLENDED, late(compiles_itself, 39)),
    "G3 evidence of before": Case(
        Gate.G3, ("stage_mismatch",), BLENDED, run={"wrap": observing(BLENDED, stage=Stage.TRAINING)}
    ),
    "G4 mark in the command": Case(Gate.G4, ("fallback_requested",), WATCHED, run={"commanded": marked(3)}),
    "G4 mark in the last command": Case(Gate.G4, ("fallback_requested",), LASTING, run={"commanded": marked(4)}),
    "G4 told in the host": Case(Gate.G4, ("fallback_used",), WATCHED, late(tells, 45)),
    "G4 told at the end": Case(Gate.G4, ("fallback_used",), LASTING, late(tells, 65)),
    "G4 another type": Case(Gate.G4, ("fallback_status",), WATCHED, (SQUARE,), lambda: Host(85, in_double), slow=False),
    "G4 too costly": Case(
        Gate.G4,
        ("cost_exceeded", "performance_degraded"),
        WATCHED,
        (SQUARE, made("costly")),
        growth={"cost_budget": 0.5},
        run={"commanded": costly},
    ),
    "G4 too large": Case(Gate.G4, ("memory_exceeded",), WATCHED, late(grows, 45)),
    "G4 a leak": Case(
        Gate.G4, ("isolation_violated",), WATCHED, late(leaks, 45), growth={"isolate_until": "fossilized"}
    ),
    "G4 harm": Case(Gate.G4, ("worse_than_twin",), WATCHED, late(harms, 45)),
    "G4 evidence of before": Case(
        Gate.G4, ("stage_mismatch",), WATCHED, run={"wrap": observing(WATCHED, stage=Stage.BLENDING)}
    ),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=[pytest.mark.slow] * case.slow) for name, case in CASES.items()],
)
def test_a_seed_that_fails_a_gate_is_culled(live: Live, case: Case) -> None:
    lived = live(
        task(case.host),
        config(**case.growth),
        blueprints=case.blueprints,
        stop=case.fence + 1,
        **case.run,
    )
    check_told(lived)
    assert all(lived.total("esper.severe_events", event=name) == 1 for name in case.events)
    (report,) = failed(lived)
    assert (report.gate, tuple(sorted(report.reasons)), report.fence) == (case.gate, case.reasons, case.fence)
    after = [step.after for step in lived.transitions if step.seed_id == report.seed_id and step.fence == case.fence]
    if case.gate is Gate.G0:
        assert after == []
    else:
        assert after[after.index(Stage.CULLED) + 1] is Stage.EMBARGOED
    removed = lived.counted.index(("esper.seed.transitions", {"after": "CULLED"})) if after else None
    told = [place for place, (name, _) in enumerate(lived.counted) if name == "esper.severe_events"]
    assert removed is None or max(told) < removed


@pytest.mark.slow
def test_a_fork_is_not_adopted_if_the_live_host_lost_a_seed_meanwhile(live: Live) -> None:
    """The first seed begins to leak while the fork of its replica trains."""
    keys = config(entry="adopt", due_rounds=2, replicas=2, max_tests=2)
    lived = live(task(), keys, blueprints=late(leaks, 45), stop=6)
    check_told(lived)
    culled, refused = failed(lived)
    assert culled.reasons == ("isolation_violated",)
    assert (refused.gate, refused.reasons, refused.fence) == (Gate.G2, ("host_changed",), 5)


# -- state of a seed -------------------------------------------------------------------------------------------------


def test_a_seed_that_begins_to_count_is_refused_by_name_at_the_next_fence(live: Live) -> None:
    lived = live(task(), config(), blueprints=late(counts, 25), raising=StateNotKept)
    assert (lived.error.holder, lived.error.attribute) == ("blueprint late at body, seed 0", "count")
    assert lived.error.fence == BLENDED


def test_a_count_that_a_seed_lets_checkpoints_save_survives_a_resume(live: Live) -> None:
    keeping = Blueprint("keeping", (Kind.NC,), 0.1, lambda spec: Keeping(counts, 5, mlp(spec.shape[-1], 4)))
    straight = live(task(), config(), blueprints=(keeping,), run_dir="straight")
    stopped = live(task(), config(), blueprints=(keeping,), stop=BLENDED, run_dir="stopped")
    assert stopped.transitions[-1].after is not Stage.CULLED
    resumed = live(task(), None, blueprints=(keeping,), run_dir="stopped")
    assert resumed.result.weights_sha256 == straight.result.weights_sha256


# -- what passes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "status"), [(20.0, "nominal"), pytest.param(8.0, "healthy", marks=pytest.mark.slow)]
)
def test_a_sound_seed_passes_every_row(live: Live, budget: float, status: str) -> None:
    lived = live(task(), config(cost_budget=budget), blueprints=(SOUND,), stop=LASTING + 1)
    check_told(lived)
    assert failed(lived) == lived.events == []
    assert [report.gate for report in lived.gates] == [Gate.G0, Gate.G1, Gate.G2, Gate.G3, Gate.G4, Gate.G4]
    assert lived.transitions[-1].after is Stage.FOSSILIZED
    checks = [check for report in lived.gates[-2:] for check in report.checks if check.name == "performance_status"]
    assert [check.measured for check in checks] == [status, status]


# -- a slot that is not as it was ------------------------------------------------------------------------------------


def forgetful(apply: Any, plan: Any, weights: Any) -> Any:
    """A trainer that gives a receipt for a removal and does nothing."""
    if not isinstance(plan, RemovePlan):
        return apply(plan, weights)
    ids = {name: getattr(plan, name) for name in ("command_id", "seed_id", "generation")}
    return GraftReceipt(step=0, parameters=0, **ids)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "wrap", "left"),
    [
        (lambda: Host(65, hooked), {}, {"hooks_left"}),
        (Host, {"trainer.apply": forgetful}, {"seed_left", "optimizers_left"}),
    ],
    ids=["a hook", "the seed"],
)
def test_a_slot_that_is_not_as_it_was_is_closed(
    live: Live, host: Callable[[], nn.Module], wrap: dict[str, Any], left: set[str]
) -> None:
    lived = live(
        task(host), config(), blueprints=(SOUND,), wrap={"tamiyo.advance": too_early, **wrap}, stop=BLENDED + 1
    )
    check_told(lived)
    early, report = failed(lived)
    assert (early.reasons, report.gate, report.reasons) == (("alpha_short",), Gate.G5, ("reset_incomplete",))
    assert {check.name for check in report.checks if not check.passed} == left
    assert [step.after for step in lived.transitions[-2:]] == [Stage.RESETTING, Stage.TERMINATED]


# -- what was not measured -------------------------------------------------------------------------------------------


@dataclass
class Losing:
    """A line that loses pieces of evidence on the way to Kasmina, one at a time, and then delivers all of it."""

    missing: list[tuple[str, str]] = field(default_factory=list)
    """Gate and evidence of each EvidenceMissing."""
    kasmina: Any = None
    before: str = ""
    concluded: tuple[Any, ...] = ()
    compared: tuple[Any, ...] = ()

    def wrap(self) -> dict[str, Callable[..., Any]]:
        methods = ("carry_out", "conclude", "compare", "advance", "reset")
        return {f"kasmina.{name}": getattr(self, name) for name in methods}

    def refused(self, ask: Any, *arguments: Any) -> None:
        with pytest.raises(EvidenceMissing) as missing:
            ask(*arguments)
        self.missing.append((missing.value.gate, missing.value.evidence))

    def carry_out(self, ask: Any, command_id: str, fence: int, probes: Any) -> Any:
        self.kasmina = ask.__self__
        for number, probe in enumerate(probes):
            for change in self._less(probe):
                fewer = [*probes[:number], *([change] if change else []), *probes[number + 1 :]]
                self.refused(ask, command_id, fence, fewer)
        return ask(command_id, fence, probes)

    def _less(self, probe: CandidateProbe) -> list[CandidateProbe | None]:
        assert probe.sanity is not None
        assert probe.gradient is not None
        sanity = ["sample_leak", *(["causality_leak"] if probe.sanity.causality_leak is not None else [])]
        return [
            None,
            probe.model_copy(update={"sanity": None}),
            *(probe.model_copy(update={"sanity": probe.sanity.model_copy(update={name: None})}) for name in sanity),
            probe.model_copy(update={"gradient": None}),
            probe.model_copy(update={"gradient": probe.gradient.model_copy(update={"batches": 0})}),
            probe.model_copy(update={"fallbacks": None}),
        ]

    def conclude(self, ask: Any, result: IncubationResult, fence: int) -> Any:
        self.refused(ask, result.model_copy(update={"forks": result.forks[1:]}), fence)
        self.refused(ask, result.model_copy(update={"order_id": "another"}), fence)
        self.before, self.concluded = self.kasmina.state(), (ask, result, fence)
        return ask(result, fence)

    def compare(self, ask: Any, *losses: Any) -> Any:
        self.compared = (ask, *losses)
        before = self.kasmina.state()
        compared = ask(*losses)
        self.kasmina.restore(before, 1)
        return compared

    def advance(self, ask: Any, command: Command, fence: int, observation: HostObservation) -> Any:
        stage = next(seed.stage for seed in self.kasmina.view(fence).seeds if seed.seed_id == command.seed_id)
        if stage is Stage.TRAINING:
            self._lose_results(ask, command, fence, observation)
            return ask(command, fence, observation)
        (seen,) = observation.seeds
        if stage is Stage.SHADOWING:
            self.refused(ask, command, fence, observation)  # no comparison of this seed was recorded
            self.compared[0](*self.compared[1:])
        for lost in ("stage", "output_dtype", "device", "path", "output_shape"):
            fewer = seen.model_copy(update={lost: None})
            if lost != "output_shape" or stage is Stage.BLENDING:
                self.refused(ask, command, fence, observation.model_copy(update={"seeds": (fewer,)}))
        if seen.isolated:
            fewer = seen.model_copy(update={"isolation_leaks": None})
            self.refused(ask, command, fence, observation.model_copy(update={"seeds": (fewer,)}))
        self.refused(ask, command, fence, observation.model_copy(update={"seeds": ()}))
        self.refused(ask, command, fence, observation.model_copy(update={"fence": fence - 1}))
        self.refused(ask, command, fence, None)
        return ask(command, fence, observation)

    def _lose_results(self, ask: Any, command: Command, fence: int, observation: HostObservation) -> None:
        conclude, result, at = self.concluded
        (first,) = [fork for fork in result.forks if fork.rank == 1]
        few = first.gate.model_copy(update={"count": 2})
        for lost in ({"gate": None}, {"gate": few}, {"loss_variation": None}, {"fallbacks": None}):
            fewer = first.model_copy(update=lost)
            forks = tuple(fewer if fork is first else fork for fork in result.forks)
            self.kasmina.restore(self.before, 1)
            conclude(result.model_copy(update={"forks": forks}), at)
            self.refused(ask, command, fence, observation)
        self.kasmina.restore(self.before, 1)
        unranked = tuple(fork.model_copy(update={"rank": None}) for fork in result.forks)
        self.refused(conclude, result.model_copy(update={"forks": unranked}), at)
        conclude(result, at)

    def reset(self, ask: Any, probes: Any, fence: int) -> Any:
        self.refused(ask, {}, fence)
        return ask(probes, fence)


PIECES = {
    Gate.G0: {"sanity probe of a known blueprint", "sample independence", "causality"},
    Gate.G1: {"gradient probe", "probe batches", "code path, device and dtype of the probe"},
    Gate.G2: {
        "result of the incubation in flight",
        "results of all forks of the incubation",
        "place in its tournament",
        "paired losses",
        "loss variation",
        "code path, device and dtype in the fork",
    },
    Gate.G3: {
        "observation of the host",
        "observation of the seed",
        "stage at which the seed was observed",
        "audit of isolation",
        "code path of the seed",
        "output shape",
    },
    Gate.G4: {
        "observation of the host",
        "observation of the seed",
        "stage at which the seed was observed",
        "performance of the seed",
        "fences compared with the twin",
    },
    Gate.G5: {"comparison with an unseeded host"},
}


@pytest.mark.slow
def test_missing_evidence_is_never_a_pass_and_changes_nothing(live: Live) -> None:
    """Every piece of evidence is lost once, in one run. Delivered at last, it ends with the bits of a sound run."""
    line = Losing()
    sound, lived = (
        live(
            task(Two, of=Rows, slots=["body", "time"]),
            config(2),
            blueprints=(SOUND, made("rows", kind=Kind.NTC)),
            wrap=wrap,
            run_dir=name,
        )
        for name, wrap in (("sound", {}), ("losing", line.wrap()))
    )
    assert lived.result.weights_sha256 == sound.result.weights_sha256
    judged = {(report.gate, check.reason) for report in sound.gates for check in report.checks}
    assert judged - {(Gate.G4, "performance_nominal")} == of_the_page() - {
        (Gate.G2, "within_placebo"),  # this run has no placebos
        (Gate.G2, "host_changed"),  # and adopts no fork
        *((Gate.G4, reason) for reason in ("fallback_status", "performance_degraded")),
    }
    found: dict[str, set[str]] = {}
    for gate, evidence in line.missing:
        found.setdefault(gate, set()).add(evidence)
    assert {gate: found[gate] for gate in PIECES} == PIECES


class Skipping(Host):
    """A host that leaves its slot out from step 65 on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, x_BC: Tensor) -> Tensor:
        self.step += int(self.training and torch.is_grad_enabled())
        scores: Tensor = self.head(x_BC) if int(self.step) > 60 else super().forward(x_BC)
        return scores


@pytest.mark.slow
def test_a_seed_that_was_not_called_ends_the_run_at_its_gate(live: Live) -> None:
    lived = live(task(Skipping), config(), blueprints=(SOUND,), raising=EvidenceMissing)
    assert lived.error.gate == "G3"
    assert [report.gate for report in lived.gates] == [Gate.G0, Gate.G1, Gate.G2]
    assert lived.transitions[-1].after is Stage.BLENDING
    assert lived.events == []


@pytest.mark.slow
def test_a_blueprint_without_a_mesh_is_refused_by_admission(live: Live) -> None:
    homeless = made("homeless", mesh=lambda _slot: ())
    lived = live(task(), config(), blueprints=(homeless,), raising=DependencyViolationError)
    assert lived.error.missing == "mesh_host_layers missing"
    assert lived.gates == lived.transitions == []
    assert [event["name"] for event in lived.events] == ["command_validation_failed"]
    assert lived.total("esper.command.rejections") == 1


# -- the table -------------------------------------------------------------------------------------------------------


def test_the_page_has_each_reason_that_a_run_can_reach_and_no_other() -> None:
    reached = {(gate, reason) for gate, reason, _ in UNSOUND} | {(Gate.G5, "reset_incomplete")}
    reached |= {(case.gate, reason) for case in CASES.values() for reason in case.reasons}
    reached |= {(Gate.G2, reason) for reason in ("not_enough_steps", "outperformed", "host_changed")}
    assert of_the_page() == reached


def of_the_page() -> set[tuple[Gate, str]]:
    rows = [line.split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| G")]
    return {(Gate(row[1].strip()), reason) for row in rows for reason in re.findall(r"`(\w+)`", row[4])}
