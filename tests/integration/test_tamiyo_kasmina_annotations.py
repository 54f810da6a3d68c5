"""Blends through a whole run: what a policy decides, Tamiyo commands and Kasmina admits is what the host does."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import esper
from esper import InProcess
from esper.archive.history import read_past
from esper.archive.inspection import inspect_run
from esper.archive.journal import RecordKind
from esper.archive.run_directory import telemetry_folder
from esper.cli.main import exit_code
from esper.errors import DependencyViolationError, Drained, PolicyFailed
from esper.export.loading import load_grown
from esper.kasmina.registry.seed_registry import SeedRegistry
from esper.leyline.commands import BlendMode, BlendSpec
from esper.leyline.decisions import Decision, Pair
from esper.leyline.reports import FieldReport
from esper.leyline.state import RoundState, SeedState
from esper.setup import assembly
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.telemetry.events import LOG
from esper.testing import Bands, StopAt, tiny_config, tiny_task

V = (0.5, 1.0, 1.0, 0.75, 1.0, 1.0, 0.25, 1.0)
"""A vector for the 8 channels of the slot "body"."""
LOGITS = (1.0, 0.5, 0.0)


class Choosing(HeuristicPolicy):
    """The heuristic policy with another blend, and with logits that grow by a tenth per fence."""

    def __init__(self, blend: BlendSpec | None, logits: tuple[float, ...] = ()) -> None:
        super().__init__(candidates=18, replicas=2, ramp_steps=30)
        self._chosen, self._raw = blend, logits

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        found = super().decide(state, eligible, past)
        return found if found.hold else found.model_copy(update={"blend": self._chosen, "logits": self._raw})

    def logits(self, state: RoundState, seed: SeedState, past: Sequence[FieldReport]) -> tuple[float, ...]:
        del seed, past
        return tuple(value * (1 + state.fence / 10) for value in self._raw)


def spec(mode: str, **fields: Any) -> BlendSpec:
    return BlendSpec(**({"mode": mode, "ramp_steps": 30} | fields))


# -- what is refused ---------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[BlendSpec | None, tuple[float, ...], str]] = {
    "no vector": (spec("CHANNEL"), (), "channels missing"),
    "vector of another length": (spec("CHANNEL", channels=V[:7]), (), "channels of another length"),
    "no logits": (spec("CONFIDENCE"), (), "confidence_logits missing"),
    "one logit": (spec("CONFIDENCE"), (1.0,), "confidence_logits missing"),
    "a logit that is not finite": (spec("CONFIDENCE"), (1.0, math.nan), "a figure that is not finite"),
    "unknown mode": (spec("CROSSFADE"), (), "blend mode not known"),
    "alpha above 1": (spec("CONVEX", alpha_target=1.25), (), "alpha_target outside [0, 1]"),
    "no blend": (None, (), "blend spec missing"),
}
OFTEN = ("no vector", "one logit")
"""The cases that `make test` has."""


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in OFTEN else pytest.mark.slow) for c in REFUSED])
def test_a_run_ends_with_the_refusal_of_a_blend_and_its_registry_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    blend, logits, missing = REFUSED[case]
    states: list[str] = []
    receive = SeedRegistry.receive

    def watched(registry: SeedRegistry, *asked: Any) -> Any:
        states.append(registry.state())
        try:
            return receive(registry, *asked)
        finally:
            states.append(registry.state())

    monkeypatch.setattr(SeedRegistry, "receive", watched)
    monkeypatch.setattr(assembly, "HeuristicPolicy", lambda *_: Choosing(blend, logits))
    (tmp_path / "tiny.py").write_text("from esper.testing import tiny_task as task\n")
    growth = [f"growth.{name}={value}" for name, value in tiny_config().growth.model_dump(exclude_unset=True).items()]
    path, sets = tmp_path / "run", [word for setting in growth for word in ("--set", setting)]

    code = exit_code(["run", f"{tmp_path / 'tiny.py'}:task", "--in-process", "--run-dir", str(path), *sets])

    assert code == 3
    assert missing in capsys.readouterr().err
    assert len(set(states)) <= 1  # a decision that Tamiyo refuses is no command
    told = [json.loads(line) for line in (telemetry_folder(path) / LOG).read_text().splitlines()]
    event = "command_validation_failed" if states else "dependency_violation"
    assert [one["name"] for one in told if missing in json.dumps(one["fields"])] == [event]
    kinds = [entry.kind for entry in read_past(path).entries]
    assert kinds[-1] is RecordKind.RUN_FAILED
    assert not {RecordKind.GATE, RecordKind.TRANSITION, RecordKind.PLAN_APPLIED, RecordKind.INCUBATION_BEGUN} & {*kinds}
    assert kinds.count(RecordKind.COMMAND) == bool(states)


class Failing(Choosing):
    """Chooses CONFIDENCE with two logits, and gives other logits on a seed whose gate is due."""

    def __init__(self, later: tuple[float, ...]) -> None:
        super().__init__(spec("CONFIDENCE"), LOGITS)
        self._later = later

    def logits(self, state: RoundState, seed: SeedState, past: Sequence[FieldReport]) -> tuple[float, ...]:
        del state, seed, past
        return self._later


@pytest.mark.slow
@pytest.mark.parametrize(
    ("later", "error", "words"),
    [
        ((), DependencyViolationError, "confidence_logits missing"),
        ((1.0,), DependencyViolationError, "confidence_logits missing"),
        ((1.0, math.inf), DependencyViolationError, "confidence_logits not finite"),
        ([1.0, 2.0], PolicyFailed, "scripted|heuristic"),
        ((0.0,) * 5000, PolicyFailed, "scripted|heuristic"),
    ],
    ids=["none", "one", "not finite", "a list", "too many"],
)
def test_the_fresh_logits_of_a_later_command_are_checked_as_the_first(
    tmp_path: Path, later: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        esper.run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run")), on=InProcess(policy=Failing(later)))
    bodies = [entry.body for entry in read_past(tmp_path / "run").entries if entry.kind is RecordKind.TRANSITION]
    assert "BLENDING" not in {body["after"] for body in bodies}


@pytest.mark.slow
def test_a_run_that_was_refused_is_resumed_to_the_bits_of_one_that_never_was(tmp_path: Path) -> None:
    good = InProcess(policy=Choosing(spec("CONVEX")))
    straight = esper.run(tiny_task(), tiny_config(run__dir=str(tmp_path / "straight")), on=good)
    with pytest.raises(DependencyViolationError, match="channels missing"):
        esper.run(
            tiny_task(),
            tiny_config(run__dir=str(tmp_path / "run")),
            on=InProcess(policy=Choosing(spec("CHANNEL"))),
        )
    assert esper.resume(tmp_path / "run", task=tiny_task(), on=good).weights_sha256 == straight.weights_sha256


# -- what is done ------------------------------------------------------------------------------------------------

CHOSEN: dict[BlendMode, tuple[BlendSpec, tuple[float, ...]]] = {
    BlendMode.RESIDUAL: (spec("RESIDUAL", schedule="cosine"), ()),
    BlendMode.CONVEX: (spec("CONVEX", schedule="sigmoid"), ()),
    BlendMode.CHANNEL: (spec("CHANNEL", channels=V, alpha_target=0.75), ()),
    BlendMode.CONFIDENCE: (spec("CONFIDENCE", low=0.1, high=0.9), LOGITS),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", BlendMode)
def test_a_run_of_each_mode_grows_stops_and_resumes_to_the_same_bits(tmp_path: Path, mode: BlendMode) -> None:
    blend, logits = CHOSEN[mode]
    on = InProcess(policy=Choosing(blend, logits))
    straight = esper.run(tiny_task(), tiny_config(run__dir=str(tmp_path / "straight")), on=on)
    stop = StopAt(5)
    with pytest.raises(Drained):
        esper.run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run")), on=on, progress=stop, drain=stop.drain)
    resumed = esper.resume(tmp_path / "run", task=tiny_task(), on=on)

    assert resumed.weights_sha256 == straight.weights_sha256
    assert [seed.stage for seed in resumed.seeds if seed.stage == "FOSSILIZED"]
    rounds, again = (
        [entry.body for entry in read_past(tmp_path / run).entries if entry.kind is RecordKind.ROUND_ENDED]
        for run in ("straight", "run")
    )
    blends = [[{**report, "seed_id": ""} for report in body["blends"]] for body in rounds]  # ids differ between runs
    assert blends == [[{**report, "seed_id": ""} for report in body["blends"]] for body in again]
    reports = [report for body in rounds for report in body["blends"]]
    assert {report["mode"] for report in reports} == {mode}
    assert {report["clamped"] is None for report in reports} == {mode is not BlendMode.CONFIDENCE}
    shown = [seed["blend"] for seed in inspect_run(tmp_path / "run")["seeds"] if seed["stage"] == "FOSSILIZED"]
    assert all(one["mode"] == mode for one in shown)

    x, network = Bands(16, key=9).inputs, esper.load(tmp_path / "run", task=tiny_task())
    assert torch.equal(network(x), resumed.network.eval()(x))
    if mode is BlendMode.CONFIDENCE:
        check_confidences(tmp_path / "run")


def check_confidences(path: Path) -> None:
    """Check each live seed's confidence by the logits of the last command for it, and that it has risen."""
    commands = [entry.body for entry in read_past(path).entries if entry.kind is RecordKind.COMMAND]
    for plan in load_grown(path, tiny_task()).topology:
        told = [one["confidence_logits"] for one in commands if one["seed_id"] == plan.seed_id]
        first, last = (1 / (1 + math.exp(-4 * (top1 - top2 - 0.2))) for top1, top2, _ in (told[0], told[-1]))
        assert plan.confidence == pytest.approx(last, abs=0.02)
        assert plan.confidence > first + 0.02
