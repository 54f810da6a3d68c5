"""A run may end with its twin: the better of two networks, told with its reason, and the same however it is stopped."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stopping import stop

import esper
from esper.archive.history import read_past
from esper.archive.inspection import inspect_run
from esper.archive.journal import RecordKind
from esper.archive.run_directory import summary_file
from esper.errors import FaultInjected
from esper.faults import FaultSpec
from esper.flow.entry import run
from esper.flow.finishing import better
from esper.flow.proof import compare
from esper.flow.result import Result
from esper.ground.tensors import state_digest
from esper.kasmina.registry import gate_evidence
from esper.leyline.evidence import PerformanceStatus
from esper.leyline.finish import EndLosses
from esper.setup.survey import survey_of
from esper.task import Task
from esper.testing import Bands, tiny_config, tiny_task
from esper.tolaria.measured_host import MeasuredHost


def losses(mean: float) -> EndLosses:
    return EndLosses(pick=mean, gate=mean, mean=mean, weights_sha256="")


@pytest.mark.parametrize(
    ("live", "twin", "grown", "network"),
    [
        (1.0, 2.0, True, "live"),
        (1.0, 1.0, True, "live"),
        (2.0, 1.0, True, "twin"),
        (1.0, 2.0, False, "twin"),
        (math.nan, 2.0, True, "twin"),
        (math.inf, 2.0, True, "twin"),
        (1.0, math.nan, True, "live"),
        (math.nan, math.nan, True, "live"),
    ],
)
def test_the_lower_mean_loss_wins_and_a_host_without_seeds_never_does(
    live: float, twin: float, grown: bool, network: str
) -> None:
    assert better(losses(live), losses(twin), grown=grown)[0] == network


@pytest.mark.slow
def test_only_a_choice_that_the_run_has_made_is_compared_with_its_repetition(tmp_path: Path) -> None:
    """A run that HALT ends at its last fence has not chosen its network, but its repetition does."""
    run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run"), growth__finish="better"))
    chose = read_past(tmp_path / "run")
    stopped = replace(chose, entries=[one for one in chose.entries if one.kind is not RecordKind.FINISHED])
    assert compare(stopped, chose).divergence is None
    lost = compare(chose, stopped).divergence
    assert lost is not None
    assert lost.what == "network"


def slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seed counts as too slow, so that G4 culls it."""
    monkeypatch.setattr(gate_evidence, "performance_status", lambda *_: PerformanceStatus.DEGRADED)


@pytest.mark.slow
def test_a_run_in_which_no_seed_is_left_ends_with_its_twin_and_says_so_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch)
    config = tiny_config(run__dir=str(tmp_path / "run"), growth__finish="better", growth__replicas=1)
    result = esper.run(tiny_task(), config)
    plain = esper.run(tiny_task(), tiny_config(growth__enabled=False))
    assert result.finish is not None
    assert (result.ends_with, result.finish.why) == ("twin", "no seed is left in the live host")
    assert result.weights_sha256 == plain.weights_sha256 == result.twin_weights_sha256
    assert (result.test_loss, result.valid_loss, result.params_end) == (
        *(plain.test_loss, plain.valid_loss, plain.params_end),
    )
    assert result.live_test_loss != result.test_loss
    assert state_digest(result.network.state_dict()) == plain.weights_sha256
    assert state_digest(esper.load(tmp_path / "run", task=tiny_task()).state_dict()) == plain.weights_sha256
    assert state_digest(esper.load(tmp_path / "run", task=tiny_task(), fence=15).state_dict()) != plain.weights_sha256
    told = json.loads(summary_file(tmp_path / "run").read_text())
    assert told["finish"]["live"]["mean"] != told["finish"]["twin"]["mean"]
    assert inspect_run(tmp_path / "run")["finish"] == told["finish"]
    assert "no seed is left" in (result.why_none_stayed or "")
    proof = esper.prove(tmp_path / "run", tiny_task())
    assert (proof.divergence, proof.network) == (None, "twin")
    past = read_past(tmp_path / "run")
    (record,) = [entry for entry in past.entries if entry.kind is RecordKind.FINISHED]
    record.body["network"] = "live"
    found = compare(past, read_past(tmp_path / "run")).divergence
    assert found is not None
    assert (found.what, found.recorded) == ("network", told["finish"]["live"]["mean"])


@pytest.mark.slow
@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_run_that_chooses_is_stopped_and_resumed_with_the_same_choice(
    tmp_path: Path, undisturbed: Result, at_the_end: bool
) -> None:
    config = tiny_config(run__dir=str(tmp_path / "run"), growth__finish="better")
    if at_the_end:  # after the last checkpoint, before the summary
        with pytest.raises(FaultInjected):
            run(tiny_task(), config.model_copy(update={"faults": (FaultSpec(point="conductor.end", fault="raise"),)}))
    else:
        stop(9, tiny_task(), config)
    result = esper.resume(tmp_path / "run", tiny_task())
    assert result.finish is not None
    assert result.finish.twin is not None
    assert (result.ends_with, result.weights_sha256) == ("live", undisturbed.weights_sha256)
    assert result.finish.twin.weights_sha256 == undisturbed.twin_weights_sha256
    assert result.finish.live.mean < result.finish.twin.mean
    assert result.live_test_loss == result.test_loss == undisturbed.test_loss


# -- a live host that loses --------------------------------------------------------------------------------------

OVERFITTING = {"growth__entry": "adopt", "growth__replicas": 1}
"""With these settings the seed of `few_samples` stays, although it learns the samples by heart."""


def few_samples() -> Task:
    return tiny_task(train=Bands(128, key=1), epochs=60)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run that keeps its live host."""
    place = str(tmp_path_factory.mktemp("kept") / "run")
    return run(few_samples(), tiny_config(run__dir=place, **OVERFITTING))


@pytest.mark.slow
def test_a_run_whose_live_host_overfits_ends_with_its_twin_and_goes_on_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Result
) -> None:
    measured, means = Counter[tuple[str, int | None]](), MeasuredHost.shard_means

    def counted(self: MeasuredHost, shard: str, most: int | None = None) -> dict[str, float]:
        measured[shard, most] += 1
        return means(self, shard, most)

    choosing = {"growth__finish": "better", "growth__finish_samples": 200}
    config = tiny_config(run__dir=str(tmp_path / "run"), **choosing, **OVERFITTING)
    with monkeypatch.context() as patched:
        patched.setattr(MeasuredHost, "shard_means", counted)
        result = run(few_samples(), config)
    of_test = {("test", None): 3}  # the first host, the live host, the twin
    assert measured == of_test | {("valid", None): 1, ("pick", 200): 2, ("gate", 200): 2}
    assert result.finish is not None
    assert result.finish.twin is not None
    assert result.finish.live.mean > result.finish.twin.mean
    assert result.live_test_loss == kept.test_loss > kept.twin_test_loss == result.test_loss
    (seed,) = [seed for seed in result.seeds if seed.stage == "FOSSILIZED"]
    plain = run(few_samples(), tiny_config(growth__enabled=False))
    assert (result.ends_with, result.weights_sha256) == ("twin", plain.weights_sha256)
    assert (result.finish.live.weights_sha256, result.params_end) == (kept.weights_sha256, plain.params_end)
    exported = esper.export_network(tmp_path / "run", to=tmp_path / "network", task=few_samples())
    loaded = esper.load(tmp_path / "run", task=few_samples()).state_dict()
    states = loaded, result.network.state_dict(), torch.load(tmp_path / "network" / "network.pt", weights_only=True)
    assert {state_digest(state) for state in states} == {plain.weights_sha256}
    assert exported.seeds == 0

    survey = survey_of(few_samples(), config)
    (pair,) = [pair for pair in survey.options if pair.blueprint_id == seed.blueprint]
    passes = (200 + 200) / 32 / 3
    flops = round(passes * (2 * survey.host_flops + pair.flops))
    assert result.incubator_gflops - kept.incubator_gflops == pytest.approx(flops / 1e9, abs=1e-9)

    longer, (grown, chosen) = {"run.epochs": 70}, (Path(kept.run_dir), tmp_path / "run")
    with_live, again = (esper.resume(place, few_samples(), settings=longer) for place in (grown, chosen))
    assert again.finish is not None
    assert again.finish.twin is not None
    assert again.finish.live.weights_sha256 == with_live.weights_sha256
    assert again.finish.twin.weights_sha256 == with_live.twin_weights_sha256
    assert (again.finish.fence, again.ends_with) == (14, "twin")
    assert again.weights_sha256 == with_live.twin_weights_sha256 != plain.weights_sha256
